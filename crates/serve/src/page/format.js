// Formats of numbers, and elements with text alone: nothing here parses HTML.

export const $ = (id) => document.getElementById(id);

/** Returns an element with attributes and children; strings become text. */
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null).map(clean));
  return node;
}

/** Replaces children only if the text differs, so that selections and screen readers stay undisturbed. */
export function setContent(node, ...children) {
  const next = children.map((child) => (typeof child === "string" ? document.createTextNode(clean(child)) : child));
  const same = node.childNodes.length === next.length && next.every((child, at) => child.isEqualNode(node.childNodes[at]));
  if (!same) node.replaceChildren(...next);
}

/** Replaces control characters and characters that change the text direction by U+FFFD. */
function clean(child) {
  return typeof child === "string" ? child.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\ufffd") : child;
}

/** Formats a ratio to one with its significant digits: 12.3, 1.55, 1.018. */
export function ratio(value) {
  if (!Number.isFinite(value)) return "–";
  return value.toFixed(value >= 10 ? 1 : value >= 1.095 ? 2 : 3);
}

export function fixed(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** Formats a gain or a price: 0.4, 27.0, 3,190 */
export function amount(value) {
  return Math.abs(value) >= 100 ? count(value) : fixed(value, 1);
}

/** Formats an integer: 12,345. Integers above 2^53 are text and are formatted digit by digit. */
export function count(number) {
  const digits = typeof number === "string" ? number : Number.isFinite(number) ? String(Math.round(number)) : "–";
  return digits.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** Formats a number of things: "1 layer", "3 layers" */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Formats a share: 0 %, <0.1 %, 0.4 %, 83 % */
export function percent(share) {
  const p = share * 100;
  if (!Number.isFinite(p)) return "–";
  const text = p <= 0 ? "0" : p < 0.1 ? "<0.1" : p < 10 || (p >= 99 && p < 100) ? Math.min(p, 99.9).toFixed(1) : p.toFixed(0);
  return `${text}\u00a0%`;
}

/** Formats bytes: 13 MiB */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  for (; number >= 1024 && at + 1 < units.length; at += 1) number /= 1024;
  return `${number < 10 && at > 0 ? number.toFixed(1) : Math.round(number)} ${units[at]}`;
}

/** Formats the time that has passed since a time in seconds since 1970. */
export function ago(at) {
  const seconds = Math.max(0, Date.now() / 1000 - at);
  if (seconds < 10) return "just now";
  if (seconds < 90) return `${Math.round(seconds / 10) * 10} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

/** Formats a time in seconds since 1970, with its day if that is not today. */
export function since(at) {
  const [day, time] = clock(at).split(" ");
  return day === clock(Date.now() / 1000).split(" ")[0] ? time : `${day} ${time}`;
}

export function clock(at) {
  const time = new Date(at * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  return `${day} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** Returns a part of a log line as a whole sentence. */
export function sentence(text) {
  if (!text) return "";
  const first = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

export const TRIGGERS = {
  first: "enough steps for a first plan",
  interval: "it was due",
  drift: "the loads drifted",
  manual: "a client requested it",
  rank_down: "a rank is gone",
  rank_up: "a rank is back",
};

export const OUTCOMES = {
  applied: "re-planned",
  kept: "plan kept",
  dry_run: "dry run",
  skipped: "skipped",
  failed: "failed",
};
