// How failures are told to a person. Knows the codes and their texts; not who failed or what happens next.
import { h, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { ApiError } from "./api.js";
import { Broken } from "./stream.js";

const BY_CODE = new Set(["conversation_locked", "context_length_exceeded", "request_too_large", "gateway_restarted", "insufficient_quota", "rate_limit_exceeded", "overloaded"]);
const BY_STATUS = { 403: "error_403", 404: "error_404", 429: "error_429", 502: "error_503", 503: "error_503", 504: "error_503" };

/** The [key, values] of the text for an error: one of ours, the server's, or a turn's `{code, message}`. */
export function describe(error) {
  if (error instanceof Broken) return ["error_broken"];
  if (error instanceof TypeError) return ["error_network"]; // what fetch throws when nothing answers
  if (BY_CODE.has(error.code)) return [`error_${error.code}`, { message: error.message, seconds: error.retryAfterSeconds }];
  const key = BY_STATUS[error.status];
  return key ? [key, { seconds: error.retryAfterSeconds }] : ["error_other", { message: error.message || error.code || String(error.status) }];
}

/** A card with the text, the request's id to quote and, where it makes sense, a way to try again. */
export function errorCard(error, retry = null) {
  return h("div", { class: "error-card", role: "alert" },
    h("p", { say: describe(error) }),
    error.requestId ? h("p", { class: "fine", say: ["request_id", { id: error.requestId }] }) : null,
    retry ? h("button", { type: "button", class: "button", say: "retry", on: { click: retry } }) : null);
}

const NOTE_MS = 8000;

/** Runs an action of a button; what it throws is shown in a note that leaves by itself. `onSignedOut` hears a 401. */
export function createNotes(onSignedOut) {
  const node = h("div", { class: "notes", role: "status" });
  const show = (content) => {
    const note = h("div", { class: "note" }, content, iconButton("close", "close", () => note.remove()));
    node.append(note);
    setTimeout(() => note.remove(), NOTE_MS);
  };
  const say = (key, values) => show(h("p", { text: t(key, values) }));
  const fail = (error) => {
    if (error instanceof ApiError && error.status === 401) onSignedOut();
    else if (error.name !== "AbortError") show(errorCard(error));
  };
  return { node, say, fail, guarded: (action) => (...values) => Promise.resolve(action(...values)).catch(fail) };
}
