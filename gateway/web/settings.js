// The drawer of sampling settings, kept for this page only. Knows ranges and defaults; not what is done with them.
import { h, iconButton } from "./dom.js";

const DEFAULT_ROUNDS = 5;
const FIELDS = {
  temperature: { min: 0, max: 2, step: 0.1 },
  top_p: { min: 0.05, max: 1, step: 0.05 },
  max_output_tokens: { min: 16, max: 4096, step: 16 },
  rounds: { min: 0, max: 30, step: 1 },
};

/** The drawer; `sampling()` is what was chosen, else the model's defaults, as request fields and `rounds`. */
export function createSettings({ chosen, onChange }) {
  let defaults = { rounds: DEFAULT_ROUNDS };
  const fields = Object.fromEntries(Object.entries(FIELDS).map(([name, range]) => [name, field(name, range, choose)]));
  const reset = h("button", { type: "button", class: "button", say: "reset", on: { click: () => ((chosen = {}), changed()) } });
  const node = h("aside", { class: "drawer", id: "settings", label: "settings", hidden: true },
    h("header", {}, h("h2", { say: "settings" }), iconButton("close", "close", () => toggle(false))),
    h("p", { class: "fine", say: "settings_hint" }),
    ...Object.values(fields).map((one) => one.node), reset);
  node.addEventListener("keydown", (event) => event.key === "Escape" && toggle(false));

  const sampling = () => ({ ...defaults, ...chosen });

  function choose(name, value) {
    chosen = { ...chosen, [name]: value };
    changed();
  }

  function changed() {
    draw();
    onChange(chosen);
  }

  function draw() {
    for (const [name, one] of Object.entries(fields)) one.show(sampling()[name]);
    reset.disabled = Object.keys(chosen).length === 0;
  }

  function setDefaults({ max_output_tokens, temperature, top_p }, contextTokens) {
    defaults = { rounds: DEFAULT_ROUNDS, max_output_tokens, temperature, top_p };
    if (contextTokens) fields.max_output_tokens.limit(contextTokens);
    draw();
  }

  let opener = null;
  function toggle(on = node.hidden) {
    if (on) opener = document.activeElement;
    node.hidden = !on;
    if (on) node.querySelector("input").focus();
    else opener?.focus();
  }

  draw();
  return { node, sampling, setDefaults, toggle };
}

function field(name, range, choose) {
  const slider = h("input", { type: "range", id: `set-${name}`, ...range, "aria-describedby": `hint-${name}` });
  const number = h("input", { type: "number", ...range, step: range.step < 1 ? 0.01 : 1, label: name });
  const read = (input) => () => {
    const value = Number(input.value);
    if (input.value !== "" && value >= Number(input.min) && value <= Number(input.max)) choose(name, value);
  };
  slider.addEventListener("input", read(slider));
  number.addEventListener("change", read(number));
  const node = h("div", { class: "field" },
    h("label", { for: slider.id, say: name }), number, slider, h("p", { class: "fine", id: `hint-${name}`, say: `${name}_hint` }));
  return {
    node,
    show: (value) => value !== undefined && ((slider.value = value), (number.value = value)),
    limit: (max) => ((slider.max = max), (number.max = max)),
  };
}
