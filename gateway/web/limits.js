// The limits of one person or key: what was used of them, and a form that changes them; of a person the weight, too.
// Knows nothing of any list.
import { h, openDialog } from "./dom.js";

const CHOICES = ["default", "none", "number"];
const WEIGHTS = { min: "0.1", max: "10", step: "0.1" };

/** `limits`: by kind `{limit, used}`, and `own` where it can be changed; `save` takes what is wished, by kind, and the weight. */
export async function editLimits(name, limits, save, weight) {
  const rows = Object.entries(limits).map(([kind, one]) => row(kind, one));
  const share = weight === undefined ? null : weightRow(weight);
  await openDialog(["limits_title", { name }], (close) => {
    const form = h("form", { class: "limits" },
      h("p", { class: "fine", say: "limits_hint" }), ...rows.map(({ node }) => node), share?.node,
      h("div", { class: "dialog-actions" },
        h("button", { type: "button", class: "button", say: "cancel", on: { click: () => close() } }),
        h("button", { type: "submit", class: "button primary", say: "save" })));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      await save(Object.fromEntries(rows.filter(({ wish }) => wish).map(({ kind, wish }) => [kind, wish()])), share?.wish());
      close();
    });
    return [form];
  });
}

function row(kind, { limit, used, own }) {
  const head = h("p", {}, h("b", { say: `limit_${kind}` }), h("span", { class: "fine", say: ["limit_used", { used, limit }] }));
  if (own === undefined) return { kind, node: h("div", { class: "limit" }, head) };
  const choice = h("select", { label: `limit_${kind}` }, ...CHOICES.map((one) => h("option", { value: one, say: `choice_${one}` })));
  const number = h("input", { type: "number", min: "0", step: "1", required: true, label: `limit_${kind}` });
  const show = () => (number.hidden = number.disabled = choice.value !== "number");
  choice.value = typeof own === "number" ? "number" : own;
  number.value = typeof own === "number" ? own : limit ?? "";
  choice.addEventListener("change", show);
  show();
  const wish = () => (choice.value === "number" ? Number(number.value) : choice.value);
  return { kind, wish, node: h("div", { class: "limit" }, head, h("div", {}, choice, number)) };
}

function weightRow(weight) {
  const number = h("input", { type: "number", ...WEIGHTS, required: true, label: "weight" });
  number.value = weight;
  const head = h("p", {}, h("b", { say: "weight" }), h("span", { class: "fine", say: "weight_hint" }));
  return { wish: () => Number(number.value), node: h("div", { class: "limit" }, head, h("div", {}, number)) };
}
