// The page of a service: the choice of a model, its data, and the parts of the page.
//
// `/view` and `/history` are fetched when a model is chosen. Later events trigger further fetches. Without a
// stream of events, the page fetches every few seconds.

import { changeRank, replan, whatIf } from "./actions.js";
import { showHeader } from "./header.js";
import { Heatmap, layerRows } from "./heatmap.js";
import { showDecisions, showHottest, showRanks, decisionSentence } from "./lists.js";
import { Refused, ask, follow, path, token } from "./api.js";
import { showCopies, showPreview } from "./plan.js";
import { Timeline } from "./time.js";
import { $, ago, counted, el, setContent, sentence, since } from "./format.js";

/** The fewest milliseconds between two fetches while loads arrive. */
const PACE = 1000;
const PAST = 5000;
const POLL = 3000;
const MODELS = 5_000;
/** The milliseconds without an answer from the service after which the data counts as stale. */
const STALE = 20_000;
const MOST_POINTS = 4096;

const heat = new Heatmap();
const time = new Timeline();
const state = { models: [], model: null, phase: null, view: null, history: null, dryRun: null, live: false, heard: 0, stop: null, fed: null, stopped: false };

// ---- fetching

let due = 0;
let fetching = false;
let again = false;

/** Fetches soon, but neither before the pause since the last fetch has passed nor twice at a time. */
function refresh() {
  if (fetching) {
    again = true;
    return;
  }
  if (due === 0) due = setTimeout(fetchView, Math.max(0, (state.next ?? 0) - performance.now()));
}

async function fetchView() {
  due = 0;
  const { model, phase } = state;
  if (model === null || phase === null) return;
  fetching = true;
  again = false;
  const begun = performance.now();
  try {
    const old = performance.now() - (state.whole ?? 0) > PAST;
    if (state.history === null || state.missed || (state.gap && old) || state.history.points.length > MOST_POINTS) {
      Object.assign(state, { gap: false, missed: false });
      const history = await ask(path(model, "/history", phase));
      if (model !== state.model || phase !== state.phase) return;
      Object.assign(state, { history, whole: performance.now() });
    }
    const view = await ask(path(model, "/view", phase));
    if (model !== state.model || phase !== state.phase) return;
    state.view = view;
    recordFeed(view.state);
    recordContact();
    mergeHistory(view);
    show();
  } catch (error) {
    showError(error, false);
  } finally {
    fetching = false;
    // Large models take longer to fetch and draw. Spend at most a third of the time on that.
    const took = performance.now() - begun;
    state.next = performance.now() + Math.max(PACE, 2 * took);
    if (again) refresh();
  }
}

/** Adds the data of a view to the history. */
function mergeHistory(view) {
  const known = state.history.decisions;
  const last = known.at(-1)?.number ?? 0;
  for (const decision of view.decisions) if (decision.number > last) known.push(decision);
  if (view.state.latest) addPoint(view.state.latest);
}

/** Adds a point to the history. An event may cover fewer steps than passed; the gap is fetched later. */
function addPoint(latest) {
  const points = state.history?.points;
  const last = points?.at(-1)?.accepted ?? 0;
  if (!points || last >= latest.accepted) return;
  points.push(latest);
  if (last + latest.steps < latest.accepted) state.gap = true;
}

/** Fetches the models, and chooses the one to show. */
async function fetchModels() {
  try {
    const { models } = await ask("/v1/models");
    state.models = models;
    recordFeed(models.find((model) => model.name === state.model)?.phases.find((phase) => phase.phase === state.phase));
    $("token").hidden = true;
    $("footer-token").hidden = token.get() === null;
    recordContact();
    choose();
  } catch (error) {
    showError(error, false);
  }
}

/** Keeps the current choice, or takes the first model with loads. */
function choose(wanted = new URLSearchParams(location.hash.slice(1))) {
  const fed = state.models.filter((model) => model.phases.length > 0);
  const model = state.models.find((model) => model.name === (wanted.get("model") ?? state.model)) ?? fed[0] ?? state.models[0];
  const phases = model?.phases.map((phase) => phase.phase) ?? [];
  const asked = wanted.get("phase") ?? state.phase;
  selectModel(model?.name ?? null, phases.includes(asked) ? asked : phases[0] ?? null);
  fillOptions($("model"), state.models.map((model) => model.name), state.model);
  fillOptions($("phase"), phases, state.phase);
  $("pick").hidden = state.models.length === 0;
  $("phase").parentNode.hidden = phases.length < 2 && phases[0] !== "prefill" && phases[0] !== "decode";
  showSources(model);
  showEmpty(model);
}

function fillOptions(select, names, chosen) {
  setContent(select, ...names.map((name) => el("option", { value: name }, name)));
  if (chosen !== null && select.value !== chosen) select.value = chosen;
}

/** Shows another model from now on. */
function selectModel(model, phase) {
  if (model === state.model && phase === state.phase) return;
  const other = model !== state.model;
  Object.assign(state, { model, phase, view: null, history: null, dryRun: null, next: 0, fed: null, stopped: false });
  const hash = model === null ? "" : `#${new URLSearchParams(phase === null ? { model } : { model, phase })}`;
  history.replaceState(null, "", location.pathname + hash);
  document.title = model === null ? "evenkeel" : `${model} · evenkeel`;
  if (other) listen();
  refresh();
}

// ---- events

function listen() {
  state.stop?.abort();
  state.stop = null;
  state.live = false;
  if (state.model === null || document.hidden) return showLink();
  state.stop = new AbortController();
  follow(state.model, state.stop.signal, { open, event, lost });
}

function open() {
  state.live = true;
  recordContact();
  // Events may have been missed between two streams.
  state.missed = state.history !== null;
  refresh();
}

function lost(refused) {
  state.live = false;
  state.reason = refused;
  showLink();
  if (refused.status === 401) showError(refused, false);
}

function event(name, data) {
  recordContact();
  if (name === "missed") {
    state.missed = true;
    return refresh();
  }
  if (data.phase !== state.phase) {
    if (!state.models.find((model) => model.name === state.model)?.phases.some((phase) => phase.phase === data.phase)) fetchModels();
    return;
  }
  if (name === "loads") {
    addPoint(data.point);
    if (state.fed) Object.assign(state.fed, { at: data.point.timestamp_unix_s, quiet: 0, known: Date.now() });
  }
  if (name === "decision") {
    state.dryRun = null;
    setContent($("announcement"), decisionSentence(data));
  }
  if (name === "decision" || name === "plan") state.next = 0;
  refresh();
}

/** Notes that the service answered. */
function recordContact() {
  state.heard = Date.now();
  showLink();
}

/** Notes the time of the last loads by the service's clock. The page counts the time since then itself. */
function recordFeed(phase) {
  if (!phase || phase.last_step_unix_s === null) return;
  state.fed = { at: phase.last_step_unix_s, quiet: phase.quiet_seconds, after: phase.stopped_after_seconds, known: Date.now() };
}

/** Returns whether loads have stopped arriving. */
function stopped() {
  const { fed } = state;
  return fed !== null && fed.quiet + (Date.now() - fed.known) / 1000 > fed.after;
}

/** Shows the age of the data and the state of the connection. */
function showLink() {
  const silent = Date.now() - state.heard;
  const before = state.stopped;
  state.stopped = stopped();
  if (state.stopped !== before) show();
  const [name, words] = !$("token").hidden ? ["closed", "no access"]
    : state.heard === 0 ? ["connecting", "connecting"]
    : !state.live && silent > STALE ? ["stale", `stale: last answer ${ago(state.heard / 1000)}`]
    : state.stopped && (state.live || silent < 2 * POLL) ? ["stopped", `no loads since ${since(state.fed.at)}`]
    : state.phase === null && state.model !== null && (state.live || silent < 2 * POLL) ? ["waiting", "no loads yet"]
    : state.live || (state.model === null && silent < 2 * POLL) ? ["live", "live"]
    : silent < 2 * POLL ? ["polling", "live, polling"]
    : ["reconnecting", "reconnecting"];
  $("link").dataset.state = name;
  setContent($("link-words"), words);
  document.body.classList.toggle("stale", name === "stale");
}

// ---- showing

function show() {
  const { view } = state;
  if (!view) return;
  const options = state.models.find((model) => model.name === view.model)?.decide;
  $("page").hidden = false;
  $("empty").hidden = true;
  showHeader(view, state.history, options, state.stopped);
  showHeat(view);
  setContent($("layers-rows"), ...($("layers").open ? layerRows(view.heat, view.ranks) : []));
  time.show(state.history?.points ?? [], state.history?.decisions ?? view.decisions);
  const preview = state.dryRun?.preview ?? view.preview;
  showPreview(preview, state.dryRun?.decision ?? findDecision(preview, view.decisions), options);
  showCopies(view.state.copies, view.state.observed_step_ms);
  showHottest(view.hottest);
  showRanks(view, (rank) => runAction(() => changeRank({ model: state.model, view: state.view }, rank)));
  showDecisions(state.history?.decisions ?? view.decisions);
  setContent($("footer-plan"), view.state.plan === 0 ? "" : ` · the current plan: GET ${path(view.model, "/plan", view.state.phase)}`);
}

/**
 * Returns the decision that considered a plan. A dry run is not recorded, and a later decision may have its
 * number.
 */
function findDecision(preview, decisions) {
  return preview ? decisions.find((one) => one.number === preview.decision && one.outcome === preview.outcome && one.imbalance.before === preview.imbalance.before) : undefined;
}

function showHeat(view) {
  const preview = state.dryRun?.preview ?? view.preview;
  const both = document.querySelector('input[name="heat"]:checked').value === "next" && preview?.layers.length > 0;
  $("wipe").hidden = !both;
  const node = view.shape.nodes > 1 ? view.shape.ranks / view.shape.nodes : 0;
  if (both) {
    const lines = (imbalance, ranks) => preview.layers.map((layer) => ({ layer: layer.layer, imbalance: layer[imbalance], ranks: layer[ranks] }));
    const group = Array.from({ length: view.shape.ranks }, (_, rank) => rank);
    const names = (width) => (width === view.ranks.length ? view.ranks : group.slice(0, width));
    const [now, after] = [lines("before", "ranks_before"), lines("after", "ranks_after")];
    heat.show({ now, after, share: $("wipe-at").value / 100, ranks: names(now[0].ranks.length), ranksAfter: names(after[0].ranks.length), node });
    const made = { applied: "the change that was made last", dry_run: "a change that would be made", kept: "a change that was considered" }[preview.outcome] ?? "a change that was considered";
    setContent($("heat-words"), `Left of the line before, right of it after ${made}, on the latest steps of the comparison.`);
    return;
  }
  heat.show({ now: view.heat, ranks: view.ranks, node });
  const nothing = document.querySelector('input[name="heat"]:checked').value === "next" ? "No other plan was considered yet. " : "";
  setContent($("heat-words"), `${nothing}Layers down, ranks across: orange ranks work too much, blue ones wait.`);
}

/** Shows the failing sources with their errors. */
function showSources(model) {
  const failing = (model?.sources ?? []).filter((source) => !source.up);
  $("sources").hidden = failing.length === 0;
  setContent($("sources-title"), `${counted(failing.length, "source")} of ${model?.name} ${failing.length === 1 ? "fails" : "fail"}: loads may be missing.`);
  setContent($("sources-list"), ...failing.map((source) => el("li", null, el("code", null, source.path), ` (${source.phase}): ${source.error}. `,
    el("span", { class: "soft" }, `Since ${since(source.since_unix_s)}, ${counted(source.errors, "error")}.`))));
}

/** Shows the next steps for a model without loads. */
function showEmpty(model) {
  const nothing = !model || model.phases.length === 0;
  $("empty").hidden = !nothing;
  if (!nothing) return;
  $("page").hidden = true;
  const [name, ranks, redundant] = [model?.name ?? "my-model", model?.shape.ranks ?? 8, model?.shape.redundant ?? 8];
  setContent($("empty-title"), model ? `No loads of ${model.name} yet.` : "No model yet.");
  setContent($("empty-say"), model ? "The model exists, and no step of it has arrived." : "The service runs, and waits for the loads of a model.");
  setContent($("empty-replay"), `evenkeel trace replay TRACE --to ${location.origin} --speed 10`);
  const shape = model ? "" : `curl -X PUT ${location.origin}${path(name)} -H 'content-type: application/json' -d '{"ranks": ${ranks}, "redundant": ${redundant}}'\n`;
  setContent($("empty-post"), `${shape}curl ${location.origin}${path(name, "/loads")} -H 'content-type: application/json' -d '{"steps": [{"step": 0, "counts": [[12, 3, ...], ...]}]}'`);
}

// ---- errors and actions

/** Shows an error with advice. Asks for a token if one is required. */
function showError(error, loud) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) console.error(error);
  if (error.status === 401) {
    $("token").hidden = false;
    $("page").hidden = $("empty").hidden = true;
    showLink();
    setContent($("token-why"), token.get() === null ? "The service answers only requests with one of its tokens." : "The service does not know this token.");
    return;
  }
  if (error.status === 404 && !loud) return fetchModels();
  showLink();
  if (!loud) return;
  setContent($("error-what"), sentence(error.message));
  setContent($("error-advice"), error.expected ? `Expected: ${error.expected}.` : "");
  $("error").hidden = false;
}

/** Runs an action of the user, one at a time. Its button shows the progress. */
async function runAction(what, button = null) {
  if (state.acting) return;
  state.acting = true;
  const label = button?.textContent;
  if (button) setContent(button, "Computing …");
  document.body.classList.add("acting");
  $("error").hidden = true;
  try {
    if (await what()) {
      state.dryRun = null;
      state.next = 0;
      refresh();
    }
  } catch (error) {
    showError(error, true);
  } finally {
    state.acting = false;
    if (button) setContent(button, label);
    document.body.classList.remove("acting");
  }
}

const chosen = () => ({ model: state.model, phase: state.phase, options: state.models.find((model) => model.name === state.model)?.decide });

$("what-if").addEventListener("click", () => runAction(async () => {
  const [model, phase] = [state.model, state.phase];
  const dryRun = await whatIf(chosen());
  if (model !== state.model || phase !== state.phase) return;
  state.dryRun = dryRun;
  setContent($("announcement"), `Dry run: ${sentence(dryRun.decision.reason)}`);
  show();
}, $("what-if")));
$("replan").addEventListener("click", () => runAction(() => replan(chosen()), $("replan")));
$("error-close").addEventListener("click", () => ($("error").hidden = true));
$("model").addEventListener("change", () => choose(new URLSearchParams({ model: $("model").value })));
$("phase").addEventListener("change", () => choose(new URLSearchParams({ model: state.model, phase: $("phase").value })));
window.addEventListener("hashchange", () => choose());
$("layers").addEventListener("toggle", () => show());
$("wipe-at").addEventListener("input", () => state.view && showHeat(state.view));
for (const input of document.querySelectorAll('input[name="heat"]')) input.addEventListener("change", () => state.view && showHeat(state.view));
$("token").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  token.set($("token-text").value.trim());
  $("token-text").value = "";
  restart();
});
$("forget").addEventListener("click", () => {
  token.set(null);
  restart();
});
document.addEventListener("visibilitychange", () => {
  if (state.model !== null) listen();
  if (!document.hidden) fetchModels();
});

/** Starts again with another token. */
function restart() {
  state.stop?.abort();
  Object.assign(state, { model: null, phase: null, view: null, history: null, dryRun: null, live: false });
  $("page").hidden = true;
  fetchModels();
}

fetchModels();
setInterval(showLink, 1000);
setInterval(() => !document.hidden && !state.live && state.model !== null && refresh(), POLL);
setInterval(() => !document.hidden && (state.model === null || state.phase === null) && $("token").hidden && fetchModels(), POLL);
setInterval(() => !document.hidden && state.model !== null && fetchModels(), MODELS);
