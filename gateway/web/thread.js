// The messages on screen, oldest first, and the arrows where branches part. Knows bubbles and their order; not where
// messages come from or what becomes of a click.
import { h } from "./dom.js";
import { createAnswer, createQuestion } from "./message.js";
import { newTurn } from "./turn.js";

const ENDED_EARLY = new Set(["incomplete", "cancelled"]);

/**
 * The thread. `onEdit(entry, text)` and `onAgain(entry)` hear of wishes to branch, `onVersion(id, step, index)` of an arrow.
 * An entry is a message `{role, text, response}` with its `node`; `unsent` while the server has not taken it.
 */
export function createThread({ render, onEdit, onAgain, onVersion }) {
  const node = h("div", { class: "thread", role: "log", "aria-live": "off", label: "thread" });
  let entries = [];

  function add(entry) {
    entries.push(entry);
    node.append(entry.node);
    return entry;
  }

  function question(text, { response = null, unsent = false, branching = true } = {}) {
    const entry = { role: "user", text, response, unsent };
    const bubble = createQuestion(text, branching ? (fresh) => onEdit(entry, fresh) : null);
    return add(Object.assign(entry, bubble));
  }

  function answer({ response = null, unsent = false, branching = true } = {}) {
    const entry = { role: "assistant", text: "", response, unsent };
    const bubble = createAnswer(render, branching ? () => onAgain(entry) : null);
    const show = (turn) => {
      entry.text = turn.text;
      entry.response = turn.id ?? entry.response;
      bubble.show(turn);
    };
    return add(Object.assign(entry, bubble, { show }));
  }

  function replay({ role, text, thought, response, status }) {
    if (role === "user") return question(text, { response });
    const entry = answer({ response });
    entry.show({ ...newTurn({ live: false }), id: response, status: ENDED_EARLY.has(status) ? status : "completed", text, thought });
    return entry;
  }

  /** Takes entries off the screen, from `index` on. */
  function cut(index) {
    for (const entry of entries.splice(index)) entry.node.remove();
  }

  /** Makes the screen show `messages`, leaving alone what it shows already; what is unsent stays below. Whether anything changed. */
  function bring(messages) {
    const unsent = entries.filter((entry) => entry.unsent);
    const shown = entries.filter((entry) => !entry.unsent);
    let same = 0, at = 0;
    while (at < shown.length) {
      if (same < messages.length && matches(shown[at], messages[same])) same++;
      else if (same === 0 || !isSilent(shown[at], messages[same - 1])) break;
      at++;
    }
    const changed = same < messages.length || at < shown.length;
    entries = shown;
    cut(at);
    messages.slice(same).forEach(replay);
    entries.push(...unsent);
    if (changed) node.append(...unsent.map((entry) => entry.node));
    return changed;
  }

  function remove(entry) {
    entries = entries.filter((one) => one !== entry);
    entry.node.remove();
  }

  /** `partings` (of branches.js) shown as arrows. */
  function showPartings(partings) {
    entries.forEach((entry, index) =>
      entry.showVersions?.(partings.get(index) ?? null, (id, step) => onVersion(id, step, index)));
  }

  return {
    node, question, answer, cut, bring, remove, showPartings,
    get entries() { return entries; },
    indexOf: (entry) => entries.indexOf(entry),
  };
}

/** The same message; an answer that ended with more words than this page heard takes them on. */
function matches(entry, message) {
  if (entry.role !== message.role) return false;
  if (!entry.response || !message.response) return entry.text === message.text;
  return entry.response === message.response && entry.text === message.text;
}

/** An answer without a word, of which the server keeps no item: what it says of its failure stays on the screen. */
function isSilent(entry, last) {
  return entry.role === "assistant" && entry.text === "" && entry.response !== null && entry.response === last.response;
}
