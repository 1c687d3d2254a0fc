"""I10: what is not to be stored is nowhere afterwards, whichever way its request ended.

Every request carries words of its own. Afterwards they are searched for in Redis, in its files, in the logs and in the
metrics; a stored question shows that the search finds what is there.
"""

import asyncio
import io
import itertools
import re
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from gateway.conversations.packing import unpack
from tests.fault.desk import Desk, desk
from tests.fault.people import Person, people
from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROUTES = ("/v1/responses", "/v1/chat/completions", "/v1/completions", "/v1/messages")
ANSWER = "canary" + secrets.token_hex(8)
SETTINGS = {"DESKMATE_QUEUE_PER_PERSON": "1", "DESKMATE_DRAIN_SECONDS": "0.5"}


class Canaries:
    """Words that occur nowhere else. `sent` remembers them with the way their request went."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {ANSWER: "an answer of the engine"}

    def new(self, way: str) -> str:
        word = "canary" + secrets.token_hex(8)
        self.sent[word] = way
        return word

    def found_in(self, data: bytes) -> set[str]:
        return {found.decode() for found in re.findall(rb"canary[0-9a-f]{16}", data)} & set(self.sent)


def body_of(path: str, word: str, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": f"The word is {word}."}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": f"The word is {word}.", "store": False, "metadata": {"m": word}},
        "/v1/chat/completions": {"model": "fake", "messages": said, "user": word, "metadata": {"m": word}},
        "/v1/completions": {"model": "fake", "prompt": f"The word is {word}.", "user": word},
        "/v1/messages": {"model": "fake", "messages": said, "max_tokens": 500, "metadata": {"user_id": word}},
    }
    return bodies[path] | more


class Sender:
    def __init__(self, person: Person, canaries: Canaries) -> None:
        self.person, self.canaries = person, canaries

    async def send(self, path: str, way: str, data: Any = None, *, key: str | None = None, **more: Any) -> int | None:
        """One request with a new word in its body, its query and its headers; the status, None when it broke."""
        word = self.canaries.new(f"{path}: {way}")
        headers = {"authorization": f"Bearer {key or self.person.key}", "content-type": "application/json"}
        headers |= {"user-agent": word, "x-request-id": word, "idempotency-key": word}
        sent = data(word) if data else body_of(path, word, **more)
        options = {"data": io.BytesIO(sent.encode())} if isinstance(sent, str) else {"json": sent}
        url = f"{self.person.desk.doors[0].url}{path}?word={word}"
        try:
            async with aiohttp.ClientSession(headers=headers) as http, http.post(url, **options) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return None

    async def all(self, way: str, **more: Any) -> list[int | None]:
        """Every route, whole and streamed."""
        ways = itertools.product(ROUTES, (False, True))
        return await asyncio.gather(*(self.send(path, way, stream=stream, **more) for path, stream in ways))


async def test_of_what_is_not_to_be_stored_no_word_is_anywhere_afterwards():
    async with desk(gateways=1, environment=SETTINGS, answer=ANSWER) as made, people(made, 2) as (person, other):
        canaries = Canaries()
        sender, logs = Sender(person, canaries), list[bytes]()
        assert set(await sender.all("answered")) == {200}
        await talked(sender)
        await refused(sender)
        await engine_fails(sender)
        await left_and_full(sender, Sender(other, canaries))
        await broken(sender, logs)
        assert len(canaries.sent) >= 64
        await made.play(answer="what is stored")
        kept = Canaries()
        stored = kept.new("stored")
        assert (await person.call("POST", "/v1/responses", {"input": stored}))[0] == 200
        assert (await person.call("POST", "/v1/responses", {"input": "x", "metadata": {"m": stored}}))[0] == 200
        logs.append(made.gateways[0].log.read_bytes())
        places = {name: list(data) for name, data in everything(made).items()} | {
            "metrics": [await metrics(made)],
            "logs": logs,
        }
        for where in ("Redis", "the files of Redis"):
            assert any(kept.found_in(data) for data in places[where]), f"the search finds nothing in {where}"
        found = {
            (where, canaries.sent[word]) for where, all in places.items() for d in all for word in canaries.found_in(d)
        }
        assert found == set()
        print(f"{len(canaries.sent)} words, {sum(len(d) for all in places.values() for d in all):,} bytes searched")


async def talked(sender: Sender) -> None:
    """A chain over WebSocket: answered, gone on with, refused."""
    url, headers = f"{sender.person.desk.doors[0].url}/v1/responses", {"authorization": f"Bearer {sender.person.key}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.ws_connect(url) as socket:
        asked: dict[str, Any] = {"type": "response.create", "store": False}
        for more, last in (({}, "response.completed"), ({}, "response.completed"), ({"top_k": "many"}, "error")):
            await socket.send_json(asked | {"input": sender.canaries.new("WebSocket")} | more)
            while (event := await socket.receive_json())["type"] not in ("response.completed", "error"):
                pass
            assert event["type"] == last, event
            asked["previous_response_id"] = event.get("response", {}).get("id")


async def refused(sender: Sender) -> None:
    send = sender.send
    assert set(await sender.all("no key", key="dm_live_none")) == {401}
    assert set(await sender.all("another model", model="canary-model")) <= {404}
    for path in ROUTES:
        assert await send(path, "no JSON", lambda word: f'{{"input": "{word}", ') == 400
        assert await send(path, "an array", lambda word: f'["{word}"]') == 400
        assert await send(path, "too large", lambda word: word + " " * (1 << 20)) == 413
        assert await send(path, "a wrong value", n=7, temperature="hot") in (200, 400)
        assert await send(path + "/canary", "no such page", lambda word: {"input": word}) in (404, 405)
    assert await send("/v1/responses", "unknown", lambda word: {"input": word, word: word, "store": False}) == 400
    for name in ("conversation", "previous_response_id", "instructions_", "model"):
        field = {"input": "x", "store": False}
        assert await send("/v1/responses", name, lambda word, f=field, n=name: f | {n: word}) in (400, 404)
    assert await send("/v1/chat/completions", "dangerous", cache_salt="x") == 400
    assert await send("/v1/responses/input_tokens", "counted", lambda word: {"input": word}) == 200
    assert await send("/v1/responses/compact", "made short", lambda word: {"model": "fake", "input": word}) == 200
    counted = lambda word: {"model": "fake", "messages": [{"role": "user", "content": word}]}  # noqa: E731
    assert await send("/v1/messages/count_tokens", "counted", counted) == 200


async def engine_fails(sender: Sender) -> None:
    made = sender.person.desk
    for fail in ("400", "garbage", "close_after:0", "error_after:0"):
        await made.play(fail=fail)
        assert 200 in await sender.all(f"the engine's {fail}")
        await made.play(fail=None)
    await made.until_ready()


async def left_and_full(sender: Sender, other: Sender) -> None:
    """Somebody leaves in the middle, somebody leaves the line, and one is more than the line holds."""
    made = sender.person.desk
    await made.play(pace_ms=200, answer=f"{ANSWER} " * 200)
    leaving = asyncio.create_task(sender.all("left in the middle"))
    await made.workers[0].until_answering(6, tokens=2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await made.play(loading=True)
    async with asyncio.timeout(20):
        while await asyncio.to_thread(made.gateways[0].readyz) == 200:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.1)
    waiting = asyncio.create_task(other.send("/v1/responses", "left the line", stream=True))
    await asyncio.sleep(0.5)
    assert await other.send("/v1/responses", "the line is full") == 429
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await made.play(loading=False)
    await made.until_ready()


async def broken(sender: Sender, logs: list[bytes]) -> None:
    """The gateway is killed, then drained, in the middle of answers; then Redis is not there."""
    made = sender.person.desk
    for number in (signal.SIGKILL, signal.SIGTERM):
        asking = asyncio.create_task(sender.all(f"the gateway got {number.name}"))
        await made.workers[0].until_answering(6, tokens=2)
        await asyncio.to_thread(made.gateways[0].stop, number)
        await asking
        logs.append(made.gateways[0].log.read_bytes())
        await asyncio.to_thread(made.gateways[0].start)
        await made.until_ready()
    await made.play(pace_ms=5, answer=ANSWER)
    await made.nemesis.kill_redis(back=False)
    assert set(await sender.all("Redis is not there")) == {503}
    await made.heal()


def everything(made: Desk) -> dict[str, Iterator[bytes]]:
    files = [file.read_bytes() for file in made.redis.folder.rglob("*") if file.is_file()]
    words = itertools.chain(*(_words(data) for data in files))
    return {"Redis": _values(made), "the files of Redis": itertools.chain(files, words)}


def _values(made: Desk) -> Iterator[bytes]:
    """Every key, and every value it has, packed or not."""
    for key in made.redis.admin("KEYS", "*"):  # type: ignore[attr-defined]
        yield key
        kind = made.redis.admin("TYPE", key.decode())
        reads: dict[object, tuple[Any, ...]] = {
            b"hash": ("HGETALL", key),
            b"list": ("LRANGE", key, 0, -1),
            b"zset": ("ZRANGE", key, 0, -1),
            b"set": ("SMEMBERS", key),
            b"stream": ("XRANGE", key, "-", "+"),
            b"string": ("GET", key),
        }
        yield from map(_readable, _flat(made.redis.admin(*reads[kind])))


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield from itertools.chain(*map(_flat, itertools.chain(*value.items())))
    elif isinstance(value, list | tuple | set):
        yield from itertools.chain(*map(_flat, value))
    else:
        yield value if isinstance(value, bytes) else str(value).encode()


def _words(aof: bytes) -> Iterator[bytes]:
    """The arguments of the commands in an append-only file."""
    at = 0
    while (at := aof.find(b"$", at)) >= 0:
        size = re.compile(rb"\$(\d+)\r\n").match(aof, at)
        at += 1
        if size is not None:
            yield _readable(aof[size.end() : size.end() + int(size[1])])


def _readable(value: bytes) -> bytes:
    try:
        return value + unpack(value)
    except Exception:  # noqa: BLE001 - it was not packed
        return value


async def metrics(made: Desk) -> bytes:
    gateway: GatewayProcess = made.gateways[0]
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as answer:
        told = await answer.read()
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics/worker") as answer:
        return told + await answer.read()
