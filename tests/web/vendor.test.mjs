// The vendored modules are the files that were recorded, and no page file names another origin.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const WEB = join(import.meta.dirname, "../../gateway/web");
const { modules } = JSON.parse(readFileSync(join(WEB, "vendor/VENDOR.json"), "utf8"));

for (const { name, file, sha256, licence, licence_file } of modules) {
  test(`${name} is the file that was recorded, with its licence`, () => {
    const bytes = readFileSync(join(WEB, "vendor", file));
    assert.equal(createHash("sha256").update(bytes).digest("hex"), sha256);
    assert.ok(licence && existsSync(join(WEB, "vendor", licence_file)));
  });
}

test("every vendored module is recorded", () => {
  const files = readdirSync(join(WEB, "vendor")).filter((name) => name.endsWith(".js"));
  assert.deepEqual(files.sort(), modules.map(({ file }) => file).sort());
});

test("no file of the page loads anything from elsewhere", () => {
  for (const name of readdirSync(WEB).filter((one) => /\.(js|css|html)$/.test(one))) {
    const text = readFileSync(join(WEB, name), "utf8");
    assert.doesNotMatch(text, /(?:src|href|import|from|url\()\s*=?\s*["'(]*(?:https?:)?\/\//, name);
    assert.doesNotMatch(text, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage|sessionStorage|indexedDB|\sstyle="/, name);
  }
});
