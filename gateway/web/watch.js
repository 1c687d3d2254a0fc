// When to look whether something changed elsewhere: often at first, ever more rarely while nothing does, at once when
// somebody comes back to the page. Knows the time and the window; not what is looked at.

const SLOWER = 1.4;

/**
 * Calls `look()` while the page is visible until `signal` fires; it resolves to whether anything had changed. The pauses grow
 * from `soonMs` to `longestMs`. Returns a function that looks at once.
 */
export function watch(look, { signal, soonMs, longestMs, page = document, window = globalThis, random = Math.random }) {
  let pause = soonMs;
  let timer = null;
  let looking = false;

  async function once() {
    if (looking) return;
    looking = true;
    let changed = false;
    try {
      changed = await look();
    } catch {
      // Whoever asks something next is told what is wrong; here the next look may go right.
    }
    looking = false;
    pause = changed ? soonMs : Math.min(longestMs, pause * SLOWER);
    later();
  }

  function later() {
    clearTimeout(timer);
    if (!signal.aborted && !page.hidden) timer = setTimeout(once, pause * (0.75 + random() / 2)); // not all tabs at once
  }

  function soon() {
    pause = soonMs;
    clearTimeout(timer);
    if (!page.hidden) once();
  }

  for (const [target, type] of [[page, "visibilitychange"], [window, "focus"], [window, "online"]]) target.addEventListener(type, soon, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  later();
  return soon;
}
