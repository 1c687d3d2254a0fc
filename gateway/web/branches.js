// Branches: which conversations make one tree, where they part, and what a new one begins with. Pure; knows metadata
// and the order of messages, neither the network nor the DOM.
import { itemText, thoughtOf } from "./turn.js";

export const TITLE = "deskmate:title";
const BRANCH_OF = "deskmate:branch_of"; // the response after which a branch goes its own way; none: from the beginning
const ROOT = "deskmate:root"; // the conversation that the tree began with; none: this one
const FROM = "deskmate:branch_from"; // the conversation on whose screen it was made
const AT = "deskmate:branched_at"; // milliseconds; orders branches made within one second

export const rootOf = ({ id, metadata }) => metadata?.[ROOT] ?? id;

/** The first conversation of each tree, in the order given; of a list sorted by last use that is the newest branch. */
export function oneOfEachTree(conversations) {
  const seen = new Set();
  return conversations.filter((one) => !seen.has(rootOf(one)) && seen.add(rootOf(one)));
}

/** A conversation's items as messages `{role, text, thought, response, status}`; what one response wrote is one message. */
export function messagesOf(items) {
  const messages = [];
  for (const item of items) {
    const thinks = item.type === "reasoning";
    if (thinks ? !itemText(item) : item.type !== "message" || !["user", "assistant"].includes(item.role)) continue;
    const next = {
      role: thinks ? "assistant" : item.role, text: thinks ? "" : itemText(item), thought: thoughtOf([item]),
      response: item["deskmate:response"] ?? null, status: item.status ?? "completed",
    };
    const last = messages.at(-1);
    const same = next.role === "assistant" && last?.role === "assistant" && last.response === next.response;
    const goesOn = same && (next.response !== null || !last.text);
    if (goesOn) messages[messages.length - 1] = { ...next, text: both(last.text, next.text), thought: both(last.thought, next.thought) };
    else messages.push(next);
  }
  return messages;
}

const both = (...texts) => texts.filter(Boolean).join("\n\n");

/**
 * What a branch that goes another way from message `index` on begins with: the metadata that names its origin, the
 * messages that no response holds and must be copied (`copies`), and all of them (`all`), should the origin be gone.
 */
export function beginning(conversation, messages, index, now) {
  const all = messages.slice(0, index);
  const held = all.findLastIndex(({ response }) => response);
  const metadata = { [ROOT]: rootOf(conversation), [FROM]: conversation.id, [AT]: String(now) };
  if (held >= 0) metadata[BRANCH_OF] = all[held].response;
  const title = conversation.metadata?.[TITLE];
  if (title) metadata[TITLE] = title;
  return { metadata, copies: all.slice(held + 1), all: all.filter(({ text }) => text) };
}

/** The metadata of a branch that shares nothing by reference. */
export function withoutOrigin({ [BRANCH_OF]: _, ...metadata }) {
  return metadata;
}

/**
 * Where the other conversations of the tree part from the one on screen: for the index of each such message, the `ids`
 * to choose from in the order they were made, and which of them (`at`) is on screen. `tree` is sorted by last use, newest first.
 */
export function partings(here, messages, tree) {
  const places = placesOf(here, messages, tree);
  const found = new Map();
  for (const { index } of places.values()) if (index < messages.length) found.set(index, null);
  for (const index of found.keys()) found.set(index, choice(here, index, places, tree));
  return found;
}

function choice(here, index, places, tree) {
  const groups = new Map([[here.id, { id: here.id, made: madeAt(here) }]]);
  for (const one of tree) {
    const place = places.get(one.id);
    if (!place || place.index < index) continue;
    const head = place.index > index ? here.id : place.head; // who parts later goes the same way here
    const group = groups.get(head) ?? { id: one.id, made: madeAt(one) };
    groups.set(head, { ...group, made: earlier(group.made, madeAt(one)) });
  }
  const ordered = [...groups.values()].sort((a, b) => compare(a.made, b.made));
  return { ids: ordered.map(({ id }) => id), at: ordered.findIndex(({ id }) => id === here.id) };
}

/** A branch that was made and in which nothing was ever asked: its author's network went away in between. */
const isStillborn = ({ version, metadata }) => version <= 1 && metadata?.[FROM] !== undefined;
const madeAt = ({ created_at, metadata }) => [created_at, Number(metadata?.[AT] ?? 0)];
const compare = (a, b) => a[0] - b[0] || a[1] - b[1];
const earlier = (a, b) => (compare(a, b) <= 0 ? a : b);

/** For each other conversation: the `index` of the message where it parts from here, and the `head` of those that go with it. */
function placesOf(here, messages, tree) {
  const ends = new Map(); // where what a response said ends
  messages.forEach(({ response }, index) => response && ends.set(response, index + 1));
  const byId = new Map(tree.map((one) => [one.id, one]));
  const begins = ({ metadata }) => (metadata?.[BRANCH_OF] ? ends.get(metadata[BRANCH_OF]) : 0);
  const parentOf = ({ metadata }) => byId.get(metadata?.[FROM]);
  const places = new Map([[here.id, null]]);

  let place = null;
  for (let child = here, parent; (parent = parentOf(child)) && !places.has(parent.id); child = parent) {
    const index = begins(child);
    place = index === undefined ? place : { index, head: parent.id };
    places.set(parent.id, place);
  }
  const placed = (one) => {
    if (places.has(one.id)) return places.get(one.id);
    places.set(one.id, null); // a circle of claims ends here
    const index = rootOf(one) === one.id ? undefined : begins(one);
    const parent = parentOf(one);
    places.set(one.id, index !== undefined ? { index, head: one.id } : parent ? placed(parent) : null);
    return places.get(one.id);
  };
  tree.forEach(placed);
  for (const [id, found] of places) if (found === null) places.delete(id);
  for (const one of tree) if (isStillborn(one)) places.delete(one.id);
  return places;
}
