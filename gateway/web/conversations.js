// The list of conversations: search, open, rename in place, delete. Knows their titles; not what was said in them.
import * as api from "./api.js";
import { confirmed, debounced, h, iconButton } from "./dom.js";
import { say } from "./i18n.js";

const PAGE = 30;
const LOOK_AGAIN_MS = 4000;
const DAY_SECONDS = 86400;
export const TITLE = "deskmate:title";

/** The list. `onDeleted(id)` hears of a deletion, `onNamed(title)` of the open conversation's title. */
export function createList({ notes, onDeleted, onNamed }) {
  const search = h("input", { type: "search", label: "search", placeholder: "search", autocomplete: "off" });
  const groups = h("div", { class: "groups" });
  const empty = h("p", { class: "fine empty" });
  const more = h("button", { type: "button", class: "quiet", say: "more", hidden: true });
  const node = h("nav", { class: "list", label: "conversations" },
    h("div", { class: "search" }, search), groups, empty, more);

  let shown = [];
  let loaded = false;
  let openId = null;
  let lookAgain = null;
  let asked = 0;

  async function load(after) {
    const mine = ++asked;
    const limit = after ? PAGE : Math.min(100, Math.max(PAGE, shown.length));
    const page = await api.conversations({ after, query: search.value.trim(), limit });
    if (mine !== asked) return; // a newer question is on its way
    shown = after ? [...shown, ...page.data] : page.data;
    loaded = true;
    more.hidden = !page.has_more;
    draw();
  }

  function draw() {
    if (groups.querySelector("input")) return; // never under the hands of somebody who renames
    const named = shown.map((conversation) => [groupOf(conversation), conversation]);
    groups.replaceChildren(...["today", "week", "older"].flatMap((group) => {
      const rows = named.filter(([name]) => name === group).map(([, conversation]) => row(conversation));
      return rows.length ? [h("h3", { say: group }), h("ul", {}, ...rows)] : [];
    }));
    empty.hidden = !loaded || shown.length > 0;
    say(empty, search.value.trim() ? "no_matches" : "no_conversations");
    tellTitle();
    clearTimeout(lookAgain);
    if (shown.some((one) => one["deskmate:running"])) lookAgain = setTimeout(() => load().catch(() => {}), LOOK_AGAIN_MS);
  }

  function row(conversation) {
    const title = conversation.metadata?.[TITLE];
    const link = h("a", { href: `#/c/${encodeURIComponent(conversation.id)}`, "aria-current": conversation.id === openId && "page" },
      h("span", { class: "title", ...(title ? { text: title } : { say: "untitled" }) }),
      conversation["deskmate:running"] ? h("span", { class: "dot", tip: "running", role: "img" }) : null);
    const item = h("li", {}, link,
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
        await api.updateConversation(conversation.id, conversation.metadata);
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

  async function remove(conversation) {
    if (!(await confirmed("delete_title", "delete_text", "delete_action"))) return;
    await api.deleteConversation(conversation.id);
    shown = shown.filter((one) => one !== conversation);
    draw();
    onDeleted(conversation.id);
  }

  function tellTitle() {
    const title = shown.find((one) => one.id === openId)?.metadata?.[TITLE];
    if (title || openId === null) onNamed(title ?? null);
  }

  function setOpen(id) {
    openId = id;
    draw();
  }

  search.addEventListener("input", debounced(250, notes.guarded(() => load())));
  more.addEventListener("click", notes.guarded(() => load(shown.at(-1).id)));
  return { node, load, setOpen };
}

function groupOf({ updated_at, created_at }) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  const at = updated_at ?? created_at;
  if (at >= midnight) return "today";
  return at >= midnight - 6 * DAY_SECONDS ? "week" : "older";
}
