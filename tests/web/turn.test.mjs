// Turns: events in, state out; and following one across broken connections.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Broken, follow } from "../../gateway/web/stream.js";
import { apply, isOver, itemText, newTurn, secondsOfThought, settle, tokensPerSecond } from "../../gateway/web/turn.js";

const text = (delta, sequence_number) => ({ type: "response.output_text.delta", delta, sequence_number });
const final = (status, extra = {}) => ({ id: "resp_1", status, output: [], usage: { input_tokens: 9, output_tokens: 11, total_tokens: 20 }, ...extra });
const created = { type: "response.created", sequence_number: 0, response: { id: "resp_1", status: "queued" } };
const completed = (sequence_number) => ({ type: "response.completed", sequence_number, response: final("completed") });

const play = (events, turn = newTurn()) => events.reduce((now, event, index) => apply(now, event, 1000 * index), turn);

test("a turn waits in line, reads, writes and completes", () => {
  const states = [
    created,
    { type: "deskmate:queue.updated", sequence_number: 1, position: 3, eta_seconds: 8 },
    { type: "deskmate:queue.updated", sequence_number: 2, position: 0, eta_seconds: 0 },
    { type: "response.in_progress", sequence_number: 3, response: { id: "resp_1" } },
    text("你", 4), text("好", 5), completed(6),
  ];
  const seen = states.map((_, count) => play(states.slice(0, count + 1)));
  assert.deepEqual(seen.map((turn) => turn.status), ["queued", "queued", "reading", "reading", "writing", "writing", "completed"]);
  assert.deepEqual([seen[1].position, seen[1].etaSeconds, seen[2].position], [3, 8, null]);
  assert.equal(seen.at(-1).text, "你好");
  assert.equal(seen.at(-1).usage.total_tokens, 20);
});

test("where the time of an answer went is known where its response tells all of it", () => {
  const metadata = { "deskmate:queued_seconds": "2.500", "deskmate:prefill_seconds": "0.250", "deskmate:decode_seconds": "1.500", "deskmate:cached_tokens": "12" };
  assert.deepEqual(settle(newTurn(), final("completed", { metadata })).times, { queued: 2.5, prefill: 0.25, decode: 1.5, cached: 12 });
  const { "deskmate:cached_tokens": _, ...rest } = metadata;
  assert.equal(settle(newTurn(), final("completed", { metadata: rest })).times, null);
  assert.equal(settle(newTurn(), final("cancelled")).times, null);
});

test("thoughts are no part of the answer, and for how long they took is told where it was seen", () => {
  const thought = (delta, sequence_number) => ({ type: "response.reasoning_text.delta", delta, sequence_number });
  const events = [created, thought("so ", 1), thought("it is", 2), text("yes", 3), completed(4)];
  const thinking = play(events.slice(0, 3));
  assert.deepEqual([thinking.status, thinking.thought, thinking.text], ["thinking", "so it is", ""]);
  const done = play(events);
  assert.deepEqual([done.status, done.thought, done.text, secondsOfThought(done)], ["completed", "so it is", "yes", 1]);
  assert.equal(secondsOfThought(play(events, newTurn({ live: false }))), null);
  const output = [{ type: "reasoning", content: [{ type: "reasoning_text", text: "hm" }] }];
  assert.equal(settle(newTurn(), final("completed", { output })).thought, "hm");
});

test("an event seen before changes nothing", () => {
  const once = play([created, text("a", 1), text("b", 2)]);
  assert.equal(play([text("a", 1), text("b", 2)], once), once);
  assert.equal(play([text("c", 3)], once).text, "abc");
});

test("progress is shown until the next sign of life", () => {
  const lost = play([created, text("a", 1), { type: "deskmate:progress", sequence_number: 2, state: "engine_lost", eta_seconds: 5 }]);
  assert.equal(lost.progress, "engine_lost");
  assert.equal(play([text("b", 3)], lost).progress, null);
});

test("why nothing moves is told beside the first place in line, until the place changes", () => {
  const waiting = play([created, { type: "deskmate:progress", sequence_number: 1, state: "loading", eta_seconds: null },
    { type: "deskmate:queue.updated", sequence_number: 2, position: 2, eta_seconds: null }]);
  assert.deepEqual([waiting.status, waiting.position, waiting.progress], ["queued", 2, "loading"]);
  assert.equal(play([{ type: "deskmate:queue.updated", sequence_number: 3, position: 1, eta_seconds: 4 }], waiting).progress, null);
});

test("an unknown event only moves the sequence", () => {
  const turn = play([created, { type: "response.something.new", sequence_number: 1 }]);
  assert.deepEqual([turn.status, turn.sequence], ["queued", 1]);
});

test("every ending ends the turn and keeps what was written", () => {
  for (const status of ["completed", "incomplete", "failed", "cancelled"]) {
    const turn = play([created, text("half", 1), { type: `response.${status}`, sequence_number: 2, response: final(status) }]);
    assert.ok(isOver(turn));
    assert.deepEqual([turn.status, turn.text], [status, "half"]);
  }
});

test("a cancelled response inside response.incomplete is cancelled", () => {
  assert.equal(play([created, { type: "response.incomplete", sequence_number: 1, response: final("cancelled") }]).status, "cancelled");
});

test("an error event is told by the failure that follows", () => {
  for (const shape of [{ code: "engine_lost", message: "gone" }, { error: { code: "engine_lost", message: "gone" } }]) {
    const turn = play([created, { type: "error", sequence_number: 1, ...shape },
      { type: "response.failed", sequence_number: 2, response: final("failed", { error: null }) }]);
    assert.deepEqual(turn.error, { code: "engine_lost", message: "gone" });
  }
});

test("settling with a response that still runs changes nothing", () => {
  const turn = play([created]);
  assert.equal(settle(turn, { status: "in_progress" }), turn);
});

test("the final response's own text wins", () => {
  const output = [{ type: "message", content: [{ type: "output_text", text: "whole" }] }];
  assert.equal(settle(play([created, text("wh", 1)]), final("completed", { output })).text, "whole");
  assert.equal(itemText({ content: "plain" }), "plain");
});

test("speed counts the tokens after the first, and is not guessed for a turn joined midway", () => {
  const events = [created, text("a", 1), text("b", 2), completed(3)];
  assert.equal(tokensPerSecond(play(events)), 10);
  assert.equal(tokensPerSecond(play(events, newTurn({ live: false }))), null);
});

// --- following ------------------------------------------------------------------------------------------------------

const framed = (...events) => new Response(events.map((event) => `data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`).join(""));

async function followed(opens, options = {}) {
  const asked = [];
  const pauses = [];
  const open = async (turn) => {
    asked.push(turn.sequence);
    const next = opens.shift();
    if (next instanceof Error) throw next;
    return next;
  };
  let last = null;
  const steps = follow(newTurn(), { open, resumable: true, pause: async (milliseconds) => pauses.push(milliseconds), now: () => 0, random: () => 1, ...options });
  for await (const turn of steps) last = turn;
  return { last, asked, pauses };
}

test("a stream that breaks is taken up after the last event seen", async () => {
  const { last, asked } = await followed([framed(created, text("a", 1)), framed(text("a", 1), text("b", 2), completed(3), "[DONE]")]);
  assert.deepEqual([last.text, last.status, asked], ["ab", "completed", [-1, 1]]);
});

test("pauses between tries grow and start afresh after an event", async () => {
  const lost = () => new TypeError("network error");
  const { pauses } = await followed([lost(), lost(), lost(), framed(created), lost(), framed(completed(1))]);
  assert.deepEqual(pauses, [500, 1000, 2000, 500, 1000]);
});

test("pauses never pass eight seconds and tries come to an end", async () => {
  const opens = Array.from({ length: 50 }, () => new TypeError("network error"));
  const pauses = [];
  await assert.rejects(followed(opens, { pause: async (milliseconds) => pauses.push(milliseconds) }), TypeError);
  assert.equal(pauses.length, 40);
  assert.equal(Math.max(...pauses), 8000);
});

test("pauses are spread, so that a crowd does not come back at once, and last as long as the server asks", async () => {
  const away = Object.assign(new Error("away"), { status: 503, code: "draining", retryAfterSeconds: 5 });
  const { pauses } = await followed([new TypeError("lost"), away, framed(created, completed(1))], { random: () => 0 });
  assert.deepEqual(pauses, [250, 5000]);
  const { pauses: latest } = await followed([new TypeError("lost"), away, framed(created, completed(1))], { random: () => 1 });
  assert.deepEqual(latest, [500, 7500]);
});

test("a stream that cannot be resumed ends with its break", async () => {
  await assert.rejects(followed([framed(created, text("a", 1))], { resumable: false }), Broken);
});

test("the server's refusal is final, also that a part is down, while the question has not begun", async () => {
  for (const [status, code] of [[409, "conversation_locked"], [503, "storage_down"]]) {
    const refused = Object.assign(new Error("no"), { status, code });
    await assert.rejects(followed([refused, framed(completed(0))]), refused);
  }
});

test("a proxy that finds nobody behind it is asked again", async () => {
  const nobody = Object.assign(new Error("bad gateway"), { status: 502, code: null });
  assert.equal((await followed([nobody, framed(created, completed(1))])).last.status, "completed");
});

test("what the gateway says of trouble is shown until the answer goes on", async () => {
  const states = [];
  const progress = (state, sequence_number) => ({ type: "deskmate:progress", sequence_number, state });
  const open = async () => framed(created, text("a", 1), progress("engine_lost", 2), progress("resuming", 3), text("b", 4), completed(5));
  for await (const turn of follow(newTurn(), { open, resumable: true })) states.push(turn.progress);
  assert.deepEqual(states, [null, null, "engine_lost", "resuming", null, null]);
});

test("a gateway that restarts in the middle of a turn is asked again", async () => {
  const away = Object.assign(new Error("away"), { status: 503 });
  const { last } = await followed([framed(created, text("a", 1)), away, framed(completed(2))]);
  assert.deepEqual([last.text, last.status], ["a", "completed"]);
});
