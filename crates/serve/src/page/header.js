// The result in words: the load of the busiest rank with and without a plan, the current plan, and its
// reason.

import { $, ago, bytes, count, counted, el, percent, setContent, ratio, sentence, since, OUTCOMES } from "./format.js";

/** Shows the result. `history` may be null until it is fetched; `stopped` says that no loads arrive. */
export function showHeader(view, history, options, stopped) {
  const { state: now, shape } = view;
  const busy = view.heat.filter((line) => line.imbalance > 0);
  const mean = busy.reduce((sum, line) => sum + line.imbalance, 0) / busy.length;
  const bound = now.latest?.bound ?? 1;
  const first = history?.decisions.find((decision) => decision.trigger === "first");
  const without = first?.imbalance.before ?? history?.points.find((point) => point.plan === 0)?.mean;
  const before = now.plan > 0 && without > mean ? without : null;
  const headline = busy.length === 0 ? ["No tokens in the latest steps."]
    : ["The busiest rank does ", el("em", null, `${ratio(mean)} times`), " the average work",
      ...(before ? [" instead of ", el("b", null, `${ratio(before)} times`), "."] : ["."])];
  // The time comes first where it is known, and the imbalance second.
  const verdict = view.verdict;
  const timed = verdict?.gain != null && busy.length > 0;
  const [lead, ...rest] = (verdict?.text ?? "").split(": ");
  setContent($("headline"), ...(timed ? [el("em", null, lead), `: ${rest.join(": ")}`] : headline));
  setContent($("verdict"), ...(timed ? headline : [verdict?.text ?? ""]));
  const slots = (now.experts + shape.redundant) / shape.ranks;
  setContent($("setting"), `Every step waits for its busiest rank. Mean over the latest ${counted(view.steps, "step")} of ${counted(now.layers.length, "layer")}, ` +
    `${count(now.experts)} experts each, on ${counted(view.ranks.length, "rank")}${Number.isInteger(slots) && view.ranks.length === shape.ranks ? ` with ${counted(slots, "slot")} each` : ""}` +
    `${now.down.length > 0 ? ` of ${shape.ranks} (down: ${now.down.join(", ")})` : ""}.`);
  showBars(before, mean, bound);
  const excess = Math.max(mean - bound, 0);
  setContent($("left"), el("b", null, percent(excess)));
  setContent($("left-words"), `of the average rank's load: how far the busiest rank is above the least possible, ${ratio(bound)}.`);
  setContent($("plan"), now.plan === 0 ? "none yet" : el("b", null, `no. ${now.plan}`));
  const due = now.planning ? "A decision is being computed." : `${now.plan === 0 ? "The first comes" : "Next decision"} within ${counted(now.due_in, "step")}${now.plan > 0 && options?.drift > 0 ? ", earlier if loads drift" : ""}.`;
  const lag = now.lag > 0 ? ` ${counted(now.lag, "step")} not processed yet.` : "";
  const begin = now.plan === 0 ? `${counted(now.accepted, "step")} processed, experts in order. ` : `Since step ${count(now.plan_step)} of ${count(now.step)}. `;
  const idle = stopped && now.last_step_unix_s ? ` No loads since ${since(now.last_step_unix_s)}.` : "";
  setContent($("plan-words"), `${begin}${due}${lag}${idle}${options?.dry_run ? " Dry runs only: decisions are recorded, and no plan is published." : ""}`);
  const last = view.decisions.at(-1);
  setContent($("last"), last ? el("b", null, OUTCOMES[last.outcome] ?? last.outcome) : "none yet", ...(last ? [" ", el("span", { class: "to" }, ago(last.timestamp_unix_s))] : []));
  setContent($("last-words"), !last ? "Decisions and their reasons are listed below." : last.outcome === "applied" && last.moves > 0
    ? `Imbalance ${ratio(last.imbalance.before)} → ${ratio(last.imbalance.after)} by ${counted(last.moves, "move")} in ${counted(last.layers, "layer")}${last.bytes ? `, ${bytes(last.bytes)}` : ""}.`
    : sentence(last.reason));
}

/** Shows the imbalance before and now as bars against the average rank. */
function showBars(before, mean, bound) {
  const top = Math.max(before ?? 1, mean || 1, 1) * 1.02;
  const said = [];
  for (const [id, value, label] of [["bar-before", before, "without a plan"], ["bar-after", mean, "now"]]) {
    const bar = $(id);
    bar.hidden = !(value > 0);
    if (bar.hidden) continue;
    said.push(`${label} ${ratio(value)}`);
    setContent(bar, `${label} ${ratio(value)}`);
    bar.style.width = `${(value / top) * 100}%`;
  }
  const one = $("bar-one");
  one.style.left = `${100 / top}%`;
  one.classList.toggle("right", top > 2);
  $("bars").setAttribute("aria-label", `Busiest rank's load as a multiple of the average rank's: ${said.join(", ")}, least possible ${ratio(bound)}.`);
}
