// A turn on screen from its question to its end: asks, follows, stops, tells what went wrong. Knows the API and one
// conversation's state (`here`); not which conversation is on screen, how it came there or what else is shown.
import * as api from "./api.js";
import { withoutOrigin } from "./branches.js";
import { say } from "./i18n.js";
import { stateText } from "./message.js";
import { Broken, follow } from "./stream.js";
import { isOver, newTurn, settle } from "./turn.js";

const ELSEWHERE = new Set(["conversation_locked", "version_conflict"]);
const SPOKEN_CHARACTERS = 600;

/**
 * `run(here, turn, asked)` and `stop(here)`. `asked` is `{text, question}`, what is asked now; without, the turn already runs on
 * the server. Hears: `onBegun(here, opened)`, `onUndone(here, id)`, `onEnded(here)`, `onElsewhere(here, text)` when the conversation
 * had changed before the question came, `onLost(here, turn)` when the server does not know the turn.
 */
export function createRunner({ thread, spoken, sampling, notes, onSignedOut, onStarted, onBegun, onUndone, onEnded, onElsewhere, onLost }) {
  async function run(here, turn, asked = null) {
    const answer = thread.answer({ response: turn.id, unsent: asked !== null, branching: !here.noTrace });
    answer.show(turn);
    const me = { controller: new AbortController(), turn, answer, asked, stopWanted: false };
    here.run = me;
    onStarted(here);
    let refused = false;
    try {
      await followTo(here, me, asked === null ? resumer(me) : asker(here, me));
    } catch (error) {
      refused = me.turn.id === null && !me.begins && ELSEWHERE.has(error.code);
      if (!refused && !isOver(me.turn)) failed(here, me, error);
    }
    ended(here, me);
    if (refused) takeBack(here, me);
  }

  async function followTo(here, me, open) {
    const { signal } = me.controller;
    const steps = follow(me.turn, { open, signal, resumable: !here.noTrace, onBreak: () => me.answer.pause("reconnecting") });
    for await (const turn of steps) {
      const begins = me.turn.id === null && turn.id !== null;
      if (begins || turn.position !== me.turn.position || turn.progress !== me.turn.progress) announce(turn);
      me.turn = turn;
      if (begins) begun(here, me);
      me.answer.show(turn);
      if (begins && me.stopWanted) cancel(me);
    }
  }

  function begun(here, me) {
    for (const entry of [me.asked.question, me.answer]) Object.assign(entry, { unsent: false, response: me.turn.id });
    if (here.id === null) return;
    here.version += 1; // by its question; one more when it ends
    onBegun(here, false);
  }

  const resumer = (me) => (turn) => api.resume(turn.id, turn.sequence, me.controller.signal);

  function asker(here, me) {
    const key = randomKey();
    return async (turn) => {
      if (turn.id !== null) return resumer(me)(turn);
      if (!here.noTrace && here.id === null) await begin(here, me);
      try {
        return await api.respond(turnBody(here, me.asked.text), key, here.version, me.controller.signal);
      } catch (error) {
        if (me.begins && error.code) await undo(here); // the gateway refused it: nothing was asked in this conversation
        throw error;
      }
    };
  }

  async function begin(here, me) {
    const made = await create(here.origin);
    me.begins = true;
    Object.assign(here, { id: made.id, version: made.version, conversation: made });
    onBegun(here, true);
  }

  async function create(origin) {
    if (origin === null) return api.createConversation();
    try {
      return await api.createConversation({ metadata: origin.metadata, messages: origin.copies });
    } catch (error) {
      if (error.code !== "previous_response_not_found") throw error;
      return api.createConversation({ metadata: withoutOrigin(origin.metadata), messages: origin.all }); // its origin was deleted
    }
  }

  async function undo(here) {
    const { id } = here;
    Object.assign(here, { id: null, version: null, conversation: null });
    await api.deleteConversation(id).catch(() => {}); // it stays in the list then, without a word in it
    onUndone(here, id);
  }

  /** The request's fields; a no-trace turn carries its whole history, because the server keeps none. No text: no question yet. */
  function turnBody(here, text) {
    const { rounds, ...fields } = sampling();
    const window = { truncation: "auto", context_management: [{ type: "deskmate:window", rounds }] };
    if (here.noTrace) return { ...fields, ...window, input: [...here.said, ...(text ? [message("user", text)] : [])], store: false };
    return { ...fields, ...window, input: text || undefined, conversation: here.id ?? undefined, store: true, background: true };
  }

  function failed(here, me, error) {
    if (error.status === 401) onSignedOut();
    if (error.name === "AbortError" && !me.stopWanted) return; // left for another conversation
    if (me.stopWanted) return finish(me, { status: "cancelled" });
    if (error.status === 404 && me.turn.id && here.lost !== me.turn.id) return onLost(here, me.turn.id); // ended long ago
    const lost = here.noTrace && me.turn.id !== null; // nobody keeps it, so nothing can be taken up again
    me.answer.fail(lost ? new Broken() : error, lost ? null : () => again(here, me));
  }

  function again(here, me) {
    if (here.run) return;
    thread.remove(me.answer);
    run(here, me.turn.id ? me.turn : newTurn(), me.turn.id ? null : me.asked);
  }

  function takeBack(here, me) {
    thread.remove(me.asked.question);
    thread.remove(me.answer);
    onElsewhere(here, me.asked.text);
  }

  function ended(here, me) {
    if (here.run === me) here.run = null;
    if (here.noTrace && me.turn.text) here.said.push(message("user", me.asked.text), message("assistant", me.turn.text));
    if (isOver(me.turn) && here.id !== null) here.version += 1;
    onEnded(here, me.turn);
  }

  function stop(here) {
    const me = here.run;
    if (!me) return;
    if (me.stopWanted || here.noTrace) me.controller.abort(); // a no-trace turn ends when its only listener leaves
    else if (me.turn.id !== null) cancel(me);
    me.stopWanted = true;
  }

  async function cancel(me) {
    try {
      finish(me, await api.cancel(me.turn.id));
    } catch (error) {
      if (!isOver(me.turn)) notes.fail(error);
    } finally {
      me.controller.abort();
    }
  }

  function finish(me, response) {
    if (isOver(me.turn)) return;
    me.turn = settle(me.turn, response);
    me.answer.show(me.turn);
  }

  function announce(turn) {
    const text = stateText(turn);
    if (text) say(spoken, ...text);
  }

  return { run, stop, turnBody };
}

/** What is read aloud when an answer is over. */
export const spokenEnd = (turn) => ["answer_done", { text: turn.text.slice(0, SPOKEN_CHARACTERS) }];

const message = (role, content) => ({ type: "message", role, content });

/** 128 random bits; crypto.randomUUID is missing where the page is served without TLS. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
