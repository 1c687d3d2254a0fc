"""`bench storage`: how long the list of somebody with 10,000 conversations takes through HTTP, and deleting 1,000.

Made through the store, read through the gateway. One core for the gateway, as in the other benchmarks.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from gateway.conversations import Begin, Begun, Finish
from gateway.conversations.ids import new_id
from gateway.conversations.store import RedisConversations
from gateway.redis_client import RedisClient
from tests.bench.stack import Stack, stack

CONVERSATIONS = 10_000
DELETED = 1_000
READS = 1_000
AT_ONCE = 32


@dataclass
class Times:
    milliseconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        ordered = sorted(self.milliseconds)
        at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99)]
        return f"p50 {at[0]:.1f} ms, p99 {at[1]:.1f} ms, longest {ordered[-1]:.1f} ms"


def storage(rounds: int) -> Iterator[str]:
    with stack() as on:
        yield from asyncio.run(_measure(on, rounds))


async def _measure(on: Stack, rounds: int) -> list[str]:
    headers = {"authorization": f"Bearer {on.key}"}
    async with aiohttp.ClientSession(f"http://{on.gateway}", headers=headers) as http:
        owner = await _owner(on, http)
        redis = RedisClient(on.redis_server.url, on.redis_server.password)
        try:
            await _fill(RedisConversations(redis, retention_days=30, log_ttl_seconds=3600), owner)
        finally:
            await redis.aclose()
        lists = [await _lists(http, READS) for _ in range(rounds)]
        beside = Times()
        deleting = asyncio.create_task(_delete(http))
        while not deleting.done():
            beside.milliseconds += (await _lists(http, 1)).milliseconds
        seconds = await deleting
    lines = ["| what | time |", "|---|---|"]
    lines += [f"| the newest 50 of {CONVERSATIONS:,}, round {n} | {times} |" for n, times in enumerate(lists, 1)]
    lines += [f"| deleting {DELETED:,}, {AT_ONCE} at once | {seconds:.1f} s |", f"| the list beside it | {beside} |"]
    return lines


async def _owner(on: Stack, http: aiohttp.ClientSession) -> str:
    """The id of the person whose key we have: the one with a conversation."""
    async with http.post("/v1/conversations", json={}) as made:
        made.raise_for_status()
    redis = RedisClient(on.redis_server.url, on.redis_server.password)
    try:
        async for names in redis.scan("dm:convs:*"):
            if names:
                return names[0].decode().split(":")[2]
        raise AssertionError("the conversation that was made is not there")
    finally:
        await redis.aclose()


async def _fill(store: RedisConversations, owner: str) -> None:
    async def one(number: int) -> None:
        conversation = (await store.create(owner, {"deskmate:title": f"Conversation {number}"}, [])).id
        turn = new_id("resp")
        item = {"type": "message", "role": "user", "content": "How does a fair queue share one engine?"}
        begun = await store.begin(Begin(owner, turn, 1, [item], b"{}", conversation=conversation))
        assert isinstance(begun, Begun)
        await store.finish(Finish(owner, turn, begun.fence, "completed", [item | {"role": "assistant"}], b"{}", 1, 1))

    for at in range(0, CONVERSATIONS, AT_ONCE):
        await asyncio.gather(*(one(number) for number in range(at, min(at + AT_ONCE, CONVERSATIONS))))


async def _lists(http: aiohttp.ClientSession, count: int) -> Times:
    times = Times()
    for _ in range(count):
        began = time.perf_counter()
        async with http.get("/v1/conversations?limit=50") as answer:
            assert len((await answer.json())["data"]) == 50
        times.milliseconds.append((time.perf_counter() - began) * 1000)
    return times


async def _delete(http: aiohttp.ClientSession) -> float:
    async def one(id: str) -> None:
        async with http.delete(f"/v1/conversations/{id}") as answer:
            answer.raise_for_status()

    began, left = time.monotonic(), DELETED
    while left:
        async with http.get(f"/v1/conversations?limit={min(left, AT_ONCE)}") as answer:
            ids = [conversation["id"] for conversation in (await answer.json())["data"]]
        await asyncio.gather(*map(one, ids))
        left -= len(ids)
    return time.monotonic() - began
