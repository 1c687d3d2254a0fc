// Model text to DOM nodes: Markdown to an allow-listed HTML, then through the sanitiser. Nothing else makes HTML.
import DOMPurify from "./vendor/dompurify.js";
import MarkdownIt from "./vendor/markdown-it.js";

const SAFE_PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const LONGEST_BARE_QUERY = 64;

const SANITISER = {
  ALLOWED_TAGS: ["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "blockquote", "ul", "ol", "li",
    "code", "pre", "a", "span", "table", "thead", "tbody", "tr", "th", "td"],
  ALLOWED_ATTR: ["href", "rel", "target", "class", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["rel", "target", "start"], // what they hold is no address
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** A function from Markdown to sanitised DOM nodes. */
export function createRenderer() {
  const toHtml = createParser();
  return (text) => DOMPurify.sanitize(toHtml(text), SANITISER);
}

/** A function from Markdown to HTML; it holds the rules for links and images and needs no DOM. */
export function createParser() {
  const markdown = new MarkdownIt("default", { html: false, linkify: true, breaks: true });
  markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
  markdown.validateLink = () => true; // every link becomes a token, so that the one rule below judges them all
  markdown.core.ruler.push("links", (state) => guard(state.tokens, state.Token));
  return (text) => markdown.render(text);
}

function guard(tokens, Token) {
  for (const token of tokens) {
    if (token.children) token.children = guardInline(token.children, Token);
    const alignment = /text-align:(left|center|right)/.exec(token.attrGet("style") ?? "")?.[1];
    if (token.attrs) token.attrs = token.attrs.filter(([name]) => name !== "style");
    if (alignment) token.attrJoin("class", `align-${alignment}`);
  }
}

/** Images become text; a link keeps its tag only when it may be followed, and then shows where it leads. */
function guardInline(tokens, Token) {
  const out = [];
  let link = null;
  for (const token of tokens) {
    if (token.type === "image") out.push(textToken(Token, `[image: ${token.attrGet("src")}]`));
    else if (token.type === "link_open") {
      link = { verdict: judge(token.attrGet("href"), token.info === "auto"), said: "" };
      if (link.verdict.follow) out.push(linkOpen(token, link.verdict));
    } else if (token.type === "link_close" && link) {
      out.push(...whereTo(link, Token), ...(link.verdict.follow ? [token] : []));
      link = null;
    } else {
      if (link) link.said += token.content;
      out.push(token);
    }
  }
  return out;
}

/** What may be done with a link: `follow` it, and the `shown` address that says where it leads. */
export function judge(href, bare) {
  const url = parse(href);
  if (!url || !SAFE_PROTOCOLS.has(url.protocol)) return { follow: false, shown: bare ? "" : href };
  if (bare && url.search.length > LONGEST_BARE_QUERY) return { follow: false, shown: "" };
  return { follow: true, href: url.href, shown: url.protocol === "mailto:" ? url.pathname : url.host };
}

function parse(href) {
  try {
    return new URL(href); // no base: a relative address in model text leads nowhere
  } catch {
    return null;
  }
}

function linkOpen(token, { href }) {
  token.attrs = [["href", href], ["rel", "noopener noreferrer nofollow"], ["target", "_blank"]];
  return token;
}

function whereTo({ verdict, said }, Token) {
  if (!verdict.shown || says(said, verdict.shown)) return [];
  const open = new Token("host_open", "span", 1);
  open.attrSet("class", "host");
  return [open, textToken(Token, ` (${verdict.shown})`), new Token("host_close", "span", -1)];
}

/** Only the address itself in plain sight counts: "bank.example.evil.test" does not say "bank.example". */
function says(text, shown) {
  const bare = text.trim().toLowerCase().replace(/^https?:\/\//, "");
  return bare === shown || bare.startsWith(`${shown}/`) || bare.startsWith(`${shown}?`);
}

function textToken(Token, content) {
  const token = new Token("text", "", 0);
  token.content = content;
  return token;
}
