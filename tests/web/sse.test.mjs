// The SSE parser: whatever the network does to the bytes, the events stay the same.
import assert from "node:assert/strict";
import { test } from "node:test";
import { events } from "../../gateway/web/sse.js";

const EVENTS = ['{"delta":"你好,世界"}', '{"delta":"👩‍🚀😀 é ok"}', "[DONE]"];
const STREAM = `: heartbeat\n\nevent: a\ndata: ${EVENTS[0]}\n\nevent: b\nid: 7\ndata:${EVENTS[1]}\n\n:\n\ndata: [DONE]\n\n`;
const encode = (text) => new TextEncoder().encode(text);

function bodyOf(...chunks) {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
}

const all = async (body) => Array.fromAsync ? Array.fromAsync(events(body)) : collect(events(body));
async function collect(iterable) {
  const found = [];
  for await (const one of iterable) found.push(one);
  return found;
}

for (const [name, newline] of [["\\n", "\n"], ["\\r\\n", "\r\n"], ["\\r", "\r"]]) {
  const bytes = encode(STREAM.replaceAll("\n", newline));

  test(`a stream with ${name} cut in two at every byte gives the same events`, async () => {
    for (let at = 0; at <= bytes.length; at++) {
      assert.deepEqual(await all(bodyOf(bytes.slice(0, at), bytes.slice(at))), EVENTS, `cut at byte ${at}`);
    }
  });

  test(`a stream with ${name} in pieces of any size gives the same events`, async () => {
    for (let size = 1; size <= 70; size++) {
      const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, n) => bytes.slice(n * size, (n + 1) * size));
      assert.deepEqual(await all(bodyOf(...chunks)), EVENTS, `pieces of ${size} bytes`);
    }
  });
}

test("several data lines are one event", async () => {
  assert.deepEqual(await all(bodyOf(encode("data: one\ndata:  two\n\n"))), ["one\n two"]);
});

test("an event that was not finished is not an event", async () => {
  assert.deepEqual(await all(bodyOf(encode("data: whole\n\ndata: half"))), ["whole"]);
});

test("a body that fails throws what it failed with", async () => {
  const broken = new ReadableStream({ pull: (controller) => controller.error(new TypeError("network error")) });
  await assert.rejects(all(broken), TypeError);
});

test("a body that falls silent ends", async () => {
  const silent = new ReadableStream({ start: (controller) => controller.enqueue(encode("data: one\n\n")) });
  assert.deepEqual(await collect(events(silent, { silenceMs: 20 })), ["one"]);
});
