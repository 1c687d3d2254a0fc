// The list of conversations: search, open, rename in place, delete; one entry for a conversation and all its branches.
// Knows their titles; not what was said in them.
import * as api from "./api.js";
import { TITLE, oneOfEachTree, rootOf } from "./branches.js";
import { confirmed, debounced, h, iconButton } from "./dom.js";
import { say } from "./i18n.js";

const PAGE = 30;
const LOOK_AGAIN_MS = 4000;
const DAY_SECONDS = 86400;
const MOST_PAGES = 5; // asked at once for enough entries, where one conversation has many branches
const DELETE_TRIES = 20;

/** Deletes a conversation with all its branches; answers that are being written there are stopped first. */
export async function deleteTree(root) {
  for (const one of await api.tree(root)) await deleteStopped(one);
}

async function deleteStopped({ id, "deskmate:running": running }, tries = DELETE_TRIES) {
  try {
    if (running) await api.cancel(running);
    await api.deleteConversation(id);
  } catch (error) {
    if (error.status === 404) return;
    if (error.code !== "conversation_locked" || tries === 0) throw error;
    await new Promise((resolve) => setTimeout(resolve, 100)); // its end is being written
    await deleteStopped(await api.conversation(id), tries - 1);
  }
}

/**
 * The list. `onDeleted(root)` hears of a deletion, `onNamed(title)` of the open conversation's title, `onLoaded(conversations)`
 * of what the server has now.
 */
export function createList({ notes, onDeleted, onNamed, onLoaded }) {
  const search = h("input", { type: "search", label: "search", placeholder: "search", autocomplete: "off" });
  const groups = h("div", { class: "groups" });
  const empty = h("p", { class: "fine empty" });
  const more = h("button", { type: "button", class: "quiet", say: "more", hidden: true });
  const node = h("nav", { class: "list", label: "conversations" },
    h("div", { class: "search" }, search), groups, empty, more);

  let found = []; // every branch
  let shown = []; // one of each tree
  let loaded = false;
  let openRoot = null;
  let lookAgain = null;
  let asked = 0;

  /** Whether the list is another one now. */
  async function load(after) {
    const mine = ++asked;
    const before = JSON.stringify(found);
    const [enough, atLeast] = after ? [shown.length + PAGE / 2, 0] : [PAGE / 2, found.length];
    const limit = after ? PAGE : Math.min(100, Math.max(PAGE, found.length));
    let all = after ? found : [];
    for (let page = { has_more: true }, pages = 0; page.has_more && pages < MOST_PAGES + atLeast / limit; pages++) {
      page = await api.conversations({ after, query: search.value.trim(), limit });
      if (mine !== asked) return false; // a newer question is on its way
      all = [...all, ...page.data];
      more.hidden = !page.has_more;
      after = page.last_id;
      if (oneOfEachTree(all).length >= enough && all.length >= atLeast) break;
    }
    const changed = !loaded || JSON.stringify(all) !== before;
    found = all;
    loaded = true;
    if (changed) draw();
    onLoaded(found);
    return changed;
  }

  function draw() {
    if (groups.querySelector("input")) return; // never under the hands of somebody who renames
    shown = oneOfEachTree(found);
    const focused = groups.contains(document.activeElement) ? placeOf(document.activeElement) : null;
    const named = shown.map((conversation) => [groupOf(conversation), conversation]);
    groups.replaceChildren(...["today", "week", "older"].flatMap((group) => {
      const rows = named.filter(([name]) => name === group).map(([, conversation]) => row(conversation));
      return rows.length ? [h("h3", { say: group }), h("ul", {}, ...rows)] : [];
    }));
    if (focused) focusOn(focused);
    empty.hidden = !loaded || shown.length > 0;
    say(empty, search.value.trim() ? "no_matches" : "no_conversations");
    tellTitle();
    clearTimeout(lookAgain);
    if (found.some((one) => one["deskmate:running"])) lookAgain = setTimeout(() => load().catch(() => {}), LOOK_AGAIN_MS);
  }

  /** Where the focus is: it stays on the same entry's same part when the list is drawn anew. */
  const placeOf = (part) => {
    const item = part.closest("li");
    return { root: item?.dataset.root, part: [...(item?.children ?? [])].indexOf(part) };
  };
  const focusOn = ({ root, part }) =>
    [...groups.querySelectorAll("li")].find((item) => item.dataset.root === root)?.children[part]?.focus();

  function row(conversation) {
    const isRunning = found.some((one) => rootOf(one) === rootOf(conversation) && one["deskmate:running"]);
    const title = conversation.metadata?.[TITLE];
    const link = h("a", { href: `#/c/${encodeURIComponent(conversation.id)}`, "aria-current": rootOf(conversation) === openRoot && "page" },
      h("span", { class: "title", ...(title ? { text: title } : { say: "untitled" }) }),
      isRunning ? h("span", { class: "dot", tip: "running", role: "img" }) : null);
    const item = h("li", { data: { root: rootOf(conversation) } }, link,
      iconButton("pencil", "rename", () => rename(item, conversation)),
      iconButton("trash", "remove", notes.guarded(() => remove(conversation))));
    return item;
  }

  function rename(item, conversation) {
    const before = conversation.metadata?.[TITLE] ?? "";
    const input = h("input", { label: "title", maxlength: "200" });
    input.value = before;
    let over = false;
    const end = notes.guarded(async (keep) => {
      if (over) return; // taking the field away is a blur, too
      over = true;
      const title = input.value.trim();
      input.remove();
      if (keep && title && title !== before) {
        conversation.metadata = { ...conversation.metadata, [TITLE]: title };
        draw();
        await nameTree(conversation, title);
      } else draw();
    });
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    input.addEventListener("blur", () => end(true));
    item.replaceChildren(input);
    input.select();
  }

  /** Names every branch; the newest one last, because a change makes it the newest. */
  async function nameTree(conversation, title) {
    for (const one of (await api.tree(rootOf(conversation))).reverse()) {
      await api.updateConversation(one.id, { ...one.metadata, [TITLE]: title });
    }
    await load();
  }

  async function remove(conversation) {
    if (!(await confirmed("delete_title", "delete_text", "delete_action"))) return;
    const root = rootOf(conversation);
    await deleteTree(root);
    found = found.filter((one) => rootOf(one) !== root);
    draw();
    onDeleted(root);
    await load(); // instead of one that is still on its way and was made before
  }

  function tellTitle() {
    const title = shown.find((one) => rootOf(one) === openRoot)?.metadata?.[TITLE];
    if (title || openRoot === null) onNamed(title ?? null);
  }

  function setOpen(root) {
    openRoot = root;
    draw();
  }

  search.addEventListener("input", debounced(250, notes.guarded(() => load())));
  more.addEventListener("click", notes.guarded(() => load(found.at(-1).id)));
  return { node, load, setOpen };
}

function groupOf({ updated_at, created_at }) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  const at = updated_at ?? created_at;
  if (at >= midnight) return "today";
  return at >= midnight - 6 * DAY_SECONDS ? "week" : "older";
}
