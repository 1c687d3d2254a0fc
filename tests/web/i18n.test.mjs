// Both languages say everything the page uses, and nothing more.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { preferred, t } from "../../gateway/web/i18n.js";
import { TEXTS } from "../../gateway/web/texts.js";

const WEB = join(import.meta.dirname, "../../gateway/web");
const CODE = readdirSync(WEB).filter((name) => name.endsWith(".js") && name !== "texts.js").map((name) => readFileSync(join(WEB, name), "utf8")).join("\n");
const BUILT = ["stage_", "state_", "progress_", "role_", "scope_", "error_", "limit_", "choice_"]; // keys put together from what the server says
const SETTING = /^(temperature|top_p|max_output_tokens|rounds)(_hint)?$/; // and from the names of fields
const STATUS = new Set(["sending", "reading"]); // a turn's status is its text

const keysOf = (language) => Object.keys(TEXTS[language]).sort();
const holes = (text) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort();

test("both languages have the same keys", () => assert.deepEqual(keysOf("zh"), keysOf("en")));

test("both languages have the same kind of text with the same holes", () => {
  for (const key of keysOf("en")) {
    const [en, zh] = [TEXTS.en[key], TEXTS.zh[key]];
    assert.equal(typeof zh, typeof en, key);
    if (typeof en === "string") assert.deepEqual(holes(zh), holes(en), key);
    assert.notEqual(String(en).trim(), "", key);
  }
});

test("every text is used", () => {
  const used = (key) => CODE.includes(`"${key}"`) || BUILT.some((prefix) => key.startsWith(prefix)) || SETTING.test(key) || STATUS.has(key);
  assert.deepEqual(keysOf("en").filter((key) => !used(key)), []);
});

test("every text that code names exists", () => {
  const named = [...CODE.matchAll(/\b(?:say|label|tip|placeholder): \[?"(\w+)"/g)].map(([, key]) => key);
  assert.ok(named.length > 50);
  assert.deepEqual(named.filter((key) => !(key in TEXTS.en)), []);
});

test("every state the server may send has a text", () => {
  const states = {
    stage: ["redis", "gateway", "convert", "plan", "import", "weights", "memory", "warmup", "serve", "engine"],
    state: ["waiting", "running", "done", "failed"],
    progress: ["loading", "engine_lost", "resuming"],
    role: ["administrator", "member"],
    scope: ["chat", "metrics", "admin", "delegate"],
    limit: ["tokens_per_day", "tokens_per_month", "requests_per_minute", "concurrency"],
    choice: ["default", "none", "number"],
  };
  for (const [prefix, names] of Object.entries(states)) for (const name of names) assert.ok(`${prefix}_${name}` in TEXTS.zh, `${prefix}_${name}`);
});

test("the place in line is said as people say it", () => {
  assert.equal(TEXTS.en.place({ position: 3, seconds: 8 }), "3rd in line, about 8 s");
  assert.equal(TEXTS.en.place({ position: 1, seconds: null }), "Next in line");
  assert.equal(TEXTS.en.place({ position: 22, seconds: 300 }), "22nd in line, about 5 min");
  assert.equal(TEXTS.zh.place({ position: 3, seconds: 8 }), "第 3 位,约 8 秒".replace(",", "\uff0c"));
});

test("numbers are grouped", () => assert.equal(t("tokens_of", { used: 312, limit: 8192 }), "312 / 8,192"));

test("the browser's first known language wins, else English", () => {
  assert.equal(preferred(["de-DE", "zh-TW", "en"]), "zh");
  assert.equal(preferred(["en-GB", "zh"]), "en");
  assert.equal(preferred(["fr"]), "en");
});
