// The box to ask in: typing, sending, stopping, the token count. Knows nothing of conversations or the network.
import { h, icon } from "./dom.js";
import { say, sayAttribute } from "./i18n.js";

const TALLEST_PX = 220;
const NEARLY_FULL = 0.85;

export function createComposer({ onAsk, onStop, onInput }) {
  const box = h("textarea", { id: "ask", rows: "1", label: "question", placeholder: "ask", autocomplete: "off" });
  const tokens = h("span", { class: "tokens", tip: "tokens_meter" });
  const send = h("button", { type: "submit", class: "round send", tip: "send", disabled: true }, icon("send"));
  const stop = h("button", { type: "button", class: "round stop", tip: "stop", hidden: true, on: { click: onStop } }, icon("stop"));
  const offered = h("div", { class: "offer", role: "status", hidden: true });
  const form = h("form", { class: "composer" }, offered,
    h("div", { class: "box" }, box, h("div", { class: "box-foot" }, tokens, send, stop)),
    h("p", { class: "fine hint" }, h("span", { class: "keys", say: "keys_hint" }), h("span", { say: "may_err" })));

  let running = false;
  let context = null;

  function fit() {
    box.style.height = "auto";
    box.style.height = `${Math.min(TALLEST_PX, box.scrollHeight)}px`;
  }

  function changed() {
    fit();
    send.disabled = running || !box.value.trim();
    onInput();
  }

  function submit(event) {
    event?.preventDefault();
    if (box.value.trim()) onAsk(box.value.trim());
  }

  function pressed(event) {
    const composing = event.isComposing || event.keyCode === 229; // an input method's Enter picks a word
    if (event.key === "Enter" && !event.shiftKey && !composing) submit(event);
    if (event.key === "Escape" && !composing && running) onStop();
  }

  form.addEventListener("submit", submit);
  box.addEventListener("input", changed);
  box.addEventListener("keydown", pressed);

  function setText(text) {
    box.value = text;
    changed();
  }

  function setRunning(on) {
    const hadFocus = [send, stop].includes(document.activeElement);
    running = on;
    send.hidden = on;
    stop.hidden = !on;
    send.disabled = on || !box.value.trim();
    if (hadFocus) box.focus();
  }

  /** Says something about the question in the box, with a button that does something about it; null: nothing. */
  function offer(text, action = null, onAction = null) {
    offered.hidden = text === null;
    if (text === null) return offered.replaceChildren();
    offered.replaceChildren(icon("sync"), h("p", { say: text }),
      ...(action ? [h("button", { type: "button", class: "button small", say: action, on: { click: onAction } })] : []));
  }

  function restore(text) {
    setText(box.value.trim() ? `${text}\n\n${box.value}` : text);
  }

  function setTokens(used) {
    if (context === null) return;
    const over = used > context;
    tokens.classList.toggle("over", over);
    tokens.classList.toggle("near", used > NEARLY_FULL * context);
    sayAttribute(tokens, "title", over ? "over_context" : "tokens_meter");
    say(tokens, "tokens_of", { used, limit: context });
  }

  return {
    node: form,
    text: () => box.value.trim(),
    clear: () => setText(""),
    restore,
    offer,
    submit: () => submit(),
    suggest: (text) => (setText(text), box.focus()),
    focus: () => box.focus(),
    setRunning,
    setTokens,
    setContext: (limit) => ((context = limit), setTokens(null)),
    setNoTrace: (on) => sayAttribute(box, "placeholder", on ? "ask_no_trace" : "ask"),
  };
}
