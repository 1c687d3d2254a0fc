// The conversation on screen: what was said, the turn that runs now, and the box to ask in. Knows the API and the
// bubbles; not the list of conversations, which hears of changes through `onChange`.
import * as api from "./api.js";
import { createComposer } from "./composer.js";
import { debounced, h, icon } from "./dom.js";
import { say, t } from "./i18n.js";
import { askBeforeLeaving, createAnswer, question, stateText } from "./message.js";
import { Broken, follow } from "./stream.js";
import { isOver, itemText, newTurn, settle } from "./turn.js";

const NEAR_BOTTOM_PX = 60;
const COUNT_AFTER_MS = 400;
const EXAMPLES = ["example_1", "example_2", "example_3"];

/**
 * The chat. `sampling()` gives the settings as request fields and `rounds`; `render` makes nodes of Markdown;
 * `notes` tells failures; `onChange({id})` hears that a conversation came into being, began or ended a turn.
 */
export function createChat({ user, sampling, render, notes, onChange, onSignedOut, startPanel }) {
  const thread = h("div", { class: "thread", role: "log", "aria-live": "off", label: "thread" });
  const welcome = h("div", { class: "welcome" },
    h("h2", { say: ["welcome", { name: user.name }] }), h("p", { say: "welcome_hint" }),
    h("ul", { class: "examples" }, ...EXAMPLES.map((key) =>
      h("li", {}, h("button", { type: "button", say: key, on: { click: () => composer.suggest(t(key)) } })))));
  const jump = h("button", { type: "button", class: "jump", tip: "jump", hidden: true, on: { click: () => stick(true) } }, icon("down"));
  const scroller = h("div", { class: "scroller" }, startPanel, welcome, thread);
  const spoken = h("p", { class: "visually-hidden", role: "status" });
  const composer = createComposer({ onAsk: ask, onStop: stop, onInput: () => recount() });
  composer.node.append(jump);
  const node = h("section", { class: "chat" }, scroller, composer.node, spoken);

  let current = fresh(false); // what is on screen; replaced, never emptied, so that a turn left behind cannot write here
  let sticking = true;

  function fresh(noTrace) {
    return { id: null, title: null, noTrace, said: [], run: null };
  }

  function show(next) {
    current.run?.controller.abort();
    current = next;
    thread.replaceChildren();
    composer.setRunning(false);
    composer.setNoTrace(next.noTrace);
    mood();
    recount();
  }

  function mood() {
    node.classList.toggle("begun", thread.childElementCount > 0);
    welcome.hidden = thread.childElementCount > 0;
  }

  function startNew({ noTrace = false } = {}) {
    show(fresh(noTrace));
    composer.focus();
  }

  async function open(id) {
    const opened = { ...fresh(false), id };
    show(opened);
    const [conversation, items] = await Promise.all([api.conversation(id), api.items(id)]);
    if (current !== opened) return;
    opened.title = conversation.metadata?.["deskmate:title"] ?? null;
    for (const item of items) if (item.type === "message") replay(item);
    mood();
    stick(true);
    const running = conversation["deskmate:running"];
    if (running) run(opened, { ...newTurn({ live: false }), id: running });
  }

  function replay(item) {
    if (item.role === "user") thread.append(question(itemText(item)));
    else if (item.role === "assistant") {
      const answer = createAnswer(render);
      thread.append(answer.node);
      const status = item.status === "incomplete" || item.status === "cancelled" ? item.status : "completed";
      answer.show({ ...newTurn({ live: false }), status, text: itemText(item) });
    }
  }

  function ask(text) {
    if (current.run) return;
    thread.append(question(text));
    mood();
    stick(true);
    composer.clear();
    run(current, newTurn(), text);
  }

  /** Runs a turn to its end on screen: a new one that asks `text`, or (without) one that already runs on the server. */
  async function run(here, turn, text = null) {
    const answer = createAnswer(render);
    thread.append(answer.node);
    answer.show(turn);
    stick(sticking);
    const me = { controller: new AbortController(), turn, answer, stopWanted: false };
    here.run = me;
    composer.setRunning(true);
    try {
      const opener = text === null ? resumer(me) : asker(here, me, text);
      await followTo(here, me, opener);
    } catch (error) {
      if (!isOver(me.turn)) failed(here, me, text, error);
    } finally {
      ended(here, me, text);
    }
  }

  async function followTo(here, me, open) {
    const { signal } = me.controller;
    const steps = follow(me.turn, { open, signal, resumable: !here.noTrace, onBreak: () => me.answer.pause("reconnecting") });
    for await (const turn of steps) {
      const begins = me.turn.id === null && turn.id !== null;
      if (begins || turn.position !== me.turn.position || turn.progress !== me.turn.progress) announce(turn);
      me.turn = turn;
      me.answer.show(turn);
      if (begins && here.id) onChange({ id: here.id });
      if (begins && me.stopWanted) cancel(me);
    }
  }

  const resumer = (me) => (turn) => api.resume(turn.id, turn.sequence, me.controller.signal);

  function asker(here, me, text) {
    const key = randomKey();
    return async (turn) => {
      if (turn.id !== null) return resumer(me)(turn);
      const begins = !here.noTrace && here.id === null;
      if (begins) await begin(here);
      try {
        return await api.respond(turnBody(here, text), key, me.controller.signal);
      } catch (error) {
        if (begins && error.code) await undo(here); // the gateway refused it: nothing was asked in this conversation
        throw error;
      }
    };
  }

  async function begin(here) {
    here.id = (await api.createConversation()).id;
    if (current === here) onChange({ id: here.id, opened: true });
  }

  async function undo(here) {
    const { id } = here;
    here.id = null;
    await api.deleteConversation(id).catch(() => {}); // it stays in the list then, without a word in it
    if (current === here) onChange({ id: null });
  }

  /** The request's fields; a no-trace turn carries its whole history, because the server keeps none. No text: no question yet. */
  function turnBody(here, text) {
    const { rounds, ...fields } = sampling();
    const window = { truncation: "auto", context_management: [{ type: "deskmate:window", rounds }] };
    if (here.noTrace) return { ...fields, ...window, input: [...here.said, ...(text ? [message("user", text)] : [])], store: false };
    return { ...fields, ...window, input: text || undefined, conversation: here.id ?? undefined, store: true, background: true };
  }

  function failed(here, me, text, error) {
    if (error.status === 401) onSignedOut();
    if (error.name === "AbortError" && !me.stopWanted) return; // left for another conversation
    if (me.stopWanted) return finish(me, { status: "cancelled" });
    if (error.status === 404 && me.turn.id && current === here) return void open(here.id).catch(notes.fail); // ended long ago
    const lost = here.noTrace && me.turn.id !== null; // nobody keeps it, so nothing can be taken up again
    me.answer.fail(lost ? new Broken() : error, lost ? null : () => again(here, me, text));
  }

  function again(here, me, text) {
    me.answer.node.remove();
    run(here, me.turn.id ? me.turn : newTurn(), text);
  }

  function ended(here, me, text) {
    if (here.run === me) here.run = null;
    if (here.noTrace && me.turn.text) here.said.push(message("user", text), message("assistant", me.turn.text));
    if (current !== here) return;
    composer.setRunning(here.run !== null);
    if (isOver(me.turn)) say(spoken, "answer_done", { text: me.turn.text.slice(0, 600) });
    recount();
    if (here.id) onChange({ id: here.id });
  }

  function stop() {
    const me = current.run;
    if (!me) return;
    if (me.stopWanted || current.noTrace) me.controller.abort(); // a no-trace turn ends when its only listener leaves
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

  let counting = new AbortController();
  const recount = debounced(COUNT_AFTER_MS, async () => {
    counting.abort();
    counting = new AbortController();
    const text = composer.text();
    const here = current;
    if (!text && here.id === null && here.said.length === 0) return composer.setTokens(null);
    try {
      const { store, background, ...body } = turnBody(here, text);
      composer.setTokens(await api.countTokens(body, counting.signal));
    } catch {
      composer.setTokens(null); // a count is a courtesy: a failing one is shown as unknown, and asking tells the reason
    }
  });

  function stick(on) {
    sticking = on;
    jump.hidden = on;
    if (on) scroller.scrollTop = scroller.scrollHeight;
  }

  for (const click of ["click", "auxclick"]) thread.addEventListener(click, (event) => askBeforeLeaving(event).catch(notes.fail));
  scroller.addEventListener("scroll", () => {
    const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    if (below < NEAR_BOTTOM_PX !== sticking) (sticking = !sticking), (jump.hidden = sticking);
  }, { passive: true });
  new ResizeObserver(() => sticking && stick(true)).observe(thread);

  return {
    node, open, startNew, recount, focus: composer.focus, setContext: composer.setContext,
    get id() { return current.id; },
    get title() { return current.title; },
    get noTrace() { return current.noTrace; },
    get empty() { return thread.childElementCount === 0; },
  };
}

const message = (role, content) => ({ type: "message", role, content });

/** 128 random bits; crypto.randomUUID is missing where the page is served without TLS. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
