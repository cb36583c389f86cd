// The connection to the service: requests with the token, if there is one, and the stream of events.

const KEY = "evenkeel-token";
/**
 * The milliseconds of silence after which a stream counts as dead. The service sends something every 15 s.
 */
const SILENCE = 40_000;
/** The timeouts of requests in milliseconds: reading takes moments, planning may take minutes. */
const [READING, DOING] = [20_000, 600_000];
const PAUSES = [500, 1000, 2000, 4000, 8000, 15_000];

let kept = null;

/** The bearer token, in this tab alone. */
export const token = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? kept;
    } catch {
      return kept;
    }
  },
  set(text) {
    kept = text;
    try {
      if (text === null) sessionStorage.removeItem(KEY);
      else sessionStorage.setItem(KEY, text);
    } catch {
      // Storage may be forbidden. The token is then kept until the page is closed.
    }
  },
};

/** An error that the service returned, or a missing answer (status 0). */
export class Refused extends Error {
  constructor(status, error, expected) {
    super(error);
    this.status = status;
    this.expected = expected;
  }
}

async function request(path, options) {
  const headers = new Headers(options?.headers);
  if (token.get() !== null) headers.set("authorization", `Bearer ${token.get()}`);
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the service does not answer", "a running service that this page can reach");
  }
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => ({}));
  const refused = new Refused(reply.status, body.error ?? `status ${reply.status}`, body.expected ?? "");
  refused.after = Number(reply.headers.get("retry-after")) || 0;
  throw refused;
}

/** Parses JSON. Integers above 2^53 become text, because numbers would lose their last digits. */
export function parse(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const exact = text.replace(/"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g,
    (token) => (/^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token));
  return JSON.parse(exact);
}

/** Returns the JSON of the reply to a request. */
export async function ask(path, options) {
  const signal = AbortSignal.timeout(options?.method === "POST" ? DOING : READING);
  const reply = await request(path, { signal, ...options });
  try {
    return parse(await reply.text());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the answer is incomplete", "the same request again");
  }
}

/** Returns the path of a model, for `ask`. */
export function path(model, rest = "", phase = null) {
  const query = phase === null ? "" : `${rest.includes("?") ? "&" : "?"}phase=${encodeURIComponent(phase)}`;
  return `/v1/models/${encodeURIComponent(model)}${rest}${query}`;
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/**
 * Follows a model until the signal is aborted. Calls `open()` when a stream begins, `event(name, data)` for
 * each event, and `lost(refused)` when the stream ends. Then it tries again, with growing pauses.
 */
export async function follow(model, signal, { open, event, lost }) {
  for (let tries = 0; !signal.aborted; tries += 1) {
    const inner = new AbortController();
    const stop = () => inner.abort();
    signal.addEventListener("abort", stop, { once: true });
    let watch = 0;
    try {
      const reply = await request(path(model, "/events"), { headers: { accept: "text/event-stream" }, signal: inner.signal });
      tries = 0;
      open();
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        clearTimeout(watch);
        watch = setTimeout(stop, SILENCE);
        const { value, done } = await reader.read();
        if (done) break;
        const blocks = (rest + value).split(/\n\n|\r\n\r\n/);
        rest = blocks.pop();
        for (const block of blocks) dispatch(block, event);
      }
      if (!signal.aborted) lost(new Refused(0, "the stream of events ended", "a new stream"));
    } catch (error) {
      if (!signal.aborted) lost(error instanceof Refused ? error : new Refused(0, "the stream of events was interrupted", "a new stream"));
    } finally {
      clearTimeout(watch);
      signal.removeEventListener("abort", stop);
    }
    if (!signal.aborted) await pause(PAUSES[Math.min(tries, PAUSES.length - 1)], signal);
  }
}

function dispatch(block, event) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  if (data.length === 0) return;
  try {
    event(name, parse(data.join("\n")));
  } catch (error) {
    console.error("event", name, error);
  }
}
