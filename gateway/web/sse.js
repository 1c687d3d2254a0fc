// Server-sent events out of a response body, correct wherever the network cuts it. Knows nothing about what they mean.

/** Yields the `data` of each event: the text after `data:`, several lines joined by a newline; comments are skipped. */
export async function* events(body) {
  const lines = new Lines();
  let data = [];
  for await (const text of texts(body)) {
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
async function* texts(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    reader.cancel().catch(() => {}); // the body may already have failed; that error was thrown above
  }
}

/** Complete lines of a text that arrives in pieces; a line ends with \n, \r\n or \r. */
class Lines {
  #rest = "";

  push(text) {
    const all = this.#rest + text;
    const keep = all.endsWith("\r") ? 1 : 0; // its \n may come with the next piece
    const lines = all.slice(0, all.length - keep).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + all.slice(all.length - keep);
    return lines;
  }
}
