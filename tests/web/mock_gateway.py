"""A scripted gateway for the page's tests: its routes, answers as told. Holds no rule of the real gateway."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.listening import stop_listening

WEB = Path(__file__).parents[2] / "gateway" / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types chat dompurify"
)
PAGE_HEADERS = {"content-security-policy": CSP, "cache-control": "no-cache"}
MODEL = "SmolLM2-135M-Instruct"
DEFAULTS = {"max_output_tokens": 1024, "temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}
STAGES = ("redis", "gateway", "plan", "import", "weights", "memory", "warmup", "serve")
ENDED = ("completed", "incomplete", "failed", "cancelled")
TIMES = {
    "deskmate:queued_seconds": "2.500", "deskmate:prefill_seconds": "0.250", "deskmate:decode_seconds": "1.500",
    "deskmate:cached_tokens": "12",
}  # fmt: skip

Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Script:
    """How one question is answered. `hold_after` counts deltas; a held answer goes on at `release()`."""

    text: str = "Certainly."
    thoughts: str = ""
    hold_thoughts: bool = False
    chunk_bytes: int | None = None
    queue: tuple[tuple[int, float | None], ...] = ()
    progress: tuple[str, ...] = ()
    hold_after: int | None = None
    lose_first: bool = False
    pause_seconds: float = 0.0
    ending: str = "completed"
    error: Json | None = None
    refuse: tuple[int, str] | None = None
    retry_after: int | None = None


@dataclass
class Turn:
    id: str
    script: Script
    store: bool
    conversation: str | None
    input_tokens: int
    log: list[Json] = field(default_factory=list)
    text: str = ""
    thoughts: str = ""
    status: str = "queued"
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False

    def say(self, kind: str, **fields: Any) -> None:
        self.log.append({"type": kind, "sequence_number": len(self.log), **fields})
        self.changed.set()
        self.changed = asyncio.Event()

    def resource(self) -> Json:
        output = [thought(self.thoughts)] if self.thoughts else []
        output += [item("assistant", self.text, self.status)] if self.text else []
        words = len(self.text) // 4 + 1
        usage = {"input_tokens": self.input_tokens, "output_tokens": words, "total_tokens": self.input_tokens + words}
        return {
            "id": self.id, "object": "response", "status": self.status, "output": output, "error": self.script.error,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "usage": usage if self.status in ENDED else None, "store": self.store,
            "metadata": TIMES if self.status in ENDED else {},
        }  # fmt: skip


def item(role: str, text: str, status: str = "completed", response: str | None = None) -> Json:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text, "annotations": []}]
    made = {"id": f"msg_{secrets.token_hex(4)}", "type": "message", "role": role, "status": status, "content": content}
    return made | ({"deskmate:response": response} if response else {})


def thought(text: str, response: str | None = None) -> Json:
    content = [{"type": "reasoning_text", "text": text}]
    made = {"id": f"rs_{secrets.token_hex(4)}", "type": "reasoning", "summary": [], "content": content}
    return made | {"status": "completed"} | ({"deskmate:response": response} if response else {})


def refusal(status: int, code: str, retry_after: int | None = None) -> web.Response:
    headers = {"x-request-id": "req_mock_0123456789"} | ({"retry-after": str(retry_after)} if retry_after else {})
    error = {"message": f"refused: {code}", "type": "mock", "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


class MockGateway:
    """Runs in a thread of its own. Everything public may be read, and set between requests, by the test's thread."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.default = Script()
        self.bodies: list[Json] = []
        self.requests: list[str] = []
        self.conversations: dict[str, Json] = {}
        self.items: dict[str, list[Json]] = {}
        self.turns: dict[str, Turn] = {}
        self.keys_posted: dict[str, str] = {}
        self.users: dict[str, Json] = {}
        self.delegates: dict[str, list[Json]] = defaultdict(list)
        self.passwords: dict[str, str] = {}
        self.api_keys: dict[str, Json] = {}
        self.weights: dict[str, float] = defaultdict(lambda: 1.0)  # of a person
        self.limits: dict[str, Json] = defaultdict(dict)  # of a person or key: what was wished
        self.links: dict[str, str] = {}
        self.sessions: dict[str, str] = {}
        self.demo = True
        self.failing_readyz = False
        self.origins_deleted = False
        self.started = time.time()
        self.add_user("Ada", "administrator")
        self._gate = asyncio.Event()
        self._engine = asyncio.Event()
        self._engine.set()
        self._streams: list[asyncio.Transport] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    # --- the test's side -------------------------------------------------------------------------------------------

    def __enter__(self) -> MockGateway:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def ready(self) -> bool:
        return self._engine.is_set()

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._loop.call_soon_threadsafe(self._engine.set if ready else self._engine.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    def tell(self, state: str) -> None:
        """Why the answers that are held do not go on."""
        for turn in [turn for turn in self.turns.values() if turn.status not in ENDED]:
            say = functools.partial(turn.say, "deskmate:progress", state=state, eta_seconds=None)
            self._loop.call_soon_threadsafe(say)

    def cut_streams(self) -> None:
        """Closes every stream's connection without its last chunk: to the page the connection broke."""
        for transport in self._streams:
            self._loop.call_soon_threadsafe(transport.close)

    def link(self, name: str = "Ada") -> str:
        token = secrets.token_urlsafe(12)
        self.links[token] = name
        return f"{self.address}/#link={token}"

    def add_user(self, name: str, role: str = "member") -> Json:
        user = {"id": f"user_{len(self.users)}", "name": name, "role": role, "department": None, "disabled": False,
                "created_at": int(time.time()), "keys": 0, "speaks_for": 0}  # fmt: skip
        self.users[name] = user
        return user

    def add_delegates(self, owner: str, *names: str) -> None:
        """People whom the front end of `owner` names."""
        for name in names:
            self.delegates[owner].append(
                {"id": f"user_of_{owner}_{name}", "name": f"{owner}/{name}", "disabled": False}
            )
        self.users[owner]["speaks_for"] = len(self.delegates[owner])

    def add_conversation(self, title: str, *said: str, age_seconds: float = 0) -> str:
        found = self._new_conversation(title, age_seconds)
        self._say(found["id"], said)
        return str(found["id"])

    def say_elsewhere(self, conversation: str, *said: str) -> None:
        """A round that another window has had in the meantime."""
        self._say(conversation, said)
        self._touch(conversation)

    def _say(self, conversation: str, said: tuple[str, ...]) -> None:
        items = self.items[conversation]
        for number, text in enumerate(said):
            role = "assistant" if number % 2 else "user"
            items.append(item(role, text, response=f"resp_{conversation}_{(len(items)) // 2}"))

    # --- the server ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        runner = web.AppRunner(self._app(), shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._stop.wait()
        await stop_listening(server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._around])
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/", self._index), ("GET", "/web/{path:.+}", self._file), ("GET", "/readyz", self._readyz),
            ("POST", "/auth/link", self._auth_link), ("POST", "/auth/login", self._auth_login),
            ("GET", "/auth/me", self._me), ("POST", "/auth/logout", self._logout),
            ("POST", "/auth/password", self._password),
            ("GET", "/v1/models", self._models),
            ("POST", "/v1/responses", self._respond), ("POST", "/v1/responses/input_tokens", self._count),
            ("GET", "/v1/responses/{id}", self._resume), ("POST", "/v1/responses/{id}/cancel", self._cancel),
            ("GET", "/v1/conversations", self._list), ("POST", "/v1/conversations", self._create),
            ("GET", "/v1/conversations/{id}", self._get), ("POST", "/v1/conversations/{id}", self._update),
            ("DELETE", "/v1/conversations/{id}", self._delete), ("GET", "/v1/conversations/{id}/items", self._items),
            ("POST", "/v1/conversations/{id}/items", self._add_items),
            ("GET", "/admin/users", self._users), ("POST", "/admin/users", self._add_user),
            ("GET", "/admin/users/{id}/speaks_for", self._delegates),
            ("GET", "/admin/users/{id}/limits", self._limits), ("POST", "/admin/users/{id}/limits", self._limits),
            ("GET", "/admin/users/{id}/weight", self._weight), ("POST", "/admin/users/{id}/weight", self._weight),
            ("GET", "/admin/keys/{id}/limits", self._limits), ("POST", "/admin/keys/{id}/limits", self._limits),
            ("POST", "/admin/users/{id}/{verb}", self._user_verb),
            ("GET", "/admin/keys", self._keys), ("POST", "/admin/keys", self._add_key),
            ("DELETE", "/admin/keys/{id}", self._revoke),
        ]  # fmt: skip
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        open_to_all = request.path in ("/", "/readyz", "/auth/link", "/auth/login") or request.path.startswith("/web/")
        if not open_to_all and self._who(request) is None:
            return refusal(401, "not_signed_in")
        return await handler(request)

    def _who(self, request: web.Request) -> Json | None:
        return self.users.get(self.sessions.get(request.cookies.get("deskmate_sid", ""), ""))

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = WEB / request.match_info["path"]
        return web.FileResponse(path, headers=PAGE_HEADERS) if path.is_file() else refusal(404, "not_found")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self.failing_readyz:
            return refusal(500, "mock_broken")
        since = self.started
        stages = [stage(name, number, self.ready, since) for number, name in enumerate(STAGES)]
        states = {"redis": "ready", "gateway": "ready", "engine": "ready" if self.ready else "loading"}
        parts = [{"name": name, "state": state, "since": since} for name, state in states.items()]
        model = {"id": MODEL, "demo": self.demo, "context_tokens": 8192}
        body = {"ready": self.ready, "parts": parts, "stages": stages, "model": model}
        return web.json_response(body, status=200 if self.ready else 503)

    # --- people ----------------------------------------------------------------------------------------------------

    def _session(self, name: str) -> web.Response:
        sid = secrets.token_urlsafe(16)
        self.sessions[sid] = name
        response = web.json_response({"user": self._public(name)})
        response.set_cookie("deskmate_sid", sid, httponly=True, samesite="Strict")
        return response

    def _public(self, name: str) -> Json:
        user = self.users[name]
        told = {key: user[key] for key in ("id", "name", "role", "department")}
        return told | {"has_password": name in self.passwords}

    async def _auth_link(self, request: web.Request) -> web.Response:
        name = self.links.pop((await request.json())["token"], None)
        return self._session(name) if name else refusal(401, "link_invalid")

    async def _auth_login(self, request: web.Request) -> web.Response:
        body = await request.json()
        right = body["name"] in self.users and self.passwords.get(body["name"]) == body["password"]
        return self._session(body["name"]) if right else refusal(401, "invalid_credentials")

    async def _me(self, request: web.Request) -> web.Response:
        user = self._who(request)
        assert user is not None
        return web.json_response({"user": self._public(user["name"])})

    async def _logout(self, request: web.Request) -> web.Response:
        del self.sessions[request.cookies["deskmate_sid"]]
        return web.json_response({})

    async def _password(self, request: web.Request) -> web.Response:
        user, body = self._who(request), await request.json()
        assert user is not None
        if self.passwords.get(user["name"]) != body.get("current"):
            return refusal(400, "invalid_credentials")
        self.passwords[user["name"]] = body["new"]
        return web.json_response({})

    async def _users(self, request: web.Request) -> web.Response:
        return web.json_response({"data": list(self.users.values())})

    async def _add_user(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response(self.add_user(body["name"], body.get("role", "member")))

    async def _delegates(self, request: web.Request) -> web.Response:
        owner = next(name for name, one in self.users.items() if one["id"] == request.match_info["id"])
        found = [one for one in self.delegates[owner] if request.query["query"] in one["name"].partition("/")[2]]
        return web.json_response({"data": found[:2], "has_more": len(found) > 2})

    async def _user_verb(self, request: web.Request) -> web.Response:
        everybody = itertools.chain(self.users.values(), *self.delegates.values())
        user = next(one for one in everybody if one["id"] == request.match_info["id"])
        verb = request.match_info["verb"]
        if verb == "link":
            return web.json_response({"url": self.link(user["name"]), "expires_at": int(time.time()) + 86400})
        user["disabled"] = verb == "disable"
        return web.json_response(user)

    async def _limits(self, request: web.Request) -> web.Response:
        wishes = self.limits[request.match_info["id"]]
        if request.method == "POST":
            wishes |= await request.json()
        answer: Json = {}
        for kind in ("tokens_per_day", "tokens_per_month", "requests_per_minute", "concurrency"):
            own = wishes.get(kind, "default")
            limit = own if isinstance(own, int) else 512 if kind == "concurrency" and own == "default" else None
            answer[kind] = {"limit": limit, "used": 1234, "own": own}
        if request.path.startswith("/admin/keys/"):
            del answer["concurrency"]["own"]
        return web.json_response(answer)

    async def _weight(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.weights[request.match_info["id"]] = (await request.json())["weight"]
        return web.json_response({"weight": self.weights[request.match_info["id"]]})

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response({"data": list(self.api_keys.values())})

    async def _add_key(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["user"] not in self.users:
            return refusal(404, "not_found")
        days = body.get("expires_in_days")
        key = {"id": f"key_{secrets.token_hex(4)}", "user": self.users[body["user"]]["id"], "user_name": body["user"],
               "name": body.get("name"), "scopes": body.get("scopes", ["chat"]), "created_at": int(time.time()),
               "expires_at": int(time.time()) + days * 86400 if days else None, "last_used": None}  # fmt: skip
        self.api_keys[key["id"]] = key
        self.users[body["user"]]["keys"] += 1
        return web.json_response(key | {"key": "dm_live_" + secrets.token_hex(18)})

    async def _revoke(self, request: web.Request) -> web.Response:
        del self.api_keys[request.match_info["id"]]
        return web.json_response({"id": request.match_info["id"], "deleted": True})

    # --- conversations ---------------------------------------------------------------------------------------------

    def _new_conversation(self, title: str | None, age_seconds: float = 0) -> Json:
        at = int(time.time() - age_seconds)
        found: Json = {"id": f"conv_{secrets.token_hex(6)}", "object": "conversation", "created_at": at, "version": 1}
        found |= {"updated_at": at, "metadata": {"deskmate:title": title} if title else {}, "deskmate:running": None}
        self.conversations[found["id"]] = found
        self.items[found["id"]] = []
        return found

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query.get("query", "").lower()
        newest_first = sorted(self.conversations.values(), key=lambda one: one["updated_at"], reverse=True)
        found = [one for one in newest_first if query in one["metadata"].get("deskmate:title", "").lower()]
        if root := request.query.get("root"):
            found = [one for one in found if root in (one["id"], one["metadata"].get("deskmate:root"))]
        ids = [one["id"] for one in found]
        first = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
        last = first + int(request.query.get("limit", 20))
        return web.json_response(envelope(found[first:last], has_more=last < len(found)))

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        origin = body["metadata"].get("deskmate:branch_of")
        shared = self._up_to(origin) if origin else []
        if shared is None or (origin and self.origins_deleted):
            return refusal(400, "previous_response_not_found")
        found = self._new_conversation(None)
        found["metadata"] = body["metadata"]
        self.items[found["id"]] = shared + copied(body.get("items", []))
        return web.json_response(found)

    def _up_to(self, response: str) -> list[Json] | None:
        """The items of the conversation with this response, until its last one."""
        for items in self.items.values():
            last = max((at for at, one in enumerate(items) if one.get("deskmate:response") == response), default=None)
            if last is not None:
                return items[: last + 1]
        return None

    async def _add_items(self, request: web.Request) -> web.Response:
        added = copied((await request.json())["items"])
        self.items[request.match_info["id"]] += added
        self._touch(request.match_info["id"])
        return web.json_response(envelope(added, has_more=False))

    def _touch(self, name: str) -> None:
        self.conversations[name]["version"] += 1
        self.conversations[name]["updated_at"] = time.time()

    async def _get(self, request: web.Request) -> web.Response:
        found = self.conversations.get(request.match_info["id"])
        return web.json_response(found) if found else refusal(404, "not_found")

    async def _update(self, request: web.Request) -> web.Response:
        found = self.conversations[request.match_info["id"]]
        found["metadata"] = (await request.json())["metadata"]
        self._touch(found["id"])
        return web.json_response(found)

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if self.conversations.pop(name, None) is None:
            return refusal(404, "not_found")
        return web.json_response({"id": name, "object": "conversation.deleted", "deleted": True})

    async def _items(self, request: web.Request) -> web.Response:
        found = self.items.get(request.match_info["id"], [])
        ids = [one["id"] for one in found]
        first = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
        last = first + int(request.query["limit"])
        return web.json_response(envelope(found[first:last], has_more=last < len(found)))

    # --- turns -----------------------------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "deskmate", "max_model_len": 8192,
                 "deskmate:demo": self.demo, "deskmate:defaults": DEFAULTS}  # fmt: skip
        return web.json_response({"object": "list", "data": [model]})

    async def _count(self, request: web.Request) -> web.Response:
        count = self._tokens(await request.json())
        return web.json_response({"object": "response.input_tokens", "input_tokens": count})

    def _tokens(self, body: Json) -> int:
        said = json.dumps(self.items.get(body.get("conversation") or "", [])) + json.dumps(body.get("input", ""))
        return 30 + len(said) // 12

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        key = request.headers["idempotency-key"]
        if key in self.keys_posted:
            return await self._stream(request, self.turns[self.keys_posted[key]], -1)
        asked = body["input"] if isinstance(body["input"], str) else body["input"][-1]["content"]
        script = next((found for part, found in self.scripts.items() if part in asked), self.default)
        if script.refuse:
            return refusal(*script.refuse, script.retry_after)
        if busy := self._refusal_of(body.get("conversation"), request.headers.get("if-match")):
            return busy
        turn = Turn(f"resp_{secrets.token_hex(6)}", script, body["store"], body.get("conversation"), self._tokens(body))
        self.turns[turn.id] = turn
        self.keys_posted[key] = turn.id
        self._begin(turn, asked)
        task = asyncio.create_task(self._run(turn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await self._stream(request, turn, -1)

    def _begin(self, turn: Turn, asked: str) -> None:
        if turn.conversation is None:
            return
        found = self.conversations[turn.conversation]
        found["metadata"].setdefault("deskmate:title", asked[:60])
        found["deskmate:running"] = turn.id
        self._touch(turn.conversation)
        self.items[turn.conversation].append(item("user", asked, response=turn.id))

    def _refusal_of(self, conversation: str | None, expected: str | None) -> web.Response | None:
        if conversation is None:
            return None
        found = self.conversations[conversation]
        if found["deskmate:running"]:
            return refusal(409, "conversation_locked")
        return refusal(412, "version_conflict") if expected != str(found["version"]) else None

    async def _run(self, turn: Turn) -> None:
        script = turn.script
        turn.say("response.created", response=turn.resource())
        turn.say("response.queued", response=turn.resource())
        for state in script.progress:
            turn.say("deskmate:progress", state=state, eta_seconds=20)
        for position, eta in script.queue:
            turn.say("deskmate:queue.updated", position=position, eta_seconds=eta)
            await self._gate.wait()
        await self._engine.wait()
        turn.say("deskmate:queue.updated", position=0, eta_seconds=0)
        turn.status = "in_progress"
        turn.say("response.in_progress", response=turn.resource())
        for piece in pieces(script.thoughts):
            turn.thoughts += piece
            turn.say("response.reasoning_text.delta", output_index=0, content_index=0, delta=piece)
            await asyncio.sleep(script.pause_seconds)
        if script.hold_thoughts:
            await self._gate.wait()
        turn.say("response.output_item.added", output_index=0, item=item("assistant", "", "in_progress"))
        for number, piece in enumerate(pieces(script.text)):
            if number == script.hold_after:
                await self._gate.wait()
            if turn.status == "cancelled":
                return
            turn.text += piece
            turn.say("response.output_text.delta", output_index=0, content_index=0, delta=piece, logprobs=[])
            await asyncio.sleep(script.pause_seconds)
        turn.say("response.output_text.done", output_index=0, content_index=0, text=turn.text, logprobs=[])
        self._end(turn, script.ending)

    def _end(self, turn: Turn, status: str) -> None:
        turn.status = status
        turn.say(f"response.{'incomplete' if status == 'cancelled' else status}", response=turn.resource())
        if turn.conversation in self.conversations:
            self.conversations[turn.conversation]["deskmate:running"] = None
            self._touch(turn.conversation)
            if turn.thoughts:
                self.items[turn.conversation].append(thought(turn.thoughts, turn.id))
            if turn.text:
                self.items[turn.conversation].append(item("assistant", turn.text, status, turn.id))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        turn = self.turns.get(request.match_info["id"])
        if turn is None:
            return refusal(404, "not_found")
        return await self._stream(request, turn, int(request.query.get("starting_after", -1)))

    async def _cancel(self, request: web.Request) -> web.Response:
        turn = self.turns[request.match_info["id"]]
        if turn.status not in ENDED:
            self._end(turn, "cancelled")
        return web.json_response(turn.resource())

    async def _stream(self, request: web.Request, turn: Turn, after: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        await response.prepare(request)
        assert request.transport is not None
        self._streams.append(request.transport)
        if turn.script.lose_first and not turn.lost:
            turn.lost = True
            request.transport.close()
            return response
        async for event in follow(turn, after):
            frame = f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            await send(response, frame, turn.script.chunk_bytes)
        await send(response, b": heartbeat\n\ndata: [DONE]\n\n", None)
        return response


def stage(name: str, number: int, ready: bool, since: float) -> Json:
    """The start's stages with the fifth one running, or all done."""
    if ready or number < 4:
        return {"name": name, "state": "done", "started_at": since + number, "seconds": 0.8 + number, "message": ""}
    state, at = ("running", since + number) if number == 4 else ("waiting", None)
    return {"name": name, "state": state, "started_at": at, "seconds": None, "message": ""}


def envelope(data: list[Json], has_more: bool) -> Json:
    ids = [one["id"] for one in data] or [None]
    return {"object": "list", "data": data, "has_more": has_more, "first_id": ids[0], "last_id": ids[-1]}


def copied(items: list[Json]) -> list[Json]:
    return [item(one["role"], one["content"]) for one in items]


def pieces(text: str) -> list[str]:
    return [text[at : at + 4] for at in range(0, len(text), 4)]


async def follow(turn: Turn, after: int) -> AsyncIterator[Json]:
    at = after + 1
    while True:
        changed = turn.changed
        while at < len(turn.log):
            yield turn.log[at]
            at += 1
        if turn.status in ENDED:
            return
        await changed.wait()


async def send(response: web.StreamResponse, frame: bytes, chunk_bytes: int | None) -> None:
    size = chunk_bytes or len(frame)
    for at in range(0, len(frame), size):
        await response.write(frame[at : at + size])
        if chunk_bytes:
            await asyncio.sleep(0.001)  # lets the piece leave as a packet of its own
