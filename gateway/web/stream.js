// Follows one turn from its request to its end across broken connections. Knows the events' framing, not their looks.
import { events } from "./sse.js";
import { apply, isOver } from "./turn.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
const TRIES = 12;

/**
 * Yields the turn after each event until it is over.
 *
 * `open(turn)` resolves to a response whose body is the stream from after `turn.sequence` on; what it throws with a
 * `status` is the server's word and final unless it is 502 to 504 on a turn already begun. `resumable` false: a broken stream is the end.
 * Throws what `open` threw last, AbortError when `signal` fires. `onBreak(tries)` is told before each pause.
 */
export async function* follow(turn, { open, signal, resumable, onBreak = () => {}, pause = sleep, now = Date.now }) {
  for (let tries = 0; ; tries++) {
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
    }
    onBreak(tries + 1);
    await pause(Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** tries), signal);
  }
}

/** The stream ended before the turn did. */
export class Broken extends Error {}

function worthRetrying(error, turn) {
  if (error.status) return turn.id !== null && error.status >= 502 && error.status <= 504;
  return error instanceof Broken || error instanceof TypeError; // fetch and body readers report a lost network as TypeError
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
