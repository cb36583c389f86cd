// The actions of a user: re-plan, plan without a rank, plan with it again. Each requires a confirmation.

import { facts, headline, moveRows } from "./plan.js";
import { ask, path } from "./api.js";
import { $, counted, el, setContent, sentence } from "./format.js";

const dialog = $("dialog");

/** Shows a question. Returns true for yes. The focus then returns to its previous element. */
function question(title, body, yes) {
  setContent($("dialog-title"), title);
  $("dialog-body").replaceChildren(...body);
  setContent($("dialog-yes"), yes);
  dialog.returnValue = "no";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
    $("dialog-no").focus();
  });
}

const paragraph = (text) => el("p", { class: "say" }, text);

/** Returns the result of a dry run, which changes nothing: `{ decision, preview }`. */
export function whatIf({ model, phase }) {
  return ask(path(model, "/replan?dry_run=true", phase), { method: "POST" });
}

/** Shows the gain of a re-planning, and re-plans after confirmation. Resolves to the reply, or null. */
export async function replan({ model, phase, options }) {
  const { decision, preview } = await whatIf({ model, phase });
  const body = [];
  if (preview) {
    body.push(paragraph(headline(preview, decision, "dry_run")), el("dl", { class: "facts" }, ...facts(preview, decision, options)));
    if (preview.moves.length > 0) {
      const head = el("tr", null, ...["layer", "expert", "copied from", "to", "slot"].map((text) => el("th", { scope: "col" }, text)));
      body.push(el("div", { class: "wide low", role: "region", "aria-label": "Moves", tabindex: "0" },
        el("table", { class: "numbers" }, el("thead", null, head), el("tbody", null, ...moveRows(preview.moves)))));
    }
  } else {
    body.push(paragraph(sentence(decision.reason)));
  }
  if (decision.outcome === "kept") body.push(el("p", { class: "small" }, "These rules move nothing. The decision is recorded anyway."));
  if (options?.dry_run) body.push(el("p", { class: "small" }, "The service makes dry runs: it records decisions, and publishes no plan."));
  body.push(el("p", { class: "small" }, "The service decides again by the same rules, on the steps that it has processed by then."));
  if (!(await question("Re-plan now?", body, decision.outcome === "kept" ? "Decide now" : "Re-plan now"))) return null;
  return ask(path(model, "/replan", phase), { method: "POST" });
}

/** Takes a rank out of the plan, or back in, after confirmation. Resolves to the decisions, or null. */
export async function changeRank({ model, view }, rank) {
  const down = view.state.down.includes(rank);
  const left = view.ranks.length;
  const phases = "It changes the plans of all phases of this model.";
  const [title, body, yes] = down
    ? [`Plan with rank ${rank} again?`, [paragraph(`${counted(left, "rank")} serve now. Rank ${rank} starts empty, and receives copies of experts.`), paragraph(phases)], `Rank ${rank} is back`]
    : [`Plan without rank ${rank}?`, [paragraph(`The remaining ${counted(left - 1, "rank")} keep their experts. Experts whose last replica was on rank ${rank} are placed first. The plan then numbers the ranks without gaps.`), paragraph(phases)], `Rank ${rank} is gone`];
  if (!(await question(title, body, yes))) return null;
  return ask(path(model, `/ranks/${rank}/${down ? "up" : "down"}`), { method: "POST" });
}
