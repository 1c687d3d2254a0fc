// Every request the page makes, one function each. Knows the routes and the error envelope; nothing of the DOM.

/** The server's refusal: HTTP `status`, the stable `code`, its `message`, the `requestId` to quote, seconds to wait. */
export class ApiError extends Error {
  constructor(response, envelope) {
    super(envelope?.message ?? response.statusText);
    this.status = response.status;
    this.code = envelope?.code ?? null;
    this.requestId = response.headers.get("x-request-id");
    this.retryAfterSeconds = Number(response.headers.get("retry-after")) || null;
  }
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  const response = await fetch(path, {
    method,
    signal,
    headers: body === undefined ? headers : { "content-type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
    cache: "no-store",
    redirect: "error",
    referrerPolicy: "no-referrer",
  });
  if (response.ok) return response;
  throw new ApiError(response, await envelopeOf(response));
}

async function envelopeOf(response) {
  try {
    return (await response.json()).error;
  } catch (error) {
    if (error instanceof SyntaxError) return null; // not our gateway's words: a proxy in front of it, perhaps
    throw error;
  }
}

const json = async (...request) => (await send(...request)).json();
const path = (strings, ...ids) => String.raw({ raw: strings }, ...ids.map(encodeURIComponent));

export const signInByLink = (token) => json("POST", "/auth/link", { body: { token } });
export const signIn = (name, password) => json("POST", "/auth/login", { body: { name, password } });
export const signOut = () => send("POST", "/auth/logout", { body: {} });
export const me = async () => (await json("GET", "/auth/me")).user;
export const changePassword = (current, fresh) =>
  send("POST", "/auth/password", { body: current ? { current, new: fresh } : { new: fresh } });

/** The start's state (200 and 503 both carry it) with `skewSeconds`: the server's clock minus this one's. */
export async function readiness() {
  const response = await fetch("/readyz", { cache: "no-store", credentials: "same-origin" });
  if (![200, 503].includes(response.status)) throw new ApiError(response, await envelopeOf(response));
  const served = Date.parse(response.headers.get("date") ?? "") || Date.now();
  return { ...(await response.json()), skewSeconds: (served - Date.now()) / 1000 };
}
export const models = async () => (await json("GET", "/v1/models")).data;

export function conversations({ after, query, limit = 30 } = {}) {
  const parameters = new URLSearchParams({ limit });
  if (after) parameters.set("after", after);
  if (query) parameters.set("query", query);
  return json("GET", `/v1/conversations?${parameters}`);
}
export const conversation = (id) => json("GET", path`/v1/conversations/${id}`);
const MOST_ITEMS = 20; // in one request

/** A new conversation that begins with `messages`, each `{role, text}`. */
export async function createConversation({ metadata = {}, messages = [] } = {}) {
  const items = messages.map(({ role, text }) => ({ type: "message", role, content: text }));
  const made = await json("POST", "/v1/conversations", { body: { metadata, items: items.slice(0, MOST_ITEMS) } });
  for (let at = MOST_ITEMS; at < items.length; at += MOST_ITEMS) {
    await json("POST", path`/v1/conversations/${made.id}/items`, { body: { items: items.slice(at, at + MOST_ITEMS) } });
  }
  return items.length > MOST_ITEMS ? conversation(made.id) : made;
}

/** All conversations of one tree of branches, the last used first. */
export async function tree(root) {
  const all = [];
  for (let page = { has_more: true }; page.has_more;) {
    const parameters = new URLSearchParams({ root, limit: 100, ...(page.last_id ? { after: page.last_id } : {}) });
    page = await json("GET", `/v1/conversations?${parameters}`);
    all.push(...page.data);
  }
  return all;
}
export const updateConversation = (id, metadata) => json("POST", path`/v1/conversations/${id}`, { body: { metadata } });
export const deleteConversation = (id) => send("DELETE", path`/v1/conversations/${id}`);

/** Every item of a conversation, oldest first. */
export async function items(id) {
  const all = [];
  for (let page = { has_more: true }; page.has_more;) {
    const after = page.last_id ? `&after=${encodeURIComponent(page.last_id)}` : "";
    page = await json("GET", `${path`/v1/conversations/${id}/items`}?order=asc&limit=100${after}`);
    all.push(...page.data);
  }
  return all;
}

/** Opens the stream of a new turn; the same `key` posted again joins the same turn. Refused unless the conversation is at `version`. */
export const respond = (body, key, version, signal) =>
  send("POST", "/v1/responses", {
    body: { ...body, stream: true },
    headers: { "idempotency-key": key, ...(version === null ? {} : { "if-match": String(version) }) },
    signal,
  });
/** Opens the stream of a turn again, after event number `sequence` (-1: from its beginning). */
export const resume = (id, sequence, signal) =>
  send("GET", path`/v1/responses/${id}` + "?stream=true" + (sequence < 0 ? "" : `&starting_after=${sequence}`), { signal });
export const cancel = (id) => json("POST", path`/v1/responses/${id}/cancel`, { body: {} });
export const countTokens = async (body, signal) =>
  (await json("POST", "/v1/responses/input_tokens", { body, signal })).input_tokens;

export const users = async () => (await json("GET", "/admin/users")).data;
export const delegates = (id, query) =>
  json("GET", path`/admin/users/${id}/speaks_for?` + new URLSearchParams({ query }));
export const createUser = (name, role) => json("POST", "/admin/users", { body: { name, role } });
export const setUserEnabled = (id, enabled) =>
  send("POST", path`/admin/users/${id}/` + (enabled ? "enable" : "disable"), { body: {} });
export const signInLink = (id) => json("POST", path`/admin/users/${id}/link`, { body: {} });
export const userLimits = (id) => json("GET", path`/admin/users/${id}/limits`);
export const setUserLimits = (id, wishes) => json("POST", path`/admin/users/${id}/limits`, { body: wishes });
export const userWeight = (id) => json("GET", path`/admin/users/${id}/weight`);
export const setUserWeight = (id, weight) => json("POST", path`/admin/users/${id}/weight`, { body: { weight } });
export const keyLimits = (id) => json("GET", path`/admin/keys/${id}/limits`);
export const setKeyLimits = (id, wishes) => json("POST", path`/admin/keys/${id}/limits`, { body: wishes });
export const keys = async () => (await json("GET", "/admin/keys")).data;
export const createKey = (fields) => json("POST", "/admin/keys", { body: fields });
export const revokeKey = (id) => send("DELETE", path`/admin/keys/${id}`);
