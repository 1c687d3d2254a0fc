// Branches: where conversations of one tree part, what is listed of them, what a new one begins with.
import assert from "node:assert/strict";
import { test } from "node:test";
import { beginning, messagesOf, oneOfEachTree, partings, rootOf, withoutOrigin } from "../../gateway/web/branches.js";

const ROOT = { id: "root", created_at: 1, version: 5, metadata: { "deskmate:title": "Title" } };

/** A conversation made on the screen of `from`, after the response `of` (none: from the beginning). */
const branch = (id, from, of, at = Number(id.slice(1))) => ({
  id, created_at: at, version: 3,
  metadata: { "deskmate:root": "root", "deskmate:branch_from": from, "deskmate:branched_at": String(at * 1000), ...(of ? { "deskmate:branch_of": of } : {}) },
});
const said = (...responses) => responses.flatMap((response) => [
  { role: "user", text: `? ${response}`, response }, { role: "assistant", text: `! ${response}`, response }]);
const shown = (here, responses, tree) => Object.fromEntries(partings(here, said(...responses), tree));

test("a conversation without branches has no arrows", () => {
  assert.deepEqual(shown(ROOT, ["r1", "r2"], [ROOT]), {});
  assert.deepEqual(shown(ROOT, ["r1", "r2"], []), {});
});

test("arrows stand where a branch parts, on both sides", () => {
  const b2 = branch("b2", "root", "r1");
  assert.deepEqual(shown(ROOT, ["r1", "r2", "r3"], [b2, ROOT]), { 2: { ids: ["root", "b2"], at: 0 } });
  assert.deepEqual(shown(b2, ["r1", "x2", "x3"], [b2, ROOT]), { 2: { ids: ["root", "b2"], at: 1 } });
});

test("a first question asked in other words parts at the beginning", () => {
  const b2 = branch("b2", "root", null);
  assert.deepEqual(shown(ROOT, ["r1"], [b2, ROOT]), { 0: { ids: ["root", "b2"], at: 0 } });
  assert.deepEqual(shown(b2, ["x1", "x2"], [b2, ROOT]), { 0: { ids: ["root", "b2"], at: 1 } });
});

test("versions of one question stand in the order they were made, whoever's screen they were made on", () => {
  const b2 = branch("b2", "root", "r1");
  const b3 = branch("b3", "b2", "r1"); // on b2's screen, the same message again
  const b4 = branch("b4", "root", "r1");
  const tree = [b2, b4, ROOT, b3];
  for (const [at, [here, responses]] of [[ROOT, ["r1", "r2"]], [b2, ["r1", "x2"]], [b3, ["r1", "y2"]], [b4, ["r1", "z2"]]].entries()) {
    assert.deepEqual(shown(here, responses, tree), { 2: { ids: ["root", "b2", "b3", "b4"], at } });
  }
});

test("branches of a branch count as the way that they begin with, and the last used one is where it leads", () => {
  const b2 = branch("b2", "root", "r1");
  const b3 = branch("b3", "b2", "x2");
  const tree = [b3, b2, ROOT];
  assert.deepEqual(shown(ROOT, ["r1", "r2"], tree), { 2: { ids: ["root", "b3"], at: 0 } });
  assert.deepEqual(shown(b2, ["r1", "x2", "x3"], tree), { 2: { ids: ["root", "b2"], at: 1 }, 4: { ids: ["b2", "b3"], at: 0 } });
  assert.deepEqual(shown(b3, ["r1", "x2", "y3"], tree), { 2: { ids: ["root", "b3"], at: 1 }, 4: { ids: ["b2", "b3"], at: 1 } });
});

test("a branch made further up on a branch's screen parts further up", () => {
  const b2 = branch("b2", "root", "r2");
  const b3 = branch("b3", "b2", "r1");
  const tree = [b2, ROOT, b3];
  assert.deepEqual(shown(b3, ["r1", "y2"], tree), { 2: { ids: ["b2", "b3"], at: 1 } });
  assert.deepEqual(shown(b2, ["r1", "r2", "x3"], tree), { 2: { ids: ["b2", "b3"], at: 0 }, 4: { ids: ["root", "b2"], at: 1 } });
});

test("branches made within one second keep their order", () => {
  const [early, late] = [branch("b2", "root", "r1", 7), { ...branch("b3", "root", "r1", 7), metadata: { ...branch("b3", "root", "r1").metadata, "deskmate:branched_at": "7900" } }];
  assert.deepEqual(shown(ROOT, ["r1", "r2"], [late, early, ROOT])[2].ids, ["root", "b2", "b3"]);
});

test("deleted ones, circles of claims, and a branch in which nothing was asked make no arrows", () => {
  const orphan = branch("b3", "deleted", "gone");
  const circle = [branch("b4", "b5", "gone"), branch("b5", "b4", "gone")];
  const stillborn = { ...branch("b6", "root", "r1"), version: 1 };
  const selfish = branch("b7", "b7", "gone");
  assert.deepEqual(shown(ROOT, ["r1", "r2"], [orphan, ...circle, stillborn, selfish, ROOT]), {});
  assert.deepEqual(shown(selfish, ["x1"], [selfish, ROOT]), {});
});

test("a branch whose parent was deleted still parts where its response ends", () => {
  const b3 = branch("b3", "deleted", "r1");
  assert.deepEqual(shown(ROOT, ["r1", "r2"], [b3, ROOT]), { 2: { ids: ["root", "b3"], at: 0 } });
});

test("the list has one entry for each tree, the newest", () => {
  const other = { id: "other", metadata: {} };
  const b2 = branch("b2", "root", "r1");
  assert.deepEqual(oneOfEachTree([b2, other, ROOT]), [b2, other]);
  assert.deepEqual([rootOf(b2), rootOf(ROOT), rootOf({ id: "x" })], ["root", "root", "x"]);
});

test("a branch begins after the last response, takes the title along and copies what no response holds", () => {
  const messages = [...said("r1"), { role: "user", text: "added by a program", response: null }, ...said("r2")];
  const { metadata, copies, all } = beginning(ROOT, messages, 3, 42);
  assert.deepEqual(metadata, {
    "deskmate:root": "root", "deskmate:branch_from": "root", "deskmate:branched_at": "42", "deskmate:branch_of": "r1", "deskmate:title": "Title",
  });
  assert.deepEqual(copies.map(({ text }) => text), ["added by a program"]);
  assert.equal(all.length, 3);
  assert.equal("deskmate:branch_of" in withoutOrigin(metadata), false);
});

test("a branch of the first question shares nothing; one made on a branch belongs to the same tree", () => {
  assert.equal("deskmate:branch_of" in beginning(ROOT, said("r1"), 0, 1).metadata, false);
  const { metadata } = beginning(branch("b2", "root", "r1"), said("r1", "x2"), 2, 1);
  assert.deepEqual([metadata["deskmate:root"], metadata["deskmate:branch_from"], metadata["deskmate:branch_of"]], ["root", "b2", "r1"]);
});

test("items become messages, and what one response wrote becomes one", () => {
  const item = (role, text, response) => ({ type: "message", role, content: [{ text }], ...(response ? { "deskmate:response": response } : {}) });
  const items = [item("system", "s"), item("user", "q", "r1"), item("assistant", "a", "r1"), item("assistant", "b", "r1"), { type: "reasoning" },
    item("assistant", "c"), item("assistant", "d")];
  assert.deepEqual(messagesOf(items).map(({ role, text, response }) => [role, text, response]),
    [["user", "q", "r1"], ["assistant", "a\n\nb", "r1"], ["assistant", "c", null], ["assistant", "d", null]]);
  const thought = (text, response) => ({ ...item("", text, response), type: "reasoning" });
  const thinking = [item("user", "q", "r1"), thought("hm", "r1"), item("assistant", "a", "r1"), item("user", "p", "r2"), thought("so", "r2")];
  assert.deepEqual(messagesOf(thinking).map(({ text, thought }) => [text, thought]), [["q", ""], ["a", "hm"], ["p", ""], ["", "so"]]);
});
