"""What the contract tests of the conversations store share."""

import itertools

import pytest

from gateway.conversations import Begin, Begun, Finish, Json
from gateway.conversations.packing import unpack
from gateway.conversations.store import RedisConversations
from gateway.redis_client import RedisClient
from tests.servers import RedisServer


def said(text: str, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def texts(items: object) -> list[str]:
    return [item.body["content"][0]["text"] for item in items]  # type: ignore[attr-defined]


class Desk:
    """One person at the store: turns in one line, ids made by counting."""

    def __init__(self, store: RedisConversations, owner: str = "u_ada") -> None:
        self.store = store
        self.owner = owner
        self._ids = itertools.count(1)

    def asks(self, text: str, **keywords: object) -> Begin:
        values: dict[str, object] = {
            "owner": self.owner,
            "turn": f"resp_{self.owner}{next(self._ids)}",
            "created_at": 1_700_000_000,
            "input": [said(text)],
            "request": b'{"model":"m"}',
            "holder": "gateway-1",
        }
        return Begin(**{**values, **keywords})  # type: ignore[arg-type]

    def answers(self, begin: Begin, text: str, fence: int = 1, **keywords: object) -> Finish:
        values: dict[str, object] = {
            "owner": self.owner,
            "turn": begin.turn,
            "fence": fence,
            "status": "completed",
            "output": [said(text, "assistant")],
            "result": b'{"r":1}',
            "prompt_tokens": 7,
            "completion_tokens": 3,
        }
        return Finish(**{**values, **keywords})  # type: ignore[arg-type]

    async def begins(self, text: str, **keywords: object) -> tuple[Begin, Begun]:
        begin = self.asks(text, **keywords)
        begun = await self.store.begin(begin)
        assert isinstance(begun, Begun)
        return begin, begun

    async def turn(self, question: str, answer: str, **keywords: object) -> str:
        """One whole turn; its id."""
        begin, begun = await self.begins(question, **keywords)
        assert await self.store.finish(self.answers(begin, answer, begun.fence)) is not None
        return begin.turn

    async def conversation(self, **metadata: str) -> str:
        return (await self.store.create(self.owner, metadata, [])).id


@pytest.fixture
def store(redis_client: RedisClient) -> RedisConversations:
    return RedisConversations(redis_client, retention_days=30, log_ttl_seconds=3600)


@pytest.fixture
def desk(store: RedisConversations) -> Desk:
    return Desk(store)


def dump(server: RedisServer) -> dict[str, object]:
    """Everything in Redis, comparable and readable; TTLs left out."""
    keys = sorted(key.decode() for key in server.admin("KEYS", "*"))  # type: ignore[attr-defined]
    return {key: _value(server, key) for key in keys}


def _value(server: RedisServer, key: str) -> object:
    match server.admin("TYPE", key):
        case b"hash":
            fields: dict[bytes, bytes] = server.admin("HGETALL", key)  # type: ignore[assignment]
            return {name: _readable(key, name, value) for name, value in fields.items()}
        case b"list":
            return server.admin("LRANGE", key, 0, -1)
        case b"zset":
            return server.admin("ZRANGE", key, 0, -1, "WITHSCORES")
        case b"stream":
            return server.admin("XRANGE", key, "-", "+")
    return server.admin("GET", key)


def _readable(key: str, field: bytes, value: bytes) -> bytes:
    content = key.startswith("dm:shelf:") and not (field in (b"n", b"refs") or field.startswith(b"h"))
    return unpack(value) if content else value
