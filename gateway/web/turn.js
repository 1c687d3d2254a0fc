// One turn as the page sees it: events in, state out. Pure; knows neither the network nor the DOM.

const ENDINGS = new Set(["completed", "incomplete", "failed", "cancelled"]);

/** A turn before its first event. `live` is false for one whose beginning this page did not see (no honest speed). */
export function newTurn({ live = true } = {}) {
  return {
    id: null, status: "sending", text: "", sequence: -1, live,
    thought: "", thoughtFrom: null, thoughtTo: null,
    position: null, etaSeconds: null, progress: null,
    usage: null, times: null, reason: null, error: null, firstDelta: null, lastDelta: null,
  };
}

export const isOver = (turn) => ENDINGS.has(turn.status);

/** The turn after `event`; `now` in milliseconds. An event seen before (replayed after a reconnect) changes nothing. */
export function apply(turn, event, now) {
  const sequence = event.sequence_number ?? turn.sequence + 1;
  if (sequence <= turn.sequence) return turn;
  return { ...turn, ...(HANDLERS[event.type]?.(turn, event, now) ?? {}), sequence };
}

const begun = (status) => (turn, { response }) => ({ status, id: response?.id ?? turn.id });

function delta(turn, event, now) {
  return {
    status: "writing", progress: null, position: null, etaSeconds: null, text: turn.text + event.delta,
    firstDelta: turn.firstDelta ?? now, lastDelta: now,
  };
}

function thought(turn, event, now) {
  return {
    status: "thinking", progress: null, position: null, etaSeconds: null, thought: turn.thought + event.delta,
    thoughtFrom: turn.thoughtFrom ?? now, thoughtTo: now, firstDelta: turn.firstDelta ?? now, lastDelta: now,
  };
}

const HANDLERS = {
  "response.created": begun("queued"),
  "response.queued": begun("queued"),
  "response.in_progress": begun("reading"),
  "response.output_text.delta": delta,
  "response.output_text.done": (turn, { text }) => ({ text: text ?? turn.text }),
  "response.reasoning_text.delta": thought,
  "response.reasoning_text.done": (turn, { text }, now) => ({ thought: text ?? turn.thought, thoughtTo: now }),
  "response.completed": ended,
  "response.incomplete": ended,
  "response.failed": ended,
  "response.cancelled": ended,
  "deskmate:queue.updated": (turn, { position, eta_seconds }) =>
    position > 0
      ? { status: "queued", position, etaSeconds: eta_seconds ?? null, progress: turn.position === null ? turn.progress : null }
      : { status: turn.text ? "writing" : turn.thought ? "thinking" : "reading", position: null, etaSeconds: null, progress: null },
  "deskmate:progress": (turn, { state, eta_seconds }) => ({ progress: state, etaSeconds: eta_seconds ?? null }),
  error: (turn, event) => ({ error: problem(event.error ?? event) }),
};

const problem = ({ code, message }) => ({ code: code ?? null, message: message ?? "" });

function ended(turn, { type, response }) {
  return settle(turn, { status: type.slice("response.".length), ...response });
}

/** The turn as a final Response object tells it (the terminal event, or the answer to a cancel or a get). */
export function settle(turn, response) {
  if (!ENDINGS.has(response.status)) return turn;
  return {
    ...turn,
    id: response.id ?? turn.id,
    status: response.status,
    text: outputText(response) || turn.text,
    thought: thoughtOf(response.output ?? []) || turn.thought,
    usage: response.usage ?? turn.usage,
    times: timesOf(response) ?? turn.times,
    reason: response.incomplete_details?.reason ?? null,
    error: response.error ? problem(response.error) : turn.error,
    position: null, etaSeconds: null, progress: null,
  };
}

/** Where a Response's time went, in seconds, and how many tokens of its prompt were known already; null where it is not told. */
function timesOf({ metadata }) {
  const told = ["queued_seconds", "prefill_seconds", "decode_seconds", "cached_tokens"].map((name) => Number(metadata?.[`deskmate:${name}`]));
  if (told.some(Number.isNaN)) return null;
  const [queued, prefill, decode, cached] = told;
  return { queued, prefill, decode, cached };
}

/** The text of a Response's messages. */
export function outputText(response) {
  return (response.output ?? []).filter((item) => item.type === "message").map(itemText).join("\n\n");
}

/** The text of one message item, whoever said it. */
export function itemText({ content }) {
  if (typeof content === "string") return content;
  return (content ?? []).map((part) => part.text ?? part.refusal ?? "").join("");
}

/** What was thought in these items. */
export function thoughtOf(items) {
  return items.filter((item) => item.type === "reasoning").map(itemText).join("\n\n");
}

/** For how long this page saw it think, in seconds; null where that would be a guess. */
export function secondsOfThought({ live, thoughtFrom, thoughtTo }) {
  return live && thoughtTo > thoughtFrom ? Math.max(1, Math.round((thoughtTo - thoughtFrom) / 1000)) : null;
}

/** Tokens per second between the first and the last piece this page saw arrive, or null where that would be a guess. */
export function tokensPerSecond(turn) {
  const tokens = turn.usage?.output_tokens ?? 0;
  const milliseconds = (turn.lastDelta ?? 0) - (turn.firstDelta ?? 0);
  return turn.live && tokens > 1 && milliseconds > 0 ? ((tokens - 1) * 1000) / milliseconds : null;
}
