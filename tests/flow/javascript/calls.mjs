// Every call of the official JavaScript SDKs that applies here: one function each, which throws unless it works.
// `node calls.mjs GATEWAY KEY WORKER` says of each call, one JSON object a line, how it went. What it says of a call in
// docs/api.md is its second argument; tests/flow/test_javascript_sdk.py reads it there.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { standardResponseFormat, standardTextFormat } from "openai/helpers/standard-schema";
import { ResponsesWS } from "openai/resources/responses/ws";

const [gateway, key, worker] = process.argv.slice(2);
const LOOK_AGAIN_MS = 20;
const AT_MOST_MS = 30_000;
const HELLO = [{ role: "user", content: "hello there" }];
const FUNCTION = { name: "look_up", description: "Look it up.", parameters: { type: "object" } };
const CALLED = { tools: [{ name: "look_up", arguments: { word: "a" } }] };

const openai = new OpenAI({ baseURL: `${gateway}/v1`, apiKey: key, maxRetries: 0, timeout: 60_000 });
const anthropic = new Anthropic({ baseURL: gateway, apiKey: key, maxRetries: 0, timeout: 60_000 });

// the scripted worker ------------------------------------------------------------------------------------------------

const PLAIN = { pace_ms: 0, answer: null, tools: null };

const script = (changes) =>
  fetch(`${worker}/_fake/script`, { method: "POST", body: JSON.stringify({ ...PLAIN, ...changes }) });

/** What the engine was asked for, oldest first. */
async function generations() {
  const { requests } = await (await fetch(`${worker}/_fake/requests`)).json();
  return requests.filter(({ prompt_ids }) => prompt_ids.length);
}

async function until(isSo) {
  for (const end = Date.now() + AT_MOST_MS; !(await isSo()); await sleep(LOOK_AGAIN_MS)) {
    assert.ok(Date.now() < end, `not within ${AT_MOST_MS} ms: ${isSo}`);
  }
}

// what the calls share -----------------------------------------------------------------------------------------------

const WORKS = new Map();
const REFUSED = new Map(); // the status that a call gets
const call = (name, told, works) => WORKS.set(name, works);
const refused = (status, name, asks) => REFUSED.set(name, { status, asks });

async function all(iterable) {
  const found = [];
  for await (const one of iterable) found.push(one);
  return found;
}

/** A class of answers, as any library of schemas describes one. */
const WORD = {
  "~standard": {
    version: 1,
    vendor: "test",
    validate: (value) => (typeof value?.word === "string" ? { value } : { issues: [{ message: "no word" }] }),
    jsonSchema: { input: () => ({ type: "object", properties: { word: { type: "string" } }, required: ["word"] }) },
  },
};

// openai: models, chat, completions ----------------------------------------------------------------------------------

call("openai models.list", "the served model", async () => {
  assert.deepEqual((await all(openai.models.list())).map(({ id }) => id), ["fake"]);
});

call("openai models.retrieve", "the served one; any other is 404", async () => {
  assert.equal((await openai.models.retrieve("fake")).owned_by, "deskmate");
  await assert.rejects(openai.models.retrieve("other"), OpenAI.NotFoundError);
});

call("openai chat.completions.create", "whole and with `stream`, `tools`, `stop`, `seed`, `stream_options`", async () => {
  const asked = { model: "fake", messages: HELLO, max_tokens: 6 };
  const whole = await openai.chat.completions.create(asked);
  const streamed = { ...asked, stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await openai.chat.completions.create(streamed));
  const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
  assert.ok(text);
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(chunks.at(-1).usage.completion_tokens, 6);
  await script(CALLED);
  const tools = [{ type: "function", function: FUNCTION }];
  const called = await openai.chat.completions.create({ ...asked, max_tokens: 60, tools, seed: 1, stop: ["\n\n\n"] });
  assert.equal(called.choices[0].message.tool_calls[0].function.arguments, '{"word":"a"}');
});

call("openai chat.completions.stream", "the helper's events and its final completion", async () => {
  const stream = openai.chat.completions.stream({ model: "fake", messages: HELLO });
  let heard = "";
  stream.on("content", (delta) => (heard += delta));
  assert.equal((await stream.finalChatCompletion()).choices[0].message.content, heard);
  assert.ok(heard);
});

call("openai chat.completions.parse", "`response_format` of a class reaches the engine as its JSON schema", async () => {
  await script({ answer: '{"word": "tree"}' });
  const response_format = standardResponseFormat(WORD, "Word");
  const parsed = await openai.chat.completions.parse({ model: "fake", messages: HELLO, response_format });
  assert.deepEqual(parsed.choices[0].message.parsed, { word: "tree" });
  assert.equal((await generations()).at(-1).body.response_format.json_schema.name, "Word");
});

call("openai chat.completions.runTools", "a function of the caller's is called, and its result sent back", async () => {
  await script(CALLED);
  const look_up = async ({ word }) => {
    await script({});
    return `found ${word}`;
  };
  const tools = [{ type: "function", function: { ...FUNCTION, function: look_up, parse: JSON.parse } }];
  const runner = openai.chat.completions.runTools({ model: "fake", messages: HELLO, tools });
  assert.ok(await runner.finalContent());
  assert.equal(await runner.finalFunctionToolCallResult(), "found a");
});

call("openai completions.create", "whole and with `stream`", async () => {
  const asked = { model: "fake", prompt: "hello", max_tokens: 4 };
  const chunks = await all(await openai.completions.create({ ...asked, stream: true }));
  const text = chunks.map(({ choices }) => choices[0]?.text ?? "").join("");
  assert.ok(text);
  assert.equal((await openai.completions.create(asked)).choices[0].text, text);
});

// openai: responses --------------------------------------------------------------------------------------------------

call("openai responses.create", "whole, with `stream`, with `previous_response_id`", async () => {
  const whole = await openai.responses.create({ input: "hello" });
  const next = await openai.responses.create({ input: "go on", previous_response_id: whole.id });
  assert.ok(whole.output_text);
  assert.equal(next.previous_response_id, whole.id);
  const events = await all(await openai.responses.create({ input: "hello", stream: true }));
  const deltas = events.filter(({ type }) => type === "response.output_text.delta");
  assert.equal(deltas.map(({ delta }) => delta).join(""), whole.output_text);
  assert.equal(events.at(-1).type, "response.completed");
});

call("openai responses.create with tools", "a function is called, and its output sent back", async () => {
  await script(CALLED);
  const tools = [{ type: "function", strict: false, ...FUNCTION }];
  const called = await openai.responses.create({ input: "hello", tools });
  const [item] = called.output.filter(({ type }) => type === "function_call");
  assert.deepEqual(JSON.parse(item.arguments), { word: "a" });
  await script({});
  const input = [{ type: "function_call_output", call_id: item.call_id, output: "found" }];
  const said = await openai.responses.create({ input, tools, previous_response_id: called.id });
  assert.ok(said.output_text);
});

call("openai responses.create, aborted", "`stream.controller.abort()` stops the engine; what was said is kept", async () => {
  await script({ pace_ms: 100 });
  const stream = await openai.responses.create({ input: "hello", stream: true });
  let id;
  for await (const event of stream) {
    id ??= event.response?.id;
    if (event.type === "response.output_text.delta") stream.controller.abort();
  }
  await until(async () => (await generations()).at(-1).state === "aborted");
  await until(async () => (await openai.responses.retrieve(id)).status === "cancelled");
  assert.ok((await openai.responses.retrieve(id)).output_text);
});

call("openai responses.create, repeated", "a retry after a broken connection gets the first answer", async () => {
  let broken = 0;
  const breaks = async (...request) => {
    const response = await fetch(...request);
    if (broken++) return response;
    await response.text();
    throw new TypeError("the connection broke");
  };
  const before = (await generations()).length;
  const patient = openai.withOptions({ fetch: breaks, maxRetries: 2 });
  assert.equal((await patient.responses.create({ input: "hello again" })).status, "completed");
  assert.deepEqual([broken, (await generations()).length - before], [2, 1]);
});

call("openai responses.stream", "the helper's events and its final response", async () => {
  const stream = openai.responses.stream({ model: "fake", input: "hello" });
  let heard = "";
  stream.on("response.output_text.delta", ({ delta }) => (heard += delta));
  assert.equal((await stream.finalResponse()).output_text, heard);
  assert.ok(heard);
});

call("openai responses.parse", "`text.format` of a class, read back as one", async () => {
  await script({ answer: '{"word": "tree"}' });
  const text = { format: standardTextFormat(WORD, "Word") };
  assert.deepEqual((await openai.responses.parse({ model: "fake", input: "hello", text })).output_parsed, { word: "tree" });
});

call("openai responses.retrieve", "whole; with `stream` a replay, from `starting_after` on", async () => {
  const made = await openai.responses.create({ input: "hello" });
  assert.deepEqual(await openai.responses.retrieve(made.id), made);
  const events = await all(await openai.responses.retrieve(made.id, { stream: true, starting_after: 3 }));
  assert.ok(events[0].sequence_number > 3);
  assert.equal(events.at(-1).type, "response.completed");
});

call("openai responses.cancel", "any running response of the caller", async () => {
  await script({ pace_ms: 200 });
  const made = await openai.responses.create({ input: "hello", background: true });
  assert.equal((await openai.responses.cancel(made.id)).status, "cancelled");
});

call("openai responses.delete", "then it is 404", async () => {
  const made = await openai.responses.create({ input: "hello" });
  await openai.responses.delete(made.id);
  await assert.rejects(openai.responses.retrieve(made.id), OpenAI.NotFoundError);
});

call("openai responses.compact", "its output is an `input` as it is", async () => {
  const { output } = await openai.responses.compact({ model: "fake", input: "hello" });
  assert.equal((await openai.responses.create({ input: [...output, ...HELLO] })).status, "completed");
});

call("openai responses.inputItems.list", "in pages", async () => {
  const made = await openai.responses.create({ input: [...HELLO, { role: "assistant", content: "hi" }, ...HELLO] });
  const items = await all(openai.responses.inputItems.list(made.id, { order: "asc", limit: 2 }));
  assert.deepEqual(items.map(({ role }) => role), ["user", "assistant", "user"]);
});

call("openai responses.inputTokens.count", "what the prompt will hold", async () => {
  const { input_tokens } = await openai.responses.inputTokens.count({ input: "hello" });
  assert.equal((await openai.responses.create({ input: "hello" })).usage.input_tokens, input_tokens);
});

call("openai ResponsesWS", "two turns on one connection", async () => {
  const socket = new ResponsesWS(openai);
  const answered = async (message) => {
    socket.send({ type: "response.create", store: false, ...message });
    for await (const { type, message: event } of socket.stream()) {
      if (type === "message" && event.type === "response.completed") return event.response;
      assert.ok(type !== "error" && event?.type !== "response.failed", JSON.stringify(event));
    }
    return assert.fail("closed");
  };
  const first = await answered({ input: "hello" });
  const second = await answered({ input: "go on", previous_response_id: first.id });
  socket.close();
  assert.ok(second.output[0].content[0].text);
  const read = (await generations()).at(-1).body.messages.map(({ role }) => role);
  assert.deepEqual(read.slice(-3), ["user", "assistant", "user"]);
});

// openai: conversations ----------------------------------------------------------------------------------------------

call("openai conversations.create", "empty, or with items and metadata", async () => {
  assert.deepEqual((await openai.conversations.create()).metadata, {});
  const made = await openai.conversations.create({ items: HELLO, metadata: { a: "b" } });
  assert.deepEqual(made.metadata, { a: "b" });
});

call("openai conversations.retrieve", "as it was made", async () => {
  const made = await openai.conversations.create();
  assert.deepEqual(await openai.conversations.retrieve(made.id), made);
});

call("openai conversations.update", "other metadata", async () => {
  const { id } = await openai.conversations.create({ metadata: { a: "b" } });
  assert.deepEqual((await openai.conversations.update(id, { metadata: { c: "d" } })).metadata, { c: "d" });
});

call("openai conversations.delete", "then it is 404", async () => {
  const { id } = await openai.conversations.create();
  assert.ok((await openai.conversations.delete(id)).deleted);
  await assert.rejects(openai.conversations.retrieve(id), OpenAI.NotFoundError);
});

call("openai conversations.items.create", "up to 20 at once", async () => {
  const { id } = await openai.conversations.create();
  assert.equal((await openai.conversations.items.create(id, { items: Array(20).fill(HELLO[0]) })).data.length, 20);
  const more = openai.conversations.items.create(id, { items: Array(21).fill(HELLO[0]) });
  await assert.rejects(more, OpenAI.BadRequestError);
});

call("openai conversations.items.list", "in pages", async () => {
  const { id } = await openai.conversations.create({ items: Array(3).fill(HELLO[0]) });
  assert.equal((await all(openai.conversations.items.list(id, { limit: 2 }))).length, 3);
});

call("openai conversations.items.retrieve", "one item", async () => {
  const { id } = await openai.conversations.create({ items: HELLO });
  const [item] = await all(openai.conversations.items.list(id));
  assert.deepEqual(await openai.conversations.items.retrieve(item.id, { conversation_id: id }), item);
});

call("openai conversations.items.delete", "the answer is the conversation", async () => {
  const { id } = await openai.conversations.create({ items: [...HELLO, ...HELLO] });
  const [item] = await all(openai.conversations.items.list(id));
  assert.equal((await openai.conversations.items.delete(item.id, { conversation_id: id })).id, id);
  assert.equal((await all(openai.conversations.items.list(id))).length, 1);
});

// anthropic ----------------------------------------------------------------------------------------------------------

const SHORT = { model: "fake", max_tokens: 6, messages: HELLO };

call("anthropic messages.create", "whole and with `stream`, `system`, `stop_sequences`", async () => {
  const told = { ...SHORT, system: "Be short." };
  const whole = await anthropic.messages.create(told);
  assert.equal(whole.stop_reason, "max_tokens");
  const word = whole.content[0].text.split(/\s+/)[2];
  const stopped = await anthropic.messages.create({ ...told, stop_sequences: [word] });
  assert.deepEqual([stopped.stop_reason, stopped.stop_sequence], ["stop_sequence", word]);
  const kinds = (await all(await anthropic.messages.create({ ...SHORT, stream: true }))).map(({ type }) => type);
  assert.deepEqual([kinds[0], kinds.at(-1)], ["message_start", "message_stop"]);
});

call("anthropic messages.create with tools", "`tool_use` blocks, and their results sent back", async () => {
  await script(CALLED);
  const tools = [{ name: "look_up", input_schema: { type: "object" } }];
  const called = await anthropic.messages.create({ ...SHORT, max_tokens: 40, tools });
  assert.deepEqual([called.stop_reason, called.content[0].input], ["tool_use", { word: "a" }]);
  await script({});
  const { type, id, name, input } = called.content[0];
  const result = [{ type: "tool_result", tool_use_id: id, content: "found" }];
  const messages = [...HELLO, { role: "assistant", content: [{ type, id, name, input }] }, { role: "user", content: result }];
  assert.ok((await anthropic.messages.create({ ...SHORT, messages, tools })).content[0].text);
});

call("anthropic messages.stream", "the helper's text and its final message; `abort()` stops the engine", async () => {
  const stream = anthropic.messages.stream(SHORT);
  let heard = "";
  stream.on("text", (delta) => (heard += delta));
  assert.equal((await stream.finalMessage()).content[0].text, heard);
  await script({ pace_ms: 100 });
  const aborted = anthropic.messages.stream({ ...SHORT, max_tokens: 60 });
  aborted.on("text", () => aborted.abort());
  await assert.rejects(aborted.finalMessage(), Anthropic.APIUserAbortError);
  await until(async () => (await generations()).at(-1).state === "aborted");
});

call("anthropic messages.countTokens", "what `messages.create` then uses", async () => {
  const { input_tokens } = await anthropic.messages.countTokens({ model: "fake", messages: HELLO });
  assert.equal((await anthropic.messages.create(SHORT)).usage.input_tokens, input_tokens);
});

call("anthropic models.list", "the served model", async () => {
  assert.deepEqual((await all(anthropic.models.list())).map(({ display_name }) => display_name), ["fake"]);
});

call("anthropic models.retrieve", "with the time since when it is served", async () => {
  assert.ok(Date.parse((await anthropic.models.retrieve("fake")).created_at));
});

// errors -------------------------------------------------------------------------------------------------------------

call("openai errors", "`BadRequestError`, `AuthenticationError`, `NotFoundError`, `ConflictError`, each with `code`", async () => {
  const is = (kind, code) => (error) => error instanceof kind && error.code === code && Boolean(error.requestID);
  const { id } = await openai.conversations.create();
  await script({ pace_ms: 200 });
  const { id: running } = await openai.responses.create({ input: "hello", conversation: id, background: true });
  const patient = openai.withOptions({ maxRetries: 2 }); // which would repeat a plain 409
  const busy = patient.responses.create({ input: "and", conversation: id });
  await assert.rejects(busy, is(OpenAI.ConflictError, "conversation_locked"));
  await openai.responses.cancel(running);
  const unknown = openai.responses.create({ input: "hello", wibble: 1 });
  await assert.rejects(unknown, is(OpenAI.BadRequestError, "unknown_parameter"));
  await assert.rejects(openai.models.retrieve("other"), is(OpenAI.NotFoundError, "model_not_found"));
  const stranger = openai.withOptions({ apiKey: "dm_live_none" });
  await assert.rejects(stranger.models.list(), is(OpenAI.AuthenticationError, "invalid_api_key"));
});

call("anthropic errors", "`BadRequestError`, `AuthenticationError`, `NotFoundError` in Anthropic's shape", async () => {
  const is = (kind, type) => ({ constructor, error }) => constructor === kind && error.error.type === type;
  const harmful = anthropic.messages.create({ ...SHORT, priority: 1 });
  await assert.rejects(harmful, is(Anthropic.BadRequestError, "invalid_request_error"));
  const other = anthropic.messages.create({ ...SHORT, model: "other" });
  await assert.rejects(other, is(Anthropic.NotFoundError, "not_found_error"));
  const stranger = new Anthropic({ baseURL: gateway, apiKey: "dm_live_none" });
  await assert.rejects(stranger.models.list(), is(Anthropic.AuthenticationError, "authentication_error"));
});

// what is refused, by its type ---------------------------------------------------------------------------------------

refused(404, "openai chat.completions.list", () => openai.chat.completions.list());
refused(404, "openai chat.completions.retrieve", () => openai.chat.completions.retrieve("a"));
refused(404, "openai chat.completions.update", () => openai.chat.completions.update("a", { metadata: {} }));
refused(404, "openai chat.completions.delete", () => openai.chat.completions.delete("a"));
refused(404, "openai chat.completions.messages.list", () => openai.chat.completions.messages.list("a"));
refused(404, "openai embeddings.create", () => openai.embeddings.create({ model: "fake", input: "a" }));
refused(415, "openai files.create", () => openai.files.create({ file: new File(["a"], "a"), purpose: "user_data" }));
refused(404, "openai files.list", () => openai.files.list());
refused(404, "openai files.retrieve", () => openai.files.retrieve("a"));
refused(404, "openai files.content", () => openai.files.content("a"));
refused(404, "openai files.delete", () => openai.files.delete("a"));
refused(404, "openai vectorStores.create", () => openai.vectorStores.create({}));
refused(404, "openai vectorStores.list", () => openai.vectorStores.list());
refused(404, "openai vectorStores.retrieve", () => openai.vectorStores.retrieve("a"));
refused(404, "openai vectorStores.update", () => openai.vectorStores.update("a", {}));
refused(404, "openai vectorStores.delete", () => openai.vectorStores.delete("a"));
refused(404, "openai vectorStores.search", () => openai.vectorStores.search("a", { query: "a" }));
refused(405, "openai models.delete", () => openai.models.delete("fake"));

// helpers that only call others of these, and what the route does not have
const NOT_CALLED = [
  /^openai files\.waitForProcessing$/,
  /^openai vectorStores\.(files|fileBatches)\./,
  /^anthropic messages\.parse$/,
  /^anthropic messages\.batches\./,
];

// running them -------------------------------------------------------------------------------------------------------

/** Every public method of a resource of a client, by its path. */
function* methods(resource, path) {
  for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource))) {
    if (name !== "constructor" && !name.startsWith("_")) yield `${path}.${name}`;
  }
  for (const [name, part] of Object.entries(resource)) {
    if (!name.startsWith("_") && part && typeof part === "object") yield* methods(part, `${path}.${name}`);
  }
}

function leftOut() {
  const names = ["models", "completions", "responses", "conversations", "embeddings", "files", "vectorStores", "chat"];
  const found = [...names.flatMap((name) => [...methods(openai[name], `openai ${name}`)])];
  found.push(...["models", "messages"].flatMap((name) => [...methods(anthropic[name], `anthropic ${name}`)]));
  assert.ok(found.length > 60);
  return found.filter((name) => !WORKS.has(name) && !REFUSED.has(name) && !NOT_CALLED.some((one) => one.test(name)));
}

async function isRefused({ status, asks }) {
  await assert.rejects(asks, (error) => error.status === status && Boolean(error.code) && Boolean(error.type));
}

async function tell(name, works) {
  await script({});
  const error = await works().then(() => null, (thrown) => thrown.stack ?? String(thrown));
  console.log(JSON.stringify({ name, error }));
}

for (const [name, works] of WORKS) await tell(name, works);
for (const [name, how] of REFUSED) await tell(name, () => isRefused(how));
await tell("no call is left out", async () => assert.deepEqual(leftOut(), []));
