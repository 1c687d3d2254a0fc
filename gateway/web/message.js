// The bubbles of a conversation: a question as typed, an answer as it grows. Knows turns; not where they come from.
import { confirmed, copyButton, h, iconButton } from "./dom.js";
import { errorCard } from "./errors.js";
import { say } from "./i18n.js";
import { isOver, secondsOfThought, tokensPerSecond } from "./turn.js";

const PAINT_EVERY_MS = 100;
const PROGRESS = new Set(["loading", "engine_lost", "resuming"]);

/**
 * A question's bubble. With `onEdit(text)` it can be asked again in other words; when that returns false they stay in the
 * editor. `showVersions(versions, onVersion)` shows the arrows between branches that part here (none for null);
 * `focusVersion(step)` gives the focus to one of them and tells which version is shown.
 */
export function createQuestion(text, onEdit = null) {
  const bubble = h("div", { class: "bubble", text });
  const arrows = h("div", { class: "arrows", role: "group", label: "versions", hidden: true });
  const pencil = onEdit && iconButton("pencil", "edit", edit, { class: "icon-button branching" });
  const foot = h("footer", { class: "question-foot" }, copyButton(() => text, "copy_question"), pencil, arrows);
  const node = h("article", { class: "message question" }, h("h3", { class: "visually-hidden", say: "you" }), bubble, foot);

  function edit() {
    const close = (back) => {
      form.replaceWith(bubble, foot);
      if (back) pencil.focus();
    };
    const form = editor(text, { onCancel: () => close(true), onSend: (fresh) => onEdit(fresh) && close(false) });
    bubble.replaceWith(form);
    foot.remove();
    form.querySelector("textarea").focus();
  }

  let drawn = null;
  function showVersions(versions, onVersion) {
    if (JSON.stringify(versions) === JSON.stringify(drawn)) return; // a button drawn anew would lose the focus
    drawn = versions;
    arrows.hidden = versions === null;
    arrows.replaceChildren(...(versions ? arrowsOf(versions, onVersion) : []));
  }

  function focusVersion(step) {
    const [before, after] = arrows.querySelectorAll("button");
    const wanted = step < 0 ? [before, after] : [after, before];
    wanted.find((button) => button && !button.disabled)?.focus();
    return drawn && { n: drawn.at + 1, all: drawn.ids.length };
  }
  return { node, showVersions, focusVersion };
}

function arrowsOf({ ids, at }, onVersion) {
  const arrow = (name, label, step) =>
    iconButton(name, label, () => onVersion(ids[at + step], step), { disabled: !ids[at + step] });
  const place = h("span", { class: "place" });
  const spoken = h("span", { class: "visually-hidden", say: ["version_of", { n: at + 1, all: ids.length }] });
  say(place, "version_place", { n: at + 1, all: ids.length });
  place.setAttribute("aria-hidden", "true");
  return [arrow("before", "version_before", -1), place, spoken, arrow("after", "version_after", 1)];
}

/** A question under its author's hands again: Enter sends it, Escape leaves it as it was. */
function editor(text, { onCancel, onSend }) {
  const box = h("textarea", { label: "edit", rows: "1" });
  const send = h("button", { type: "submit", class: "button primary small", say: "edit_send" });
  const form = h("form", { class: "editor" }, box, h("p", { class: "fine", say: "edit_hint" }),
    h("div", { class: "editor-foot" },
      h("button", { type: "button", class: "button small", say: "cancel", on: { click: onCancel } }), send));
  const fit = () => {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight}px`;
    send.disabled = !box.value.trim();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) onSend(box.value.trim());
  });
  box.addEventListener("input", fit);
  box.addEventListener("keydown", (event) => {
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key === "Enter" && !event.shiftKey && !composing) (event.preventDefault(), form.requestSubmit());
    if (event.key === "Escape" && !composing) (event.stopPropagation(), onCancel());
  });
  box.value = text;
  new ResizeObserver(fit).observe(form); // its height is known once it is on the page
  return form;
}

/**
 * An answer's bubble: `show(turn)` on every change, `fail(error, retry)`, `pause(key)` while the connection is away.
 * With `onAgain()` an answer that is over can be asked for once more.
 */
export function createAnswer(render, onAgain = null) {
  const body = h("div", { class: "markdown" });
  const state = h("p", { class: "state" });
  const foot = h("footer", { class: "answer-foot" });
  const thoughts = createThoughts();
  const bubble = h("div", { class: "bubble" }, thoughts.node, body, state, foot);
  const node = h("article", { class: "message answer" }, h("h3", { class: "visually-hidden", say: "answer" }), bubble);
  const paint = painter(body, render);
  let text = "";

  function show(turn) {
    text = turn.text;
    node.dataset.status = turn.status;
    thoughts.show(turn);
    paint(text, isOver(turn));
    tellState(state, turn);
    if (isOver(turn)) foot.replaceChildren(...footOf(turn, () => text, onAgain));
    if (turn.status === "failed") fail(turn.error ?? { message: "" }, null);
  }

  function fail(error, retry) {
    node.dataset.status = "failed";
    state.hidden = true;
    bubble.querySelector(".error-card")?.remove();
    foot.before(errorCard(error, retry && (() => (bubble.querySelector(".error-card").remove(), retry()))));
  }

  const pause = (key) => ((state.hidden = false), say(state, key));
  return { node, show, fail, pause };
}

/** What a model thought before its answer, folded; plain text, for it was written for nobody. */
function createThoughts() {
  const head = h("summary");
  const body = h("div", { class: "thought", tabindex: "0", label: "thought" });
  const node = h("details", { class: "thoughts", hidden: true }, head, body);
  let told = null;

  function show(turn) {
    node.hidden = !turn.thought;
    const shown = body.textContent;
    if (!turn.thought || !turn.thought.startsWith(shown)) body.textContent = turn.thought;
    else if (turn.thought.length > shown.length) body.append(turn.thought.slice(shown.length));
    const seconds = secondsOfThought(turn);
    const next = turn.status === "thinking" ? ["thinking"] : seconds ? ["thought_for", { seconds }] : ["thought"];
    if (JSON.stringify(next) !== told) say(head, ...next);
    told = JSON.stringify(next);
  }
  return { node, show };
}

/** Renders at once what comes rarely and at most every PAINT_EVERY_MS what comes fast; slower still for slow renders. */
function painter(body, render) {
  let painted = "", wanted = "", timer = null, nextAt = 0;
  function paint() {
    timer = null;
    if (wanted === painted) return;
    const started = performance.now();
    replaceChanged(body, decorate(render(wanted)));
    painted = wanted;
    nextAt = performance.now() + Math.max(PAINT_EVERY_MS, 5 * (performance.now() - started));
    body.dispatchEvent(new CustomEvent("grown", { bubbles: true }));
  }
  return (text, final) => {
    wanted = text;
    const wait = nextAt - performance.now();
    if (final || wait <= 0) clearTimeout(timer), paint();
    else timer ??= setTimeout(paint, wait);
  };
}

/** Leaves the blocks that did not change in place, so that a selection or a scrolled code block survives. */
function replaceChanged(body, fresh) {
  const blocks = [...fresh.childNodes];
  const old = [...body.childNodes];
  let same = 0;
  while (same < blocks.length && same < old.length && old[same].isEqualNode(blocks[same])) same++;
  old.slice(same).forEach((node) => node.remove());
  body.append(...blocks.slice(same));
}

function decorate(fragment) {
  for (const code of fragment.querySelectorAll("pre > code")) {
    const language = /^language-([\w+#.-]{1,20})$/.exec(code.className)?.[1] ?? "";
    const frame = h("div", { class: "code" },
      h("div", { class: "code-head" }, h("span", { text: language }), copyButton(() => code.textContent, "copy_code")));
    code.parentNode.replaceWith(frame);
    frame.append(h("pre", { tabindex: "0" }, code));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "table-frame", tabindex: "0" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/** Opens an answer's link only after showing its whole address; the model may have written anything there. */
export async function askBeforeLeaving(event) {
  const link = event.target.closest(".markdown a[href]");
  if (!link || link.protocol === "mailto:" || link.origin === location.origin) return;
  event.preventDefault();
  const sure = await confirmed("link_out_title", ["plain", { text: link.href }], "open", { danger: false });
  if (sure) window.open(link.href, "_blank", "noopener,noreferrer");
}

function tellState(node, turn) {
  const text = stateText(turn);
  node.hidden = text === null;
  if (text) say(node, ...text);
}

/** The line under an answer, as [key, values]; null when the answer speaks for itself. */
export function stateText(turn) {
  if (PROGRESS.has(turn.progress)) return [`progress_${turn.progress}`, { position: turn.position, seconds: turn.etaSeconds }];
  switch (turn.status) {
    case "queued":
      return turn.position ? ["place", { position: turn.position, seconds: turn.etaSeconds }] : ["queued"];
    case "cancelled":
      return ["stopped"];
    case "incomplete":
      return [turn.reason === "max_output_tokens" ? "cut_length" : "incomplete"];
    case "completed":
      return turn.text ? null : ["empty_answer"];
    case "thinking":
    case "writing":
    case "failed":
      return null;
    default:
      return [turn.status];
  }
}

function footOf(turn, text, onAgain) {
  const again = onAgain && iconButton("again", "regenerate", onAgain, { class: "icon-button branching" });
  if (!turn.text) return [again].filter(Boolean);
  const speed = tokensPerSecond(turn);
  return [
    copyButton(text, "copy_answer"),
    again,
    turn.usage ? h("span", { say: ["usage", { input: turn.usage.input_tokens, output: turn.usage.output_tokens }] }) : null,
    speed ? h("span", { say: ["speed", { speed }] }) : null,
    turn.times ? whyItTook(turn.times) : null,
  ].filter(Boolean);
}

/** How long an answer took; folded, where the time went. */
function whyItTook(times) {
  const seconds = times.queued + times.prefill + times.decode;
  return h("details", { class: "times" }, h("summary", { say: ["took", { seconds }] }), h("p", { say: ["times", times] }));
}
