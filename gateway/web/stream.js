// Follows one turn from its request to its end across broken connections. Knows the events' framing, not their looks.
import { events } from "./sse.js";
import { apply, isOver } from "./turn.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
const LONGEST_ASKED_MS = 30_000; // what the server's Retry-After may ask for
const TRIES = 40; // about five minutes
const AWAY = new Set([502, 503, 504]);

/**
 * Yields the turn after each event until it is over.
 *
 * `open(turn)` resolves to a response whose body is the stream from after `turn.sequence` on; what it throws is final
 * unless the way there was broken (`worthRetrying`). `resumable` false: a broken stream is the end.
 * Throws what `open` threw last, AbortError when `signal` fires. `onBreak(tries)` is told before each pause.
 */
export async function* follow(turn, { open, signal, resumable, onBreak = () => {}, pause = sleep, now = Date.now, random = Math.random }) {
  for (let tries = 0; ; tries++) {
    let asked = 0;
    try {
      const response = await open(turn);
      for await (const data of events(response.body)) {
        if (data === "[DONE]") break;
        tries = 0;
        turn = apply(turn, JSON.parse(data), now());
        yield turn;
      }
      if (isOver(turn)) return;
      throw new Broken();
    } catch (error) {
      if (isOver(turn)) return;
      if (signal?.aborted || !resumable || !worthRetrying(error, turn) || tries >= TRIES) throw error;
      asked = Math.min(LONGEST_ASKED_MS, (error.retryAfterSeconds ?? 0) * 1000);
    }
    onBreak(tries + 1);
    const grown = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** tries);
    const chance = random() / 2; // a crowd does not come back at once; nor before it was asked to
    await pause(Math.max(asked * (1 + chance), grown * (0.5 + chance)), signal);
  }
}

/** The stream ended before the turn did. */
export class Broken extends Error {}

/**
 * Nobody was reached (fetch and body readers report that as TypeError), or a part is away for now. To a question that has not
 * begun, an error with a code is our gateway's own word and final; without one, a proxy found nobody behind it.
 */
function worthRetrying(error, turn) {
  if (error.status) return AWAY.has(error.status) && (turn.id !== null || error.code === null || error.code === "draining");
  return error instanceof Broken || error instanceof TypeError;
}

/** Ends early when the network comes back or the page is looked at again. */
function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const over = new AbortController();
    const end = (settle, value) => (clearTimeout(timer), over.abort(), settle(value));
    const timer = setTimeout(end, milliseconds, resolve);
    const once = { once: true, signal: over.signal };
    globalThis.addEventListener?.("online", () => end(resolve), once);
    globalThis.document?.addEventListener("visibilitychange", () => end(resolve), once);
    signal?.addEventListener("abort", () => end(reject, signal.reason), once);
    if (signal?.aborted) end(reject, signal.reason);
  });
}
