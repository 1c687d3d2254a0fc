// Signing in, and the password of who is signed in. Knows the account routes; nothing of chats.
import * as api from "./api.js";
import { h, openDialog } from "./dom.js";
import { describe } from "./errors.js";
import { say, sayAttribute } from "./i18n.js";

const REFUSALS = { 401: ["sign_in_refused"], 429: ["sign_in_throttled"] };

/** The token of a sign-in link, taken out of the address so that neither history nor a copied address keeps it. */
export function takeLinkToken() {
  const token = /^#link=(.+)$/.exec(location.hash)?.[1];
  if (token) history.replaceState(history.state, "", location.pathname);
  return token ? decodeURIComponent(token) : null;
}

/** The sign-in page; `problem` is [key, values] of what went wrong before, `onSignedIn(user)` hears of success. */
export function createSignIn({ problem, onSignedIn, languageButton }) {
  const name = h("input", { id: "name", name: "name", autocomplete: "username", required: true, autocapitalize: "none" });
  const password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true });
  const wrong = h("p", { class: "wrong", role: "alert", hidden: !problem, ...(problem ? { say: problem } : {}) });
  const button = h("button", { type: "submit", class: "button primary", say: "sign_in" });
  const form = h("form", { class: "card" },
    h("h1", { class: "brand" }, h("span", { class: "logo", "aria-hidden": "true" }), "Deskmate"),
    h("p", { class: "fine", say: "tagline" }), wrong,
    h("label", { for: "name", say: "name" }), name,
    h("label", { for: "password", say: "password" }), password,
    button, h("p", { class: "fine", say: "sign_in_hint" }));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      onSignedIn((await api.signIn(name.value, password.value)).user);
    } catch (error) {
      wrong.hidden = false;
      say(wrong, ...(REFUSALS[error.status] ?? describe(error)));
      password.select();
    } finally {
      button.disabled = false;
    }
  });
  return h("main", { class: "signin" }, form, languageButton);
}

/** Asks for the passwords and changes them; resolves to true when changed. */
export function changePassword(user) {
  return openDialog(user.has_password ? "change_password" : "set_password", (close) => {
    const current = user.has_password ? secret("current_password", "current-password") : null;
    const fresh = secret("new_password", "new-password");
    sayAttribute(fresh, "aria-description", "password_hint");
    fresh.minLength = 8;
    const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
    const who = h("input", { autocomplete: "username", value: user.name, hidden: true }); // for password managers
    const form = h("form", { class: "stack" }, who, ...[current, fresh].filter(Boolean).flatMap(labelled),
      h("p", { class: "fine", say: "password_hint" }), wrong,
      h("div", { class: "dialog-actions" },
        h("button", { type: "button", class: "button", say: "cancel", on: { click: () => close() } }),
        h("button", { type: "submit", class: "button primary", say: "save" })));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await api.changePassword(current?.value, fresh.value);
        close(true);
      } catch (error) {
        wrong.hidden = false;
        say(wrong, ...describe(error));
      }
    });
    return [form];
  });
}

const secret = (key, autocomplete) => h("input", { id: key, type: "password", autocomplete, required: true });
const labelled = (input) => [h("label", { for: input.id, say: input.id }), input];
