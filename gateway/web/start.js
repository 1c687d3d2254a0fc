// What the start is doing, while the model is not ready. Knows /readyz; asks it often until ready, then now and then.
import * as api from "./api.js";
import { h } from "./dom.js";
import { say } from "./i18n.js";

const ASK_MS = 1000;
const WATCH_MS = 15000;
const KNOWN = new Set(["redis", "gateway", "convert", "plan", "import", "weights", "memory", "warmup", "serve", "engine"]);
const PART_STATES = { ready: "done", starting: "running", loading: "running", lost: "failed", down: "failed", full: "failed" };

/** The panel; `onState({ready, model})` hears every answer. `stop()` ends the asking. */
export function createStart({ onState }) {
  const heading = h("h2", { say: "starting" });
  const rows = h("ol", { class: "stages" });
  const node = h("section", { class: "start", hidden: true, "aria-live": "off" },
    h("div", { class: "start-head" }, h("span", { class: "spinner" }), heading), rows, h("p", { class: "fine", say: "starting_hint" }));
  let timer = null;
  let wasReady = false;
  let stopped = false;

  async function look() {
    let state = null;
    try {
      state = await api.readiness();
      draw(state);
      onState(state);
    } catch {
      node.hidden = false; // whatever went wrong, the next look may go right
      say(heading, "unreachable");
      rows.replaceChildren();
    }
    if (!stopped) timer = setTimeout(look, state?.ready ? WATCH_MS : ASK_MS);
  }

  function draw({ ready, stages, parts, skewSeconds }) {
    node.hidden = ready;
    if (ready) return void (wasReady = true);
    say(heading, wasReady ? "engine_lost" : "starting");
    const now = Date.now() / 1000 + skewSeconds;
    const shown = !wasReady && stages?.length ? stages : (parts ?? []).map(asStage);
    rows.replaceChildren(...shown.map((stage) => row(stage, now)));
  }

  look();
  return { node, stop: () => ((stopped = true), clearTimeout(timer)) };
}

const asStage = ({ name, state, since }) =>
  ({ name, state: PART_STATES[state] ?? "waiting", started_at: since, seconds: null, message: "" });

function row({ name, state, started_at, seconds, message }, now) {
  const elapsed = seconds ?? (state === "running" && started_at ? Math.max(0, now - started_at) : null);
  return h("li", { data: { state } },
    h("span", { class: "mark", "aria-hidden": "true" }),
    h("span", { class: "stage-name", ...(KNOWN.has(name) ? { say: `stage_${name}` } : { text: name }) }),
    h("span", { class: "visually-hidden", say: `state_${state}` }),
    h("span", { class: "stage-time", ...(elapsed === null ? { text: "" } : { say: ["seconds", { seconds: elapsed }] }) }),
    message ? h("span", { class: "stage-message fine", text: message }) : null);
}
