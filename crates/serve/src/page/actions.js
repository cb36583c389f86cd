// What a person can have done: plan again, plan without a rank, plan with it again. Each is asked for twice.

import { facts, headline, moveRows } from "./plan.js";
import { ask, path } from "./net.js";
import { $, counted, el, put, sentence } from "./words.js";

const dialog = $("dialog");

/** Shows a question; true for yes. The focus goes back to where it was. */
function question(title, body, yes) {
  put($("dialog-title"), title);
  $("dialog-body").replaceChildren(...body);
  put($("dialog-yes"), yes);
  dialog.returnValue = "no";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
    $("dialog-no").focus();
  });
}

const say = (text) => el("p", { class: "say" }, text);

/** What planning again would change, without changing anything: `{ decision, next }`. */
export function whatIf({ model, phase }) {
  return ask(path(model, "/replan?dry_run=true", phase), { method: "POST" });
}

/** Shows what planning again would gain, and does so when told to. Resolves to the reply, or null. */
export async function replan({ model, phase, options }) {
  const { decision, next } = await whatIf({ model, phase });
  const body = [];
  if (next) {
    body.push(say(headline(next, decision, "dry_run")), el("dl", { class: "facts" }, ...facts(next, decision, options)));
    if (next.moves.length > 0) {
      const head = el("tr", null, ...["layer", "expert", "copied from", "to", "slot"].map((text) => el("th", { scope: "col" }, text)));
      body.push(el("div", { class: "wide low", role: "region", "aria-label": "Moves", tabindex: "0" },
        el("table", { class: "numbers" }, el("thead", null, head), el("tbody", null, ...moveRows(next.moves)))));
    }
  } else {
    body.push(say(sentence(decision.reason)));
  }
  if (decision.outcome === "kept") body.push(el("p", { class: "small" }, "By these rules nothing would be moved; deciding now is recorded all the same."));
  if (options?.dry_run) body.push(el("p", { class: "small" }, "The service runs dry: it records what it would do, and publishes no plan."));
  body.push(el("p", { class: "small" }, "It is decided again, by the same rules, on the steps seen by then."));
  if (!(await question("Plan again now?", body, decision.outcome === "kept" ? "Decide now" : "Re-plan now"))) return null;
  return ask(path(model, "/replan", phase), { method: "POST" });
}

/** Takes a rank out of the plan, or back in, when told to. Resolves to the decisions, or null. */
export async function changeRank({ model, view }, rank) {
  const down = view.state.down.includes(rank);
  const left = view.ranks.length;
  const phases = "It changes the plans of all phases of this model.";
  const [title, body, yes] = down
    ? [`Plan with rank ${rank} again?`, [say(`${counted(left, "rank")} serve now. Rank ${rank} is planned to be empty, and gets experts copied.`), say(phases)], `Rank ${rank} is back`]
    : [`Plan without rank ${rank}?`, [say(`The ${counted(left - 1, "rank")} left keep what they have; experts whose last copy was on rank ${rank} come back first. In the plan, ranks are then numbered without gaps.`), say(phases)], `Rank ${rank} is gone`];
  if (!(await question(title, body, yes))) return null;
  return ask(path(model, `/ranks/${rank}/${down ? "up" : "down"}`), { method: "POST" });
}
