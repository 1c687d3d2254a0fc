// The administrator's view: people, those whom front ends name, sign-in links, API keys. Knows nothing of chats.
import * as api from "./api.js";
import { confirmed, copyButton, h, icon, openDialog } from "./dom.js";
import { currentLanguage, remember } from "./i18n.js";
import { editLimits } from "./limits.js";

const ROLES = ["member", "administrator"];
const SCOPES = ["chat", "metrics", "admin", "delegate"];
const LIVES_DAYS = [30, 90, 365];

export function createAdmin({ user, notes }) {
  const act = (action) => notes.guarded(async () => { await action(); await load(); });
  const people = h("tbody");
  const keys = h("tbody");
  const noKeys = h("p", { class: "fine", say: "no_keys", hidden: true });
  const known = h("datalist", { id: "people-names" });
  const node = h("main", { class: "admin" },
    h("header", {}, h("a", { href: "#/", class: "quiet back" }, icon("back"), h("span", { say: "back_to_chat" })), h("h1", { say: "admin" })),
    h("section", { class: "panel", id: "people" },
      h("h2", { say: "people" }), h("p", { class: "fine", say: "people_hint" }), personForm(),
      table(["name", "role", "keys", "status", null], people)),
    h("section", { class: "panel", id: "keys" },
      h("h2", { say: "keys" }), h("p", { class: "fine", say: "keys_intro" }), keyForm(),
      table(["person", "key_name", "scope", "expires", "last_used", null], keys), noKeys), known);

  async function load() {
    const [users, all] = await Promise.all([api.users(), api.keys()]);
    people.replaceChildren(...users.map(personRow));
    keys.replaceChildren(...all.map(keyRow));
    noKeys.hidden = all.length > 0;
    known.replaceChildren(...users.filter((one) => !one.disabled).map(({ name }) => h("option", { value: name })));
  }

  function personRow(one) {
    return h("tr", { data: { disabled: one.disabled } },
      h("th", { scope: "row", text: one.name }),
      h("td", {}, badge("role", ROLES, one.role)),
      h("td", { say: ["key_count", { n: one.keys }] }),
      status(one),
      h("td", { class: "row-actions" },
        one.speaks_for ? button(["speaks_for", { n: one.speaks_for }], notes.guarded(() => showDelegates(one))) : null,
        button("limits", notes.guarded(() => limitsOf(one))),
        one.disabled ? null : button("make_link", notes.guarded(() => showLink(one))),
        one.id === user.id ? null : button(one.disabled ? "enable" : "disable", act(() => toggle(one)))));
  }

  /** Those whom a front end names: a search, the newest first. They may be very many. */
  async function showDelegates(owner) {
    const rows = h("tbody");
    const more = h("p", { class: "fine", say: "more_people", hidden: true });
    const search = h("input", { type: "search", autocomplete: "off", placeholder: "search_people", label: "search_people" });
    const look = notes.guarded(async () => {
      const asked = search.value.trim();
      const found = await api.delegates(owner.id, asked);
      if (asked !== search.value.trim()) return;
      rows.replaceChildren(...found.data.map((one) => delegateRow(one, owner, look)));
      more.hidden = !found.has_more;
    });
    search.addEventListener("input", look);
    look();
    await openDialog(["speaks_for_title", { name: owner.name }], (close) => [
      search, h("div", { class: "panel" }, table(["name", "status", null], rows)), more,
      h("div", { class: "dialog-actions" }, h("button", { type: "button", class: "button primary", say: "done", on: { click: () => close() } })),
    ]);
  }

  function delegateRow(one, owner, again) {
    return h("tr", { data: { disabled: one.disabled } },
      h("th", { scope: "row", text: one.name.slice(owner.name.length + 1) }), status(one),
      h("td", { class: "row-actions" },
        button("limits", notes.guarded(() => limitsOf(one))),
        button(one.disabled ? "enable" : "disable", notes.guarded(async () => {
          await toggle(one);
          await again();
        }))));
  }

  async function limitsOf(one) {
    const [limits, { weight }] = await Promise.all([api.userLimits(one.id), api.userWeight(one.id)]);
    const save = async (wishes, wished) => {
      await api.setUserLimits(one.id, wishes);
      if (wished !== weight) await api.setUserWeight(one.id, wished);
    };
    await editLimits(one.name, limits, notes.guarded(save), weight);
  }

  async function limitsOfKey(key) {
    const name = key.name || key.user_name;
    await editLimits(name, await api.keyLimits(key.id), notes.guarded((wishes) => api.setKeyLimits(key.id, wishes)));
  }

  async function toggle(one) {
    const sure = one.disabled || (await confirmed("disable_title", ["disable_text", { name: one.name }], "disable"));
    if (sure) await api.setUserEnabled(one.id, one.disabled);
  }

  async function showLink(one) {
    const { url, expires_at } = await api.signInLink(one.id);
    const when = new Date(expires_at * 1000).toLocaleString(currentLanguage(), { dateStyle: "medium", timeStyle: "short" });
    await showOnce(["link_title", { name: one.name }], ["link_text", { when }], url);
  }

  function keyRow(key) {
    return h("tr", {},
      h("th", { scope: "row", text: key.user_name }), h("td", { text: key.name ?? "" }),
      h("td", {}, ...key.scopes.map((scope) => badge("scope", SCOPES, scope))),
      h("td", {}, day(key.expires_at)), h("td", {}, day(key.last_used)),
      h("td", { class: "row-actions" }, button("limits", notes.guarded(() => limitsOfKey(key))), button("revoke", act(async () => {
        if (await confirmed("revoke_title", ["revoke_text", { name: key.user_name }], "revoke")) await api.revokeKey(key.id);
      }))));
  }

  function personForm() {
    const name = h("input", { id: "new-person", required: true, maxlength: "64", autocomplete: "off", placeholder: "name", label: "name" });
    const role = h("select", { label: "role" }, ...ROLES.map((one) => h("option", { value: one, say: `role_${one}` })));
    return inlineForm("add_person", [name, role], act(async () => {
      await api.createUser(name.value.trim(), role.value);
      name.value = "";
    }));
  }

  function keyForm() {
    const person = h("input", { id: "key-person", list: "people-names", required: true, autocomplete: "off", placeholder: "person", label: "person" });
    const name = h("input", { maxlength: "64", autocomplete: "off", placeholder: "key_name", label: "key_name" });
    const scope = h("select", { label: "scope" }, ...SCOPES.map((one) => h("option", { value: one, say: `scope_${one}` })));
    const lives = h("select", { label: "expires" },
      h("option", { value: "", say: "never" }), ...LIVES_DAYS.map((n) => h("option", { value: n, say: ["days", { n }] })));
    return inlineForm("create_key", [person, name, scope, lives], act(async () => {
      const fields = { user: person.value.trim(), scopes: [scope.value] };
      if (name.value.trim()) fields.name = name.value.trim();
      if (lives.value) fields.expires_in_days = Number(lives.value);
      const { key } = await api.createKey(fields);
      name.value = person.value = "";
      await showOnce(["key_title", { name: fields.user }], "key_text", key);
    }));
  }

  return { node, load: notes.guarded(load) };
}

/** Shows a secret that is never shown again, with a button to copy it. */
const showOnce = (title, text, secret) => openDialog(title, (close) => [
  h("p", { class: "dialog-text", say: text }),
  h("div", { class: "secret" }, h("code", { text: secret }), copyButton(() => secret)),
  h("div", { class: "dialog-actions" }, h("button", { type: "button", class: "button primary", say: "done", on: { click: () => close() } })),
]);

function inlineForm(action, fields, submit) {
  const form = h("form", { class: "inline-form" }, ...fields, h("button", { type: "submit", class: "button primary", say: action }));
  form.addEventListener("submit", (event) => (event.preventDefault(), submit()));
  return form;
}

const status = (one) => h("td", { class: one.disabled ? "off" : "on", say: one.disabled ? "disabled" : "active" });

/** A role or scope by its name in the page's language; one this page does not know yet by the server's. */
const badge = (kind, known, name) =>
  h("span", { class: `badge ${name}`, ...(known.includes(name) ? { say: `${kind}_${name}` } : { text: name }) });

const button = (key, click) => h("button", { type: "button", class: "button small", say: key, on: { click } });

const table = (heads, body) => h("div", { class: "table-frame" }, h("table", {},
  h("thead", {}, h("tr", {}, ...heads.map((key) => (key ? h("th", { scope: "col", say: key }) : h("td"))))), body));

/** A day in the page's language; "never" for none. Seconds since 1970, or an ISO date. */
function day(at) {
  if (at === null || at === undefined) return h("span", { class: "fine", say: "never" });
  const date = new Date(typeof at === "number" ? at * 1000 : at);
  const node = h("time", { datetime: date.toISOString() });
  remember(node, "text", () => (node.textContent = date.toLocaleDateString(currentLanguage(), { dateStyle: "medium" })));
  return node;
}
