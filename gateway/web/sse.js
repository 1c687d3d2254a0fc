// Server-sent events out of a response body, correct wherever the network cuts it. Knows nothing about what they mean.

/**
 * Yields the `data` of each event: the text after `data:`, several lines joined by a newline; comments are skipped.
 * A body that sends nothing for `silenceMs`, not even a comment, is given up as if it had ended.
 */
export async function* events(body, { silenceMs = 45_000 } = {}) {
  const lines = new Lines();
  let data = [];
  for await (const text of texts(body, silenceMs)) {
    for (const line of lines.push(text)) {
      if (line === "") {
        if (data.length) yield data.join("\n");
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  }
}

/** Whole code points only: the decoder keeps the beginning of a character until its other bytes arrive. */
async function* texts(body, silenceMs) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const giveUp = () => reader.cancel().catch(() => {}); // a body that failed has thrown that from read() already
  let watch;
  try {
    for (;;) {
      watch = setTimeout(giveUp, silenceMs);
      const { done, value } = await reader.read();
      clearTimeout(watch);
      if (done) return;
      yield value;
    }
  } finally {
    clearTimeout(watch);
    giveUp();
  }
}

/** Complete lines of a text that arrives in pieces; a line ends with \n, \r\n or \r. */
class Lines {
  #rest = "";
  #afterReturn = false; // the last piece ended in \r: a \n at the head of the next one belongs to it

  push(text) {
    const lines = (this.#rest + (this.#afterReturn && text.startsWith("\n") ? text.slice(1) : text)).split(/\r\n|\n|\r/);
    this.#afterReturn = text.endsWith("\r");
    this.#rest = lines.pop();
    return lines;
  }
}
