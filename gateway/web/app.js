// The page's composition: who is signed in, which view the address asks for, and how the parts hear of each other.
import { createAdmin } from "./admin.js";
import * as api from "./api.js";
import { createChat } from "./chat.js";
import { createList, deleteTree } from "./conversations.js";
import { confirmed, copyButton, h, icon, iconButton } from "./dom.js";
import { createNotes, describe } from "./errors.js";
import { LANGUAGES, currentLanguage, preferred, say, setLanguage, t } from "./i18n.js";
import { createRenderer } from "./markdown.js";
import { createSettings } from "./settings.js";
import { changePassword, createSignIn, takeLinkToken } from "./signin.js";
import { createStart } from "./start.js";
import { watch } from "./watch.js";

main();

async function main() {
  setLanguage(kept().language ?? preferred(navigator.languages));
  addEventListener("hashchange", () => location.hash.startsWith("#link=") && location.reload());
  const { user, problem } = await whoIsThere(takeLinkToken());
  if (user) showDesk(user);
  else showSignIn(problem);
}

/** The `user` a link or the session speaks for, or the `problem` to show beside the sign-in form. */
async function whoIsThere(token) {
  try {
    return { user: token ? (await api.signInByLink(token)).user : await api.me() };
  } catch (error) {
    if (error.status === 401 || error.status === 400) return { problem: token ? ["link_refused"] : null };
    return { problem: describe(error) };
  }
}

/** Language and settings live in this tab's history entry: they survive a reload and never enter any storage. */
function kept() {
  return history.state ?? {};
}
function keep(patch) {
  history.replaceState({ ...kept(), ...patch }, "");
}

function languageButton() {
  const next = () => LANGUAGES[(LANGUAGES.indexOf(currentLanguage()) + 1) % LANGUAGES.length];
  return h("button", { type: "button", class: "quiet language", say: "switch_language", on: {
    click: () => (setLanguage(next()), keep({ language: currentLanguage() })),
  } });
}

function showSignIn(problem) {
  document.body.className = "";
  document.title = "Deskmate";
  document.body.replaceChildren(createSignIn({ problem, onSignedIn: showDesk, languageButton: languageButton() }));
  document.getElementById("name").focus();
}

function showDesk(user) {
  const leaving = new AbortController();
  const signedOut = () => (leaving.abort(), start.stop(), chat.startNew(), showSignIn(null));
  const notes = createNotes(signedOut);
  const settings = createSettings({ chosen: kept().chosen ?? {}, onChange: (chosen) => (keep({ chosen }), chat.recount()) });
  const start = createStart({ onState: heard });
  const chat = createChat({
    user, notes, sampling: settings.sampling, render: createRenderer(), onSignedOut: signedOut, startPanel: start.node, onChange: changed,
    onVersion: (id) => (location.hash = chatAddress(id)),
  });
  const list = createList({ notes, onDeleted: (root) => root === chat.root && goNew(), onNamed: named, onLoaded: chat.heard });
  const admin = user.role === "administrator" ? createAdmin({ user, notes }) : null;

  const title = h("h1", { class: "title", say: "new_chat" });
  const demo = h("div", { class: "demo", hidden: true });
  const traceBar = h("div", { class: "trace-bar", hidden: true }, icon("veil"), h("p", { say: "no_trace_on" }),
    h("button", { type: "button", class: "button small", say: "no_trace_leave", on: { click: () => setNoTrace(false) } }));
  const traceSwitch = h("button", { type: "button", class: "switch", role: "switch", "aria-checked": "false", id: "no-trace",
    on: { click: () => setNoTrace(!chat.noTrace) } }, icon("veil"), h("span", { say: "no_trace" }));
  const clearing = iconButton("trash", "clear", notes.guarded(clear), { id: "clear" });
  const side = sidebar();
  const mainView = h("main", { class: "main" },
    h("header", { class: "top" },
      iconButton("menu", "menu", () => document.body.classList.toggle("side-open"), { class: "icon-button only-phone", id: "menu" }),
      title, traceSwitch,
      clearing,
      iconButton("settings", "settings", () => settings.toggle(), { "aria-controls": "settings", id: "open-settings" })),
    demo, traceBar, chat.node);
  const desk = h("div", { class: "desk" }, side, h("div", { class: "scrim", on: { click: closeSide } }), mainView, settings.node);

  document.body.replaceChildren(h("a", { class: "skip", href: "#ask", say: "skip", on: { click: (event) => (event.preventDefault(), chat.focus()) } }),
    desk, ...(admin ? [admin.node] : []), notes.node);

  function sidebar() {
    const fresh = h("button", { type: "button", class: "button new", id: "new", on: { click: notes.guarded(newChat) } }, icon("plus"), h("span", { say: "new_chat" }));
    const account = h("details", { class: "account" },
      h("summary", {}, icon("user"), h("span", { text: user.name })),
      h("div", { class: "account-menu" },
        languageButton(),
        admin ? h("a", { class: "quiet", href: "#/admin", say: "admin" }) : null,
        h("button", { type: "button", class: "quiet", say: user.has_password ? "change_password" : "set_password", on: { click: notes.guarded(password) } }),
        h("button", { type: "button", class: "quiet", say: "sign_out", on: { click: notes.guarded(signOut) } })));
    return h("aside", { class: "side", id: "side" },
      h("div", { class: "brand" }, h("span", { class: "logo", "aria-hidden": "true" }), "Deskmate",
        iconButton("close", "close", closeSide, { class: "icon-button only-phone" })),
      fresh, list.node, account);
  }

  async function password() {
    if (await changePassword(user)) (user = { ...user, has_password: true }), notes.say("password_changed");
  }

  async function signOut() {
    await api.signOut();
    signedOut();
    history.replaceState({ language: currentLanguage() }, "", location.pathname);
  }

  function closeSide() {
    document.body.classList.remove("side-open");
  }

  /** A conversation came into being (`opened`), began a turn or ended one; without an `id`, the new one is gone again. */
  function changed({ id, opened, backTo = null }) {
    if (opened) address(chatAddress(id));
    if (id === null) history.replaceState(kept(), "", backTo === null ? "#/" : chatAddress(backTo));
    if (opened || id === null) list.setOpen(chat.root);
    clearing.disabled = id === null;
    list.load().catch(notes.fail);
    if (id !== null) lookSoon();
  }

  function named(name) {
    say(title, ...(chat.noTrace ? ["no_trace"] : ["new_chat"]));
    if (name && !chat.noTrace) say(title, "plain", { text: name });
    document.title = name && !chat.noTrace ? `${name} – Deskmate` : "Deskmate";
  }

  let demoShown = false;
  let wasReady = null;
  function heard({ ready, model }) {
    if (model?.demo && !demoShown) showDemo();
    if (ready !== wasReady) learn().catch(() => {}); // the next answer of /readyz asks again
    wasReady = ready;
  }

  function showDemo() {
    demoShown = true;
    demo.hidden = false;
    demo.replaceChildren(icon("sparkle"),
      h("p", {}, h("span", { say: "demo" }), " ", h("code", { say: "demo_command" })), copyButton(() => t("demo_command"), "copy", { class: "icon-button copy" }),
      iconButton("close", "dismiss", () => (demo.hidden = true)));
  }

  async function learn() {
    const [model] = await api.models();
    if (!model) return;
    settings.setDefaults(model["deskmate:defaults"] ?? {}, model.max_model_len);
    chat.setContext(model.max_model_len);
    chat.recount();
  }

  async function clear() {
    if (chat.noTrace) return setNoTrace(true, { anew: true });
    if (chat.id === null || !(await confirmed("clear_title", "clear_text", "clear_action"))) return;
    await deleteTree(chat.root);
    goNew();
    await list.load();
  }

  async function setNoTrace(on, { anew = false } = {}) {
    if (chat.noTrace && !chat.empty && !(await confirmed("no_trace_title", "no_trace_text", "no_trace_action"))) return;
    if (chat.noTrace !== on || anew) goNew({ noTrace: on });
  }

  /** The new, empty conversation; leaving a no-trace one with something in it is asked about first. */
  async function newChat() {
    if (chat.noTrace) return setNoTrace(false);
    goNew();
  }

  function goNew({ noTrace = false } = {}) {
    address("#/");
    chat.startNew({ noTrace });
    dress();
    list.setOpen(null);
    closeSide();
  }

  /** The whole page looks different while nothing is stored. */
  function dress() {
    document.body.classList.toggle("no-trace", chat.noTrace);
    traceSwitch.setAttribute("aria-checked", chat.noTrace);
    traceBar.hidden = !chat.noTrace;
    clearing.disabled = chat.id === null && !chat.noTrace;
    named(null);
  }

  const chatAddress = (id) => `#/c/${encodeURIComponent(id)}`;

  function address(hash) {
    if (location.hash !== hash) history.pushState(kept(), "", hash);
  }

  async function route() {
    const state = { ...remembered, ...kept() };
    history.replaceState(state, ""); // an address typed or clicked makes an entry without our state
    remembered = state;
    const wasAdmin = document.body.classList.contains("admin-open");
    const isAdmin = document.body.classList.toggle("admin-open", admin !== null && location.hash === "#/admin");
    if (isAdmin) return admin.load();
    if (wasAdmin && chat.id !== null) history.replaceState(kept(), "", chatAddress(chat.id));
    const id = /^#\/c\/(.+)$/.exec(location.hash)?.[1];
    if (id === undefined) return chat.id === null ? undefined : goNew();
    if (decodeURIComponent(id) === chat.id) return undefined;
    if (chat.noTrace && !chat.empty && !(await confirmed("no_trace_title", "no_trace_text", "no_trace_action"))) return void address("#/");
    closeSide();
    const opening = chat.open(decodeURIComponent(id));
    dress();
    list.setOpen(chat.root);
    try {
      await opening;
      list.setOpen(chat.root);
      if (chat.title) named(chat.title);
    } catch (error) {
      notes.fail(error);
      if (error.status === 404) goNew();
    }
  }
  let remembered = kept();

  addEventListener("popstate", notes.guarded(route), { signal: leaving.signal });
  addEventListener("keydown", (event) => event.key === "Escape" && closeSide(), { signal: leaving.signal });
  const lookSoon = watch(chat.look, { signal: leaving.signal, soonMs: 2500, longestMs: 20_000 });
  watch(() => list.load(), { signal: leaving.signal, soonMs: 10_000, longestMs: 60_000 });
  dress();
  list.load().catch(notes.fail);
  route().catch(notes.fail);
  chat.focus();
}
