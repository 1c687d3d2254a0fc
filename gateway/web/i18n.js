// The page's language: looks texts up, remembers which node says what, and says it again when the language changes.
import { TEXTS } from "./texts.js";

export const LANGUAGES = Object.keys(TEXTS);

let language = LANGUAGES[0]; // the document's language: as global as <html lang>, which it mirrors
const spoken = new WeakMap();

export const currentLanguage = () => language;

/** The first of the browser's languages that the page speaks. */
export function preferred(browserLanguages) {
  const known = browserLanguages.map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => LANGUAGES.includes(tag));
  return known ?? LANGUAGES[0];
}

/** A text with its `{values}` filled in. A function in the table gets the values and the number formatter. */
export function t(key, values = {}) {
  const text = TEXTS[language][key];
  if (text === undefined) throw new Error(`No text "${key}" in ${language}`);
  if (typeof text === "function") return text(values, number);
  return text.replace(/\{(\w+)\}/g, (_, name) => shown(values[name]));
}

export const number = (value, digits = 0) => value.toLocaleString(language, { maximumFractionDigits: digits });
const shown = (value) => (typeof value === "number" ? number(value, 1) : String(value));

/** Makes `node` say a text, now and after every change of language. */
export function say(node, key, values) {
  remember(node, "text", () => (node.textContent = t(key, values)));
}

export function sayAttribute(node, name, key, values) {
  remember(node, name, () => node.setAttribute(name, t(key, values)));
}

/** Runs `write` now and after every change of language; `slot` names what it writes, so that a later one replaces it. */
export function remember(node, slot, write) {
  if (!spoken.has(node)) spoken.set(node, new Map());
  spoken.get(node).set(slot, write);
  node.setAttribute("data-spoken", "");
  write();
}

export function setLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : chosen;
  for (const node of document.querySelectorAll("[data-spoken]")) for (const write of spoken.get(node)?.values() ?? []) write();
}
