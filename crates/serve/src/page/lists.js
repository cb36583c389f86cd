// The lists of the page: the hottest experts, the ranks, the decisions.

import { $, ago, amount, bytes, clock, count, counted, el, fixed, setContent, ratio, sentence, OUTCOMES, TRIGGERS } from "./format.js";

/** The numbers of experts and of decisions that are listed at first. */
const [FEW_EXPERTS, FEW] = [12, 6];
let most = FEW;
let decisions = [];
let hottest = [];
let all = false;

export function showHottest(list) {
  hottest = list;
  const top = Math.max(1, ...list.map((hot) => hot.over_mean));
  const rows = list.slice(0, all ? list.length : FEW_EXPERTS).map(({ layer, expert, tokens, over_mean: over, replicas, ranks }) => {
    const bar = el("meter", { min: 0, max: top.toFixed(3), value: over.toFixed(3), "aria-hidden": "true" });
    return el("tr", null, el("th", { scope: "row" }, String(layer)), el("td", null, String(expert)),
      el("td", { class: "start", title: counted(tokens, "token") }, bar, ` ${ratio(over)}×`),
      el("td", { class: "start" }, el("b", null, counted(replicas, "replica")), ` ${ranks.join(", ")}`));
  });
  if (rows.length === 0) rows.push(el("tr", null, el("td", { colspan: "4", class: "start" }, "No tokens yet.")));
  setContent($("hot-rows"), ...rows);
  $("hot-more").hidden = list.length <= FEW_EXPERTS;
  setContent($("hot-more"), all ? "Fewer" : `The ${count(list.length)} hottest`);
  $("hot-more").setAttribute("aria-expanded", all);
}

$("hot-more").addEventListener("click", () => {
  all = !all;
  showHottest(hottest);
});

/**
 * Shows every rank of the group, up or down, as a button. Buttons are reused, so that they keep the focus.
 */
export function showRanks(view, choose) {
  const list = $("ranks");
  while (list.childElementCount > view.shape.ranks) list.lastChild.remove();
  while (list.childElementCount < view.shape.ranks) {
    const rank = list.childElementCount;
    const button = el("button", { type: "button", class: "chip" }, el("b", null, el("span", { class: "unseen" }, "Rank "), String(rank)), " ", el("span"));
    button.addEventListener("click", () => choose(rank));
    list.append(el("li", null, button));
  }
  const down = new Set(view.state.down);
  const busy = view.heat.filter((line) => line.imbalance > 0);
  for (let rank = 0; rank < view.shape.ranks; rank += 1) {
    const column = view.ranks.indexOf(rank);
    const mean = busy.reduce((sum, line) => sum + (line.ranks[column] ?? 0), 0) / busy.length;
    const button = list.children[rank].firstChild;
    const is = down.has(rank) ? "down" : busy.length === 0 ? "up" : `${fixed(mean, 2)}×`;
    setContent(button.lastChild, is);
    button.classList.toggle("down", down.has(rank));
  }
}

export function showDecisions(list) {
  decisions = list;
  const items = list.slice(-most).reverse().map(item);
  if (items.length === 0) items.push(el("li", { class: "soft" }, "None yet."));
  setContent($("log"), ...items);
  $("log-more").hidden = list.length <= most;
  setContent($("log-more"), `Earlier ones, ${count(list.length - most)} more`);
}

$("log-more").addEventListener("click", () => {
  most += 4 * FEW;
  showDecisions(decisions);
});

function item(decision) {
  const { imbalance, moves, layers } = decision;
  const plan = decision.outcome === "applied" ? `plan ${decision.plan}` : "";
  const head = el("p", { class: "head" }, el("span", { class: `tag ${decision.outcome}` }, OUTCOMES[decision.outcome] ?? decision.outcome), " ",
    el("b", null, plan || `decision ${decision.number}`), " ",
    el("span", { class: "soft" }, `after ${decision.step === null ? "no step" : `step ${count(decision.step)}`}, `,
      el("time", { datetime: new Date(decision.timestamp_unix_s * 1000).toISOString(), title: clock(decision.timestamp_unix_s) }, ago(decision.timestamp_unix_s))));
  const figures = [`${ratio(imbalance.before)} → ${ratio(imbalance.after)}`, `least ${ratio(imbalance.bound)}`];
  if (moves > 0) figures.push(`${counted(moves, "move")} in ${counted(layers, "layer")}`);
  if (decision.bytes) figures.push(bytes(decision.bytes));
  if (decision.gain_ms > 0) figures.push(`gain ${amount(decision.gain_ms)} ms${decision.cost_ms > 0 ? ` for ${amount(decision.cost_ms)} ms` : ""}`);
  figures.push(`${count(Math.max(decision.duration_ms, 1))} ms`);
  return el("li", null, head, el("p", { class: "figures" }, figures.join(" · ")),
    el("p", { class: "small" }, `Why now: ${TRIGGERS[decision.trigger] ?? decision.trigger}. ${sentence(decision.reason)}`));
}

/** Returns a decision as one sentence for screen readers. */
export function decisionSentence(decision) {
  const what = OUTCOMES[decision.outcome] ?? decision.outcome;
  const { before, after } = decision.imbalance;
  const gain = decision.outcome === "applied" ? ` imbalance ${ratio(before)} to ${ratio(after)}, ${counted(decision.moves, "move")}.` : "";
  return `Decision ${decision.number}, ${what}:${gain} ${sentence(decision.reason)}`;
}
