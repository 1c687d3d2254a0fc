// The conversation on screen: opens it, asks, branches, and stays in step with what happens to it elsewhere. Knows the
// API, the thread and the box to ask in; not the list of conversations, which hears of changes through `onChange`.
import * as api from "./api.js";
import { TITLE, beginning, messagesOf, partings, rootOf } from "./branches.js";
import { createComposer } from "./composer.js";
import { debounced, h, icon } from "./dom.js";
import { say, t } from "./i18n.js";
import { askBeforeLeaving } from "./message.js";
import { createRunner, spokenEnd } from "./run.js";
import { createThread } from "./thread.js";
import { isOver, newTurn } from "./turn.js";

const NEAR_BOTTOM_PX = 60;
const COUNT_AFTER_MS = 400;
const EXAMPLES = ["example_1", "example_2", "example_3"];

/**
 * The chat. `sampling()` gives the settings as request fields and `rounds`; `render` makes nodes of Markdown;
 * `notes` tells failures; `onChange({id})` hears that a conversation came into being, began or ended a turn;
 * `onVersion(id)` that another branch is wanted on screen.
 */
export function createChat({ user, sampling, render, notes, onChange, onVersion, onSignedOut, startPanel }) {
  const thread = createThread({
    render, onEdit: branch, onAgain: (entry) => branch(...questionOf(entry)), onVersion: switchTo,
  });
  const welcome = h("div", { class: "welcome" },
    h("h2", { say: ["welcome", { name: user.name }] }), h("p", { say: "welcome_hint" }),
    h("ul", { class: "examples" }, ...EXAMPLES.map((key) =>
      h("li", {}, h("button", { type: "button", say: key, on: { click: () => composer.suggest(t(key)) } })))));
  const jump = h("button", { type: "button", class: "jump", tip: "jump", hidden: true, on: { click: () => stick(true) } }, icon("down"));
  const scroller = h("div", { class: "scroller" }, startPanel, welcome, thread.node);
  const spoken = h("p", { class: "visually-hidden", role: "status" });
  const composer = createComposer({ onAsk: ask, onStop: () => runner.stop(current), onInput: () => recount() });
  composer.node.append(jump);
  const node = h("section", { class: "chat" }, scroller, composer.node, spoken);
  const runner = createRunner({
    thread, spoken, sampling, notes, onSignedOut, onStarted: started, onBegun: begun, onUndone: undone, onEnded: ended,
    onElsewhere: (here, text) => elsewhere(here, text).catch(notes.fail),
    onLost: (here, turn) => ((here.lost = turn), reload(here).catch(notes.fail)),
  });

  let current = fresh(false); // what is on screen; replaced, never emptied, so that a turn left behind cannot write here
  let sticking = true;

  /** `origin`: what a branch begins with; `tree`: its conversation with all branches; `loading`: until its words are here. */
  function fresh(noTrace) {
    return { id: null, version: null, conversation: null, noTrace, said: [], run: null, origin: null, tree: [], loading: false, lost: null, sendAfter: false };
  }

  function show(next, { from = 0 } = {}) {
    current.run?.controller.abort();
    current = next;
    thread.cut(from);
    composer.setRunning(false);
    composer.setNoTrace(next.noTrace);
    composer.offer(null);
    mood();
    arrows();
    recount();
  }

  function mood() {
    const { length } = thread.entries;
    node.classList.toggle("begun", length > 0);
    welcome.hidden = length > 0;
    thread.node.classList.toggle("busy", current.run !== null || current.loading);
  }

  function startNew({ noTrace = false } = {}) {
    show(fresh(noTrace));
    composer.focus();
  }

  // --- opening, and staying in step -----------------------------------------------------------------------------------

  async function open(id) {
    const { tree } = current;
    const isVersion = tree.some((one) => one.id === id); // what it shares with the one on screen stays there
    if (isVersion) sticking = false;
    const opened = { ...fresh(false), id, loading: true, tree: isVersion ? tree : [] };
    show(opened, isVersion ? { from: thread.entries.findLastIndex((entry) => !entry.unsent) + 1 } : {});
    try {
      await reload(opened);
    } finally {
      opened.loading = false;
      if (current === opened) mood();
    }
    if (current !== opened) return;
    if (wanted?.id === id) landed();
    else stick(true);
    growTree(opened).catch(notes.fail);
  }

  /** Shows what the server has, and follows the turn that runs there. Whether other words are on screen now. */
  async function reload(here) {
    const [conversation, items] = await Promise.all([api.conversation(here.id), api.items(here.id)]);
    if (current !== here || here.run) return false;
    Object.assign(here, { conversation, version: conversation.version });
    const messages = messagesOf(items);
    const changed = thread.bring(messages);
    mood();
    arrows();
    const running = conversation["deskmate:running"];
    const isWritten = messages.some(({ role, response }) => role === "assistant" && response === running);
    if (running && !isWritten && running !== here.lost) runner.run(here, { ...newTurn({ live: false }), id: running });
    return changed;
  }

  /** Whether the conversation had changed elsewhere; what changed is shown then. */
  async function look() {
    const here = current;
    if (here.id === null || here.loading || here.run) return false;
    const found = await api.conversation(here.id).catch((error) => gone(here, error));
    if (!found || current !== here || here.run) return false;
    const isSame = found.version === here.version && !found["deskmate:running"];
    here.conversation = found;
    if (isSame) return false;
    await reload(here);
    if (current === here) onChange({ id: here.id });
    return true;
  }

  function gone(here, error) {
    if (error.status !== 404) throw error;
    if (current !== here) return;
    notes.say("deleted_elsewhere");
    startNew();
    onChange({ id: null });
  }

  async function growTree(here) {
    const tree = await api.tree(rootOf(here.conversation));
    here.tree = tree;
    if (current === here) arrows();
  }

  /** Conversations as the list knows them now: branches of this one may be among them that were made elsewhere. */
  function heard(listed) {
    const here = current;
    if (!here.conversation) return;
    const known = new Map(here.tree.map((one) => [one.id, one.version]));
    const isNews = (one) => one.id !== here.id && rootOf(one) === rootOf(here.conversation) && one.version !== known.get(one.id);
    if (listed.some(isNews)) growTree(here).catch(() => {}); // the next list asks again
  }

  // --- asking -----------------------------------------------------------------------------------------------------------

  function ask(text) {
    if (current.loading) return;
    if (current.run) return offerAfter(current);
    composer.clear();
    composer.offer(null);
    askIn(current, text);
  }

  function askIn(here, text) {
    const question = thread.question(text, { unsent: true, branching: !here.noTrace });
    mood();
    stick(true);
    runner.run(here, newTurn(), { text, question });
  }

  /** Goes another way from a message on: a conversation of its own, which shares what was said before. Whether it could. */
  function branch(entry, text) {
    const here = current;
    const index = thread.indexOf(entry);
    if (here.run) notes.say("busy");
    if (here.run || here.loading || here.conversation === null || index < 0) return false;
    const origin = { ...beginning(here.conversation, thread.entries, index, Date.now()), from: here.id };
    const tree = here.tree.length ? here.tree : [here.conversation];
    show({ ...fresh(false), origin, tree }, { from: index });
    askIn(current, text);
    return true;
  }

  function questionOf(answer) {
    const before = thread.entries.slice(0, thread.indexOf(answer)).findLast(({ role }) => role === "user");
    return [before, before?.text];
  }

  function started(here) {
    stick(sticking);
    mood();
    composer.setRunning(true);
    arrows();
  }

  function begun(here, opened) {
    const others = here.tree.filter((one) => one.id !== here.id);
    if (others.length) here.tree = [{ ...here.conversation, version: here.version }, ...others]; // the newest now
    if (current !== here) return;
    arrows();
    onChange({ id: here.id, opened });
  }

  function undone(here, id) {
    here.tree = here.tree.filter((one) => one.id !== id);
    if (current === here) onChange({ id: null, backTo: here.origin?.from ?? null });
  }

  function ended(here, turn) {
    if (current !== here) return;
    composer.setRunning(here.run !== null);
    mood();
    if (isOver(turn)) say(spoken, ...spokenEnd(turn));
    recount();
    if (here.id) onChange({ id: here.id });
    const after = here.sendAfter;
    here.sendAfter = false;
    composer.offer(null);
    if (after && isOver(turn)) composer.submit();
  }

  /** The conversation had gone on before the question came: the words are kept, what goes on is shown. */
  async function elsewhere(here, text) {
    composer.restore(text);
    const changed = await reload(here);
    if (current !== here) return;
    stick(true);
    if (here.run) offerAfter(here);
    else if (changed) composer.offer("changed_elsewhere");
    else composer.submit(); // only its name had changed
  }

  function offerAfter(here) {
    composer.offer("busy", "send_after", () => {
      here.sendAfter = true;
      composer.offer("will_send", "send_not", () => ((here.sendAfter = false), offerAfter(here)));
    });
  }

  // --- branches on screen -----------------------------------------------------------------------------------------------

  function arrows() {
    const { conversation, tree, origin } = current;
    const here = conversation ?? (origin && { id: null, created_at: Infinity, metadata: origin.metadata });
    thread.showPartings(here && !current.noTrace ? partings(here, thread.entries, tree) : new Map());
  }

  let wanted = null; // the arrow that was pressed: it keeps the focus

  function switchTo(id, step, index) {
    wanted = { id, step, index };
    onVersion(id);
  }

  function landed() {
    const { step, index } = wanted;
    wanted = null;
    const entry = thread.entries[index];
    const version = entry?.focusVersion?.(step);
    if (version) say(spoken, "version_of", version);
    entry?.node.scrollIntoView({ block: "nearest" });
    settleScroll();
  }

  // --- tokens and scrolling ---------------------------------------------------------------------------------------------

  let counting = new AbortController();
  const recount = debounced(COUNT_AFTER_MS, async () => {
    counting.abort();
    counting = new AbortController();
    const text = composer.text();
    const here = current;
    if (!text && here.id === null && here.said.length === 0) return composer.setTokens(null);
    try {
      const { store, background, ...body } = runner.turnBody(here, text);
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

  for (const click of ["click", "auxclick"]) thread.node.addEventListener(click, (event) => askBeforeLeaving(event).catch(notes.fail));
  function settleScroll() {
    const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    sticking = jump.hidden = below < NEAR_BOTTOM_PX;
  }
  scroller.addEventListener("scroll", settleScroll, { passive: true });
  const grown = new ResizeObserver(() => sticking && stick(true));
  for (const one of [thread.node, scroller]) grown.observe(one);

  return {
    node, open, look, heard, startNew, recount, focus: composer.focus, setContext: composer.setContext,
    get id() { return current.id; },
    get root() {
      const one = current.conversation ?? current.tree[0];
      return one ? rootOf(one) : current.id;
    },
    get title() { return current.conversation?.metadata?.[TITLE] ?? null; },
    get noTrace() { return current.noTrace; },
    get empty() { return thread.entries.length === 0; },
  };
}
