// The plan that was last considered: its moves, their gain, and the reason for or against them.

import { $, amount, bytes, count, counted, el, percent, setContent, ratio, sentence } from "./format.js";

/** The number of moves that are listed at first. */
const FEW = 6;
let all = false;
let shown = null;

const TITLES = {
  applied: "Changes of the last plan",
  dry_run: "Changes of the next plan",
  kept: "Why the plan is kept",
  skipped: "Why the plan is kept",
  failed: "Why the plan is kept",
};

/**
 * Shows a plan. `preview` has the form of the service. `decision` considered it, and may be undefined.
 */
export function showPreview(preview, decision, options) {
  const outcome = decision?.outcome ?? preview?.outcome;
  setContent($("next-title"), (preview && TITLES[outcome]) || TITLES.dry_run);
  if (!preview) {
    setContent($("next-say"), "No plan was considered yet.");
    setContent($("next-facts"));
  } else {
    setContent($("next-say"), headline(preview, decision, outcome));
    setContent($("next-facts"), ...facts(preview, decision, options, outcome));
  }
  if (shown !== preview) {
    const same = shown && preview && JSON.stringify(shown.moves) === JSON.stringify(preview.moves);
    if (!same) all = false;
    shown = preview;
    if (!same || !$("moves-rows").firstChild) moves();
  }
}

export function headline(preview, decision, outcome) {
  const { before, after, bound } = preview.imbalance;
  const layers = new Set(preview.moves.map((move) => move.layer)).size;
  const what = preview.moves.length > 0 ? `${counted(preview.moves.length, "move")} in ${counted(layers, "layer")}` : "It";
  const change = `the imbalance from ${ratio(before)} to ${ratio(after)}, where ${ratio(bound)} is the least possible`;
  // After the loss of a rank the imbalance may rise.
  if (outcome === "applied") return `${what} ${after > before ? "took" : "lowered"} ${change}.`;
  if (what !== "It" || after !== before) return `${what} would ${after > before ? "take" : "lower"} ${change}.`;
  return `Nothing would be moved: the imbalance stays at ${ratio(before)}, where ${ratio(bound)} is the least possible.`;
}

/** Returns pairs of terms and texts. */
export function facts(preview, decision, options, outcome = decision?.outcome) {
  const list = [];
  const fact = (term, text) => list.push(el("dt", null, term), el("dd", null, text));
  if (decision) {
    const stays = outcome === "applied" || outcome === "dry_run" ? "Why" : "Why not";
    fact(stays, sentence(decision.reason));
    if (decision.gain_ms > 0) {
      fact("Expected gain", `${amount(decision.gain_ms)} ms within ${counted(options?.horizon ?? 0, "step")}${decision.cost_ms > 0 ? `, for ${amount(decision.cost_ms)} ms of transfers` : ""}`);
    }
    if (preview.moves.length > 0) {
      fact("To copy", decision.bytes === null || decision.bytes === undefined || decision.bytes === 0
        ? `${counted(preview.moves.length, "expert")}; the size of an expert is not stated`
        : `${bytes(decision.bytes)}, ${bytes(decision.busiest_bytes ?? 0)} of it to the busiest receiver`);
    }
    if (decision.rejected_moves > 0) fact("Left out", `${counted(decision.rejected_moves, "move")} that would not pay`);
  }
  return list;
}

/** Shows the cost of transfers and the time that they may take, and marks assumed values. */
export function showCopies(copies, observed) {
  const assumed = (key) => (copies.assumed.includes(key) ? " (assumed)" : "");
  const copy = `A copy takes ${amount(copies.expert_ms)} ms: an expert of ${copies.model}${assumed("model")} over ${count(copies.link_gbps)} Gbit/s${assumed("link_gbps")}`;
  const price = copies.move_cost === null ? `weighed against batches on ${copies.gpu}${assumed("gpu")}` : `weighed as ${amount(copies.move_cost)} batches, as stated`;
  const share = copies.copy_share === null ? "Copies may take any time"
    : `Copies may take ${percent(copies.copy_share)} of the time, at ${copies.step_ms} ms a step`;
  const fast = copies.copy_share !== null && observed !== null && observed < 0.8 * copies.step_ms
    ? ` Steps come every ${amount(observed)} ms: copies may take up to ${percent((copies.copy_share * copies.step_ms) / observed)} of the time. State step_ms.` : "";
  setContent($("copies"), `${copy}, ${price}. ${share}; so far they took ${percent(copies.spent_share)}.${fast}`);
}

/** Returns one row per move. */
export function moveRows(list) {
  return list.map(({ layer, expert, from, to, slot }) => {
    const cells = [String(expert), from === null || from === undefined ? "lost: from outside" : `rank ${from}`, `rank ${to}`, String(slot)];
    return el("tr", null, el("th", { scope: "row" }, String(layer)), ...cells.map((text) => el("td", null, text)));
  });
}

function moves() {
  const list = shown?.moves ?? [];
  $("moves").hidden = list.length === 0;
  $("moves-more").hidden = list.length <= FEW;
  setContent($("moves-more"), all ? "Fewer" : `All ${count(list.length)} moves`);
  $("moves-more").setAttribute("aria-expanded", all);
  $("moves-rows").replaceChildren(...moveRows(all ? list : list.slice(0, FEW)));
}

$("moves-more").addEventListener("click", () => {
  all = !all;
  moves();
});
