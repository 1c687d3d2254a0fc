"""What the store promises when Redis is full, gone, loading, forgetful or slow. On every server supported."""

import asyncio
import time
from itertools import count

import pytest

from gateway.conversations import Append, Attached, Begun
from gateway.conversations.store import RedisConversations
from gateway.errors import StorageDown, StorageFull
from gateway.redis_client import RedisClient, refusal_of
from tests.contract.conftest import Desk, dump, said, texts
from tests.proxy import Proxy
from tests.servers import RedisServer


def store_at(client: RedisClient) -> RedisConversations:
    return RedisConversations(client, retention_days=30, log_ttl_seconds=3600)


async def test_a_full_redis_refuses_writes_whole_and_still_reads_stops_and_deletes(
    desk: Desk, redis_server: RedisServer
) -> None:
    conversation, other = await desk.conversation(), await desk.conversation()
    turn = await desk.turn("1", "2", conversation=other)
    running, begun = await desk.begins("1", conversation=conversation)
    before = dump(redis_server)
    redis_server.admin("CONFIG", "SET", "maxmemory", 1)
    writes = (
        lambda: desk.store.begin(desk.asks("3", conversation=other, key="k", digest="d")),
        lambda: desk.store.append([Append(desk.owner, running.turn, begun.fence, 1, [b"a"])]),
        lambda: desk.store.finish(desk.answers(running, "2", begun.fence)),
        lambda: desk.store.create(desk.owner, {}, [said("x")]),
        lambda: desk.store.add_items(desk.owner, other, [said("x")]),
        lambda: desk.store.update(desk.owner, other, {}, None),
    )
    for write in writes:
        with pytest.raises(StorageFull):
            await write()
    assert dump(redis_server) == before

    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1"]
    assert texts(await desk.store.history(desk.owner, None, turn)) == ["1", "2"]
    assert len((await desk.store.list(desk.owner, 10, None, None))[0]) == 2
    assert (await desk.store.response(desk.owner, turn)).status == "completed"
    await desk.store.undo(desk.owner, running.turn, begun.fence)
    await desk.store.delete(desk.owner, other)
    redis_server.admin("CONFIG", "SET", "maxmemory", 0)
    await desk.turn("1", "2", conversation=conversation)


async def test_a_killed_redis_is_told_within_a_second_and_used_again_when_back(
    mortal_redis_server: RedisServer,
) -> None:
    server = mortal_redis_server
    client = RedisClient(server.url, server.password)
    desk = Desk(store_at(client))
    conversation = await desk.conversation()
    await desk.turn("1", "2", conversation=conversation)
    server.kill()
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(StorageDown):
            await desk.store.begin(desk.asks("3", conversation=conversation))
    assert time.monotonic() - started < 1
    server.start()
    await desk.turn("3", "4", conversation=conversation)
    assert texts(await desk.store.history(desk.owner, conversation, None)) == ["1", "2", "3", "4"]
    await client.aclose()


async def test_a_silent_redis_is_told_after_the_time_limit_and_then_nobody_waits_until_one_call_was_answered(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.redis_client.SHUT_SECONDS", 0.1)
    client = RedisClient(redis_server.url, redis_server.password, timeout_seconds=0.3)
    await client.call("PING")
    redis_server.admin("CLIENT", "PAUSE", 1500, "ALL")
    with pytest.raises(StorageDown, match=r"0\.3 s"):
        await client.call("PING")
    await asyncio.sleep(0.15)
    answers = await asyncio.gather(*(client.call("PING") for _ in range(20)), return_exceptions=True)
    waited = [str(answer) for answer in answers if "0.3 s" in str(answer)]
    assert len(waited) == 1 and all(isinstance(answer, StorageDown) for answer in answers)
    redis_server.admin("PING")  # answered when the pause is over
    await asyncio.sleep(0.15)
    assert await client.call("PING") == await client.call("PING") == b"PONG"
    await client.aclose()


async def test_a_lost_reply_and_a_repeat_make_one_turn(redis_server: RedisServer) -> None:
    async with Proxy(redis_server.socket) as proxy:
        client = RedisClient(f"redis://127.0.0.1:{proxy.port}/0", redis_server.password)
        desk = Desk(store_at(client))
        conversation = await desk.conversation()
        for n in range(10):
            begin = desk.asks(f"{n}", conversation=conversation, key=f"k{n}", digest="d")
            begun = await repeated(proxy, client, lambda b=begin: desk.store.begin(b))
            assert isinstance(begun, Begun)
            other_post = desk.asks(f"{n}", conversation=conversation, key=f"k{n}", digest="d")
            assert await desk.store.begin(other_post) == Attached(begin.turn)
            log = Append(desk.owner, begin.turn, 1, 1, [b"a", b"b"])
            assert await repeated(proxy, client, lambda a=log: desk.store.append([a])) == [True]
            finish = desk.answers(begin, f"{n}!")
            assert await repeated(proxy, client, lambda f=finish: desk.store.finish(f)) is not None
            assert await desk.store.log(desk.owner, begin.turn) == [b"a", b"b"]
        found = await desk.store.history(desk.owner, conversation, None)
        assert texts(found) == [text for n in range(10) for text in (f"{n}", f"{n}!")]
        assert (await desk.store.get(desk.owner, conversation)).version == 21
        assert proxy.lost == 30
        await client.aclose()


async def repeated(proxy: Proxy, client: RedisClient, call):  # type: ignore[no-untyped-def]
    """The call once with its reply lost, then again."""
    await client.call("PING")  # a connection stands: what gets lost is the call's own reply
    proxy.lose_replies = True
    with pytest.raises(StorageDown):
        await call()
    proxy.lose_replies = False
    return await call()


async def test_flushed_scripts_are_loaded_again(desk: Desk, redis_server: RedisServer) -> None:
    conversation = await desk.conversation()
    redis_server.admin("SCRIPT", "FLUSH")
    await desk.turn("1", "2", conversation=conversation)
    assert len(await desk.store.history(desk.owner, conversation, None)) == 2


async def test_a_wrong_password_is_told_as_such(redis_server: RedisServer) -> None:
    client = RedisClient(redis_server.url, "wrong")
    with pytest.raises(StorageDown, match="password"):
        await client.call("PING")
    await client.aclose()


async def test_a_replica_is_told_as_such(redis_server: RedisServer, desk: Desk) -> None:
    redis_server.admin("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises((StorageFull, StorageDown), match="replica"):
            await desk.store.begin(desk.asks("?"))
    finally:
        redis_server.admin("REPLICAOF", "NO", "ONE")


async def test_a_redis_that_cannot_save_refuses_writes(desk: Desk, redis_client: RedisClient) -> None:
    error = await _answer(redis_client, "MISCONF Redis is configured to save RDB snapshots")
    assert isinstance(refusal_of(error), StorageFull)
    error = await _answer(redis_client, "LOADING Redis is loading the dataset in memory")
    assert isinstance(refusal_of(error), StorageDown)
    error = await _answer(redis_client, "ERR value is not an integer")
    assert refusal_of(error) is None


async def _answer(client: RedisClient, error: str) -> Exception:
    """What redis-py raises when a server answers with this error."""
    with pytest.raises(Exception) as raised:
        await client.call("EVAL", f"return redis.error_reply('{error}')", 0)
    return raised.value.__cause__ if isinstance(raised.value, StorageDown | StorageFull) else raised.value  # type: ignore[return-value]


async def test_cancelled_calls_never_mix_replies(desk: Desk, redis_client: RedisClient) -> None:
    conversations = [await desk.store.create(desk.owner, {"n": f"{n}"}, [said(f"{n}")]) for n in range(8)]
    turns = count()

    async def ask() -> None:
        n = next(turns) % 8
        [item] = await desk.store.history(desk.owner, conversations[n].id, None)
        assert item.body == said(f"{n}")
        assert (await desk.store.get(desk.owner, conversations[n].id)).metadata == {"n": f"{n}"}

    wrong: list[BaseException] = []
    for burst in range(40):
        tasks = [asyncio.create_task(ask()) for _ in range(16)]
        for _ in range(burst % 8):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0002 * (burst % 5))
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        wrong += [e for e in ended if isinstance(e, BaseException) and not isinstance(e, asyncio.CancelledError)]
    assert wrong == []
    await asyncio.gather(*(ask() for _ in range(64)))
