// The rules for model text that need no DOM: what HTML is made at all, and where links may lead.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createParser, judge } from "../../gateway/web/markdown.js";

const html = createParser();
const LONG = "x".repeat(80);

test("HTML in the text stays text", () => {
  for (const raw of ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a <svg onload=alert(1)> b", "<iframe srcdoc='x'>"]) {
    assert.doesNotMatch(html(raw), /<(script|img|svg|iframe)/i);
  }
});

test("an image becomes its address as text", () => {
  assert.equal(html("![alt](https://evil.test/p.png?q=1)"), "<p>[image: https://evil.test/p.png?q=1]</p>\n");
  assert.doesNotMatch(html("![a][r]\n\n[r]: https://evil.test/p.png"), /<img/);
  assert.doesNotMatch(html("![a](data:image/svg+xml;base64,PHN2Zz4=)"), /<img/);
});

test("a link shows its host, and may not be read by where it leads", () => {
  assert.equal(html("[click](https://evil.test/a)"),
    '<p><a href="https://evil.test/a" rel="noopener noreferrer nofollow" target="_blank">click<span class="host"> (evil.test)</span></a></p>\n');
});

test("a text that names another host does not hide the real one", () => {
  for (const lie of ["https://bank.test", "bank.test", "evil.test.bank.test", "https://bank.test/evil.test", "https://evil.test@bank.test"]) {
    assert.match(html(`[${lie}](https://evil.test/a)`), / \(evil\.test\)/, lie);
  }
  assert.doesNotMatch(html("https://evil.test/a"), /class="host"/);
});

test("a host in look-alike letters is shown as what it is", () => {
  assert.match(html("[аррlе.com](https://аррlе.com)"), /\(xn--/);
});

test("only http, https and mailto are links", () => {
  for (const href of ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "java&#9;script:alert(1)", "&#x6a;avascript:alert(1)", "data:text/html,x", "vbscript:x",
    "file:///etc/passwd", "ftp://a.test/", "//evil.test/x", "/auth/logout", "#x", "blob:https://a.test/1"]) {
    assert.doesNotMatch(html(`[a](<${href}>)`), /<a /, href);
    assert.doesNotMatch(html(`[a][r]\n\n[r]: <${href}>`), /<a /, `by reference: ${href}`);
  }
  for (const href of ["http://a.test/", "https://a.test/", "mailto:a@b.test"]) assert.match(html(`[a](${href})`), /<a /, href);
});

test("a bare address with a long query is left as text, however it is written", () => {
  for (const bare of [`https://evil.test/?q=${LONG}`, `<https://evil.test/?q=${LONG}>`]) assert.doesNotMatch(html(bare), /<a /);
  assert.match(html("https://evil.test/?q=short"), /<a /);
  assert.doesNotMatch(html("evil.test and a@b.test"), /<a /);
});

test("a table's alignment is a class, never a style", () => {
  const table = html("|a|b|\n|:-:|-:|\n|1|2|");
  assert.doesNotMatch(table, /style=/);
  assert.match(table, /class="align-center"/);
  assert.match(table, /class="align-right"/);
});

test("code is escaped, and so is the name of its language", () => {
  assert.match(html("```html\n<b>x</b>\n```"), /&lt;b&gt;x/);
  assert.doesNotMatch(html('```x"onmouseover="alert(1)\n1\n```'), /"onmouseover/);
});

test("a link without an address is no link", () => assert.deepEqual(judge("", false), { follow: false, shown: "" }));
