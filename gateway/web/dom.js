// Small tools for building the page: elements, icons, dialogs, copying. Knows nothing of chats.
import { say, sayAttribute } from "./i18n.js";

/**
 * An element. Properties: `class`, `text` (plain), `say` (a text's key, or [key, values]), `label` (key of the
 * accessible name), `tip` (the same, also as a tooltip), `on` (listeners), `data`; any other becomes an attribute (true: present, false or null: absent).
 */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) set(node, name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function set(node, name, value) {
  if (name === "text") node.textContent = value;
  else if (name === "say") say(node, ...[value].flat());
  else if (name === "label" || name === "tip") nameIt(node, value, name === "tip");
  else if (name === "placeholder") sayAttribute(node, "placeholder", value);
  else if (name === "data") Object.assign(node.dataset, value);
  else if (name === "on") for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
  else if (value === true) node.setAttribute(name, "");
  else if (value !== false && value !== null) node.setAttribute(name, value);
}

function nameIt(node, key, tip) {
  sayAttribute(node, "aria-label", key);
  if (tip) sayAttribute(node, "title", key);
}

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10.5 11v4.5M13.5 11v4.5",
  pencil: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  search: "M11 5a6 6 0 1 1 0 12a6 6 0 0 1 0-12zM15.5 15.5L20 20",
  veil: "M4 4l16 16M9.5 5.5A10 10 0 0 1 21 12a12 12 0 0 1-2.5 3.5M6 8a12 12 0 0 0-3 4c2 4 5.500 6.500 9 6.500a9 9 0 0 0 4-1M10 10a3 3 0 0 0 4 4",
  down: "M12 5v14M6 13l6 6 6-6",
  user: "M12 4a4 4 0 1 1 0 8a4 4 0 0 1 0-8zM5 20c0-4 3-6 7-6s7 2 7 6",
  back: "M19 12H5M11 6l-6 6 6 6",
  before: "M14.500 6l-6 6 6 6",
  after: "M9.500 6l6 6-6 6",
  again: "M19 12a7 7 0 1 1-2-4.900L19 9M19 4.500V9h-4.500",
  sync: "M5 10a7.200 7.200 0 0 1 13-2M19 14a7.200 7.200 0 0 1-13 2M18.500 4v4.200h-4M5.500 20v-4.200h4",
  sparkle: "M12 4l1.800 6.200L20 12l-6.200 1.800L12 20l-1.800-6.200L4 12l6.200-1.800z",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export const iconButton = (name, label, onclick, properties = {}) =>
  h("button", { type: "button", class: "icon-button", tip: label, on: { click: onclick }, ...properties }, icon(name));

/** A modal dialog with a title; resolves to the value its `close` was given, or null when dismissed. */
export function openDialog(title, build) {
  return new Promise((resolve) => {
    let result = null;
    const close = (value = null) => ((result = value), dialog.close());
    const heading = h("h2", { id: "dialog-title", say: title });
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, heading, ...build(close));
    dialog.addEventListener("close", () => (dialog.remove(), resolve(result)));
    dialog.addEventListener("click", (event) => event.target === dialog && close());
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Asks before something that cannot be undone; true when confirmed. */
export async function confirmed(title, text, action, { danger = true } = {}) {
  return (await openDialog(title, (close) => [
    h("p", { class: "dialog-text", say: text }),
    h("div", { class: "dialog-actions" },
      h("button", { type: "button", class: "button", say: "cancel", on: { click: () => close() } }),
      h("button", { type: "button", class: danger ? "button danger" : "button primary", say: action, on: { click: () => close(true) } })),
  ])) === true;
}

/** Copies text, also where the page is served without TLS and the clipboard API is therefore absent. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "visually-hidden" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A button that copies what `text()` returns and says so for a moment. */
export function copyButton(text, label = "copy", properties = {}) {
  const button = iconButton("copy", label, async () => {
    await copy(text());
    button.replaceChildren(icon("check"));
    button.classList.add("done");
    setTimeout(() => (button.replaceChildren(icon("copy")), button.classList.remove("done")), 1500);
  }, properties);
  return button;
}

/** Calls `action` once, `milliseconds` after the last call. */
export function debounced(milliseconds, action) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}
