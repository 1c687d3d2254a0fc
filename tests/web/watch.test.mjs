// When the page looks whether something changed elsewhere: rarely while nothing does, at once when somebody comes back.
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { watch } from "../../gateway/web/watch.js";

function watching(look) {
  mock.timers.enable({ apis: ["setTimeout"] });
  const page = Object.assign(new EventTarget(), { hidden: false });
  const window = new EventTarget();
  const end = new AbortController();
  const looked = { times: 0 };
  const counted = async () => (looked.times++, look());
  const soon = watch(counted, { signal: end.signal, soonMs: 1000, longestMs: 3000, page, window, random: () => 0.5 });
  const after = async (milliseconds) => {
    mock.timers.tick(milliseconds);
    for (let turns = 0; turns < 10; turns++) await null; // the look's promises
  };
  return { page, window, end, looked, soon, after };
}

test.afterEach(() => mock.timers.reset());

test("pauses grow while nothing changes, up to a limit, and start afresh after a change", async () => {
  let changed = false;
  const { looked, after } = watching(async () => changed);
  const pauses = [];
  for (let passed = 0; looked.times < 5;) {
    const before = looked.times;
    await after(100);
    passed += 100;
    if (looked.times > before) pauses.push(passed), (passed = 0);
  }
  assert.deepEqual(pauses, [1000, 1400, 2000, 2800, 3000]);
  changed = true;
  await after(3000);
  await after(1000);
  assert.equal(looked.times, 7);
});

test("a hidden page is not asked for; it looks at once when it is shown, comes to the front or is online again", async () => {
  const { page, window, looked, after } = watching(async () => false);
  page.hidden = true;
  page.dispatchEvent(new Event("visibilitychange"));
  await after(60_000);
  assert.equal(looked.times, 0);
  page.hidden = false;
  page.dispatchEvent(new Event("visibilitychange"));
  await after(0);
  for (const type of ["focus", "online"]) {
    window.dispatchEvent(new Event(type));
    await after(0);
  }
  assert.equal(looked.times, 3);
});

test("a look that fails is followed by another", async () => {
  const { looked, after } = watching(async () => {
    throw new Error("away");
  });
  await after(1000);
  await after(1400);
  assert.equal(looked.times, 2);
});

test("nobody looks after the end", async () => {
  const { end, window, looked, after } = watching(async () => false);
  end.abort();
  window.dispatchEvent(new Event("focus"));
  await after(60_000);
  assert.equal(looked.times, 0);
});
