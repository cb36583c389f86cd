// The page of a service: which model is looked at, what is known of it, and what is shown when.
//
// `/view` and `/history` are fetched when a model is chosen, then events say when to fetch again. While there is no stream of
// events, it is fetched every few seconds.

import { changeRank, replan, whatIf } from "./acts.js";
import { showHead } from "./head.js";
import { Heat, layerRows } from "./heat.js";
import { showDecisions, showHottest, showRanks, spoken } from "./lists.js";
import { Refused, ask, follow, path, token } from "./net.js";
import { showCopies, showNext } from "./plan.js";
import { Time } from "./time.js";
import { $, ago, counted, el, put, sentence, since } from "./words.js";

/** Milliseconds between two fetches at least, while loads come. */
const PACE = 1000;
const PAST = 5000;
const POLL = 3000;
const MODELS = 5_000;
/** What is known is old after so long without word from the service. */
const STALE = 20_000;
const MOST_POINTS = 4096;

const heat = new Heat();
const time = new Time();
const state = { models: [], model: null, phase: null, view: null, history: null, asked: null, live: false, heard: 0, stop: null, fed: null, stopped: false };

// ---- fetching

let due = 0;
let fetching = false;
let again = false;

/** Fetches soon: at once where that is long enough ago, and never twice at a time. */
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
    feed(view.state);
    hear();
    merge(view);
    show();
  } catch (error) {
    trouble(error, false);
  } finally {
    fetching = false;
    // Large models take longer to fetch and draw: no more than a third of the time is spent on that.
    const took = performance.now() - begun;
    state.next = performance.now() + Math.max(PACE, 2 * took);
    if (again) refresh();
  }
}

/** What a view knows and the history does not yet. */
function merge(view) {
  const known = state.history.decisions;
  const last = known.at(-1)?.number ?? 0;
  for (const decision of view.decisions) if (decision.number > last) known.push(decision);
  if (view.state.latest) point(view.state.latest);
}

/** Adds to the history. Events join steps that come fast: what lies between is fetched, now and then. */
function point(latest) {
  const points = state.history?.points;
  const last = points?.at(-1)?.accepted ?? 0;
  if (!points || last >= latest.accepted) return;
  points.push(latest);
  if (last + latest.steps < latest.accepted) state.gap = true;
}

/** The models, and which of them is looked at. */
async function fetchModels() {
  try {
    const { models } = await ask("/v1/models");
    state.models = models;
    feed(models.find((model) => model.name === state.model)?.phases.find((phase) => phase.phase === state.phase));
    $("token").hidden = true;
    $("footer-token").hidden = token.get() === null;
    hear();
    choose();
  } catch (error) {
    trouble(error, false);
  }
}

/** Keeps the choice that was made, or takes the first model that was fed. */
function choose(wanted = new URLSearchParams(location.hash.slice(1))) {
  const fed = state.models.filter((model) => model.phases.length > 0);
  const model = state.models.find((model) => model.name === (wanted.get("model") ?? state.model)) ?? fed[0] ?? state.models[0];
  const phases = model?.phases.map((phase) => phase.phase) ?? [];
  const asked = wanted.get("phase") ?? state.phase;
  pick(model?.name ?? null, phases.includes(asked) ? asked : phases[0] ?? null);
  options($("model"), state.models.map((model) => model.name), state.model);
  options($("phase"), phases, state.phase);
  $("pick").hidden = state.models.length === 0;
  $("phase").parentNode.hidden = phases.length < 2 && phases[0] !== "prefill" && phases[0] !== "decode";
  showSources(model);
  empty(model);
}

function options(select, names, chosen) {
  put(select, ...names.map((name) => el("option", { value: name }, name)));
  if (chosen !== null && select.value !== chosen) select.value = chosen;
}

/** Looks at a model from now on. */
function pick(model, phase) {
  if (model === state.model && phase === state.phase) return;
  const other = model !== state.model;
  Object.assign(state, { model, phase, view: null, history: null, asked: null, next: 0, fed: null, stopped: false });
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
  if (state.model === null || document.hidden) return link();
  state.stop = new AbortController();
  follow(state.model, state.stop.signal, { open, event, lost });
}

function open() {
  state.live = true;
  hear();
  // Something may have been missed between two streams.
  state.missed = state.history !== null;
  refresh();
}

function lost(refused) {
  state.live = false;
  state.reason = refused;
  link();
  if (refused.status === 401) trouble(refused, false);
}

function event(name, data) {
  hear();
  if (name === "missed") {
    state.missed = true;
    return refresh();
  }
  if (data.phase !== state.phase) {
    if (!state.models.find((model) => model.name === state.model)?.phases.some((phase) => phase.phase === data.phase)) fetchModels();
    return;
  }
  if (name === "loads") {
    point(data.point);
    if (state.fed) Object.assign(state.fed, { at: data.point.at, quiet: 0, known: Date.now() });
  }
  if (name === "decision") {
    state.asked = null;
    put($("told"), spoken(data));
  }
  if (name === "decision" || name === "plan") state.next = 0;
  refresh();
}

/** Word from the service. */
function hear() {
  state.heard = Date.now();
  link();
}

/** When loads came last, by the service's clock; what passes from now on is counted here. */
function feed(phase) {
  if (!phase || phase.fed_at === null) return;
  state.fed = { at: phase.fed_at, quiet: phase.quiet_seconds, after: phase.stopped_after_seconds, known: Date.now() };
}

/** Have loads stopped coming? */
function stopped() {
  const { fed } = state;
  return fed !== null && fed.quiet + (Date.now() - fed.known) / 1000 > fed.after;
}

/** How fresh is what is shown? */
function link() {
  const silent = Date.now() - state.heard;
  const before = state.stopped;
  state.stopped = stopped();
  if (state.stopped !== before) show();
  const [name, words] = !$("token").hidden ? ["closed", "not let in"]
    : state.heard === 0 ? ["connecting", "connecting"]
    : !state.live && silent > STALE ? ["stale", `stale: last word ${ago(state.heard / 1000)}`]
    : state.stopped && (state.live || silent < 2 * POLL) ? ["stopped", `no loads since ${since(state.fed.at)}`]
    : state.phase === null && state.model !== null && (state.live || silent < 2 * POLL) ? ["waiting", "no loads yet"]
    : state.live || (state.model === null && silent < 2 * POLL) ? ["live", "live"]
    : silent < 2 * POLL ? ["polling", "live, by asking"]
    : ["reconnecting", "reconnecting"];
  $("link").dataset.state = name;
  put($("link-words"), words);
  document.body.classList.toggle("stale", name === "stale");
}

// ---- showing

function show() {
  const { view } = state;
  if (!view) return;
  const options = state.models.find((model) => model.name === view.model)?.decide;
  $("page").hidden = false;
  $("empty").hidden = true;
  showHead(view, state.history, options, state.stopped);
  showHeat(view);
  put($("layers-rows"), ...($("layers").open ? layerRows(view.heat, view.ranks) : []));
  time.show(state.history?.points ?? [], state.history?.decisions ?? view.decisions);
  const next = state.asked?.next ?? view.next;
  showNext(next, state.asked?.decision ?? of(next, view.decisions), options);
  showCopies(view.state.copies, view.state.observed_step_ms);
  showHottest(view.hottest);
  showRanks(view, (rank) => act(() => changeRank({ model: state.model, view: state.view }, rank)));
  showDecisions(state.history?.decisions ?? view.decisions);
  put($("footer-plan"), view.state.plan === 0 ? "" : ` · the plan in force: GET ${path(view.model, "/plan", view.state.phase)}`);
}

/** The decision that considered a plan: not one that was asked for and left no trace, whose number another got later. */
function of(next, decisions) {
  return next ? decisions.find((one) => one.number === next.decision && one.outcome === next.outcome && one.imbalance.before === next.imbalance.before) : undefined;
}

function showHeat(view) {
  const next = state.asked?.next ?? view.next;
  const both = document.querySelector('input[name="heat"]:checked').value === "next" && next?.layers.length > 0;
  $("wipe").hidden = !both;
  const node = view.shape.nodes > 1 ? view.shape.ranks / view.shape.nodes : 0;
  if (both) {
    const lines = (imbalance, ranks) => next.layers.map((layer) => ({ layer: layer.layer, imbalance: layer[imbalance], ranks: layer[ranks] }));
    const group = Array.from({ length: view.shape.ranks }, (_, rank) => rank);
    const names = (width) => (width === view.ranks.length ? view.ranks : group.slice(0, width));
    const [now, after] = [lines("before", "ranks_before"), lines("after", "ranks_after")];
    heat.show({ now, after, share: $("wipe-at").value / 100, ranks: names(now[0].ranks.length), ranksAfter: names(after[0].ranks.length), node });
    const made = { acted: "the change that was made last", dry_run: "a change that would be made", kept: "a change that was considered" }[next.outcome] ?? "a change that was considered";
    put($("heat-words"), `Left of the line before, right of it after ${made}, on the latest steps it was judged by.`);
    return;
  }
  heat.show({ now: view.heat, ranks: view.ranks, node });
  const nothing = document.querySelector('input[name="heat"]:checked').value === "next" ? "No other plan was considered yet. " : "";
  put($("heat-words"), `${nothing}Layers down, ranks across: orange ranks work too much, blue ones wait.`);
}

/** Sources that fail, with what fails. */
function showSources(model) {
  const failing = (model?.sources ?? []).filter((source) => !source.up);
  $("sources").hidden = failing.length === 0;
  put($("sources-title"), `${counted(failing.length, "source")} of ${model?.name} ${failing.length === 1 ? "fails" : "fail"}: loads may be missing.`);
  put($("sources-list"), ...failing.map((source) => el("li", null, el("code", null, source.path), ` (${source.phase}): ${source.error}. `,
    el("span", { class: "soft" }, `Since ${since(source.since)}, ${counted(source.errors, "error")}.`))));
}

/** What to do where there is nothing to show. */
function empty(model) {
  const nothing = !model || model.phases.length === 0;
  $("empty").hidden = !nothing;
  if (!nothing) return;
  $("page").hidden = true;
  const [name, ranks, redundant] = [model?.name ?? "my-model", model?.shape.ranks ?? 8, model?.shape.redundant ?? 8];
  put($("empty-title"), model ? `No loads of ${model.name} yet.` : "No model yet.");
  put($("empty-say"), model ? "The model is known, and no step of it has come." : "The service runs, and waits for the loads of a model.");
  put($("empty-replay"), `evenkeel trace replay TRACE --to ${location.origin} --speed 10`);
  const shape = model ? "" : `curl -X PUT ${location.origin}${path(name)} -H 'content-type: application/json' -d '{"ranks": ${ranks}, "redundant": ${redundant}}'\n`;
  put($("empty-post"), `${shape}curl ${location.origin}${path(name, "/loads")} -H 'content-type: application/json' -d '{"steps": [{"step": 0, "counts": [[12, 3, ...], ...]}]}'`);
}

// ---- what goes wrong, and what is asked for

/** Says what is wrong and what to do; a token is asked for where one is needed. */
function trouble(error, loud) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) console.error(error);
  if (error.status === 401) {
    $("token").hidden = false;
    $("page").hidden = $("empty").hidden = true;
    link();
    put($("token-why"), token.get() === null ? "It answers those who know one of its tokens." : "The token that was given is not one of its own.");
    return;
  }
  if (error.status === 404 && !loud) return fetchModels();
  link();
  if (!loud) return;
  put($("error-what"), sentence(error.message));
  put($("error-advice"), error.expected ? `Expected: ${error.expected}.` : "");
  $("error").hidden = false;
}

/** Does something that a person asked for, once at a time; a button that began it says so meanwhile. */
async function act(what, button = null) {
  if (state.acting) return;
  state.acting = true;
  const label = button?.textContent;
  if (button) put(button, "Working it out …");
  document.body.classList.add("acting");
  $("error").hidden = true;
  try {
    if (await what()) {
      state.asked = null;
      state.next = 0;
      refresh();
    }
  } catch (error) {
    trouble(error, true);
  } finally {
    state.acting = false;
    if (button) put(button, label);
    document.body.classList.remove("acting");
  }
}

const chosen = () => ({ model: state.model, phase: state.phase, options: state.models.find((model) => model.name === state.model)?.decide });

$("what-if").addEventListener("click", () => act(async () => {
  const [model, phase] = [state.model, state.phase];
  const asked = await whatIf(chosen());
  if (model !== state.model || phase !== state.phase) return;
  state.asked = asked;
  put($("told"), `Dry run: ${sentence(asked.decision.reason)}`);
  show();
}, $("what-if")));
$("replan").addEventListener("click", () => act(() => replan(chosen()), $("replan")));
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

/** Begins anew, with another token. */
function restart() {
  state.stop?.abort();
  Object.assign(state, { model: null, phase: null, view: null, history: null, asked: null, live: false });
  $("page").hidden = true;
  fetchModels();
}

fetchModels();
setInterval(link, 1000);
setInterval(() => !document.hidden && !state.live && state.model !== null && refresh(), POLL);
setInterval(() => !document.hidden && (state.model === null || state.phase === null) && $("token").hidden && fetchModels(), POLL);
setInterval(() => !document.hidden && state.model !== null && fetchModels(), MODELS);
