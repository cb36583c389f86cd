// The plan that was last considered: what it would change or has changed, what that gains, and why it was made or not.

import { $, amount, bytes, count, counted, el, percent, put, ratio, sentence } from "./words.js";

/** Moves that are listed before somebody asks for all. */
const FEW = 6;
let all = false;
let shown = null;

const TITLES = {
  acted: "What the last plan changed",
  dry_run: "What the next plan would change",
  kept: "Why the plan is kept",
  passed_over: "Why the plan is kept",
  failed: "Why the plan is kept",
};

/** `next` as the service gives it, and the decision that belongs to it where that is known. */
export function showNext(next, decision, options) {
  const outcome = decision?.outcome ?? next?.outcome;
  put($("next-title"), next ? TITLES[outcome] ?? TITLES.dry_run : "What the next plan would change");
  if (!next) {
    put($("next-say"), "No plan was considered yet.");
    put($("next-facts"));
  } else {
    put($("next-say"), headline(next, decision, outcome));
    put($("next-facts"), ...facts(next, decision, options, outcome));
  }
  if (shown !== next) {
    const same = shown && next && JSON.stringify(shown.moves) === JSON.stringify(next.moves);
    if (!same) all = false;
    shown = next;
    if (!same || !$("moves-rows").firstChild) moves();
  }
}

export function headline(next, decision, outcome) {
  const { before, after, bound } = next.imbalance;
  const layers = new Set(next.moves.map((move) => move.layer)).size;
  const what = next.moves.length > 0 ? `${counted(next.moves.length, "move")} in ${counted(layers, "layer")}` : "It";
  const change = `the imbalance from ${ratio(before)} to ${ratio(after)}, where ${ratio(bound)} is the least possible`;
  // Where a rank is gone, it may well rise.
  if (outcome === "acted") return `${what} ${after > before ? "took" : "lowered"} ${change}.`;
  if (what !== "It" || after !== before) return `${what} would ${after > before ? "take" : "lower"} ${change}.`;
  return `Nothing would be moved: the imbalance stays at ${ratio(before)}, where ${ratio(bound)} is the least possible.`;
}

/** Term and text, several. */
export function facts(next, decision, options, outcome = decision?.outcome) {
  const list = [];
  const fact = (term, text) => list.push(el("dt", null, term), el("dd", null, text));
  if (decision) {
    const stays = outcome === "acted" || outcome === "dry_run" ? "Why" : "Why not";
    fact(stays, sentence(decision.reason));
    if (decision.gain > 0) {
      fact("Expected gain", `${amount(decision.gain)} balanced batches of a layer within ${counted(options?.horizon ?? 0, "step")}${decision.cost > 0 ? `, for ${amount(decision.cost)} that the copies cost` : ""}`);
    }
    if (next.moves.length > 0) {
      fact("To copy", decision.bytes === null || decision.bytes === undefined || decision.bytes === 0
        ? `${counted(next.moves.length, "expert")}; what an expert weighs is not stated`
        : `${bytes(decision.bytes)}, ${bytes(decision.busiest_bytes ?? 0)} of it to the busiest receiver`);
    }
    if (decision.moves_left_out > 0) fact("Left out", `${counted(decision.moves_left_out, "move")} that would not pay`);
  }
  return list;
}

/** What copies cost and may take; what is assumed is said so. */
export function showCopies(copies, observed) {
  const assumed = (key) => (copies.assumed.includes(key) ? " (assumed)" : "");
  const copy = `A copy takes ${amount(copies.expert_ms)} ms: an expert of ${copies.model}${assumed("model")} over ${count(copies.link_gbps)} Gbit/s${assumed("link_gbps")}`;
  const price = copies.move_cost === null ? `weighed against batches on ${copies.gpu}${assumed("gpu")}` : `weighed as ${amount(copies.move_cost)} batches, as stated`;
  const share = copies.copy_share === null ? "Copies may take any time"
    : `Copies may take ${percent(copies.copy_share)} of the time, at ${copies.step_ms} ms a step`;
  const fast = copies.copy_share !== null && observed !== null && observed < 0.8 * copies.step_ms
    ? ` Steps come every ${amount(observed)} ms: copies may take up to ${percent((copies.copy_share * copies.step_ms) / observed)} of the time. State step_ms.` : "";
  put($("copies"), `${copy}, ${price}. ${share}; so far they took ${percent(copies.spent_share)}.${fast}`);
}

/** One line per move. */
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
  put($("moves-more"), all ? "Fewer" : `All ${count(list.length)} moves`);
  $("moves-more").setAttribute("aria-expanded", all);
  $("moves-rows").replaceChildren(...moveRows(all ? list : list.slice(0, FEW)));
}

$("moves-more").addEventListener("click", () => {
  all = !all;
  moves();
});
