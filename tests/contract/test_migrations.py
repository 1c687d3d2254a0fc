"""Older data comes forward whatever happens meanwhile. There is no older data yet: the steps here are made up."""

import asyncio
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway import migrations
from gateway.backup.file import Header, Key, Reader, Secret, Writer
from gateway.backup.load import load
from gateway.migrations import DATA_VERSION, NewerData, Step, bring_forward, data_version
from gateway.redis_client import LUA, RedisClient
from tests.killing import killed_at
from tests.servers import RedisServer

CONVERSATIONS = 1000
STEPS = (Step("dm:conv:*", "rename_title"), Step("dm:conv:*", "move_updated"))

# Titles go to another field; then the times of change move to keys of their own. What is half done must stay readable
# for the other half: each key is changed whole, and only where that has not been done.
SCRIPTS = {
    "rename_title": """
        for i = 2, #ARGV do
          local title = redis.call('HGET', ARGV[i], 'title')
          if title then
            redis.call('HSET', ARGV[i], 'name', string.upper(title))
            redis.call('HDEL', ARGV[i], 'title')
          end
        end
        return 1""",
    "move_updated": """
        for i = 2, #ARGV do
          local updated = redis.call('HGET', ARGV[i], 'updated')
          if updated then
            redis.call('SET', string.gsub(ARGV[i], 'dm:conv:', 'dm:updated:'), updated + 1)
            redis.call('HDEL', ARGV[i], 'updated')
          end
        end
        return 1""",
}


@pytest.fixture
def lua(tmp_path: Path) -> Path:
    """The release's scripts and the made-up ones."""
    folder = tmp_path / "lua"
    shutil.copytree(LUA, folder)
    for name, body in SCRIPTS.items():
        asks = "-- include version\nif not still_at(ARGV[1]) then return 0 end\n"
        (folder / f"{name}.lua").write_text("#!lua\n" + asks + body)
    return folder


def quiet(text: str) -> None:
    pass


async def fill(client: RedisClient) -> None:
    """Thousands of keys of version 1."""
    stream = io.BytesIO()
    writer = Writer(stream, Header(1, "0", 0), Secret(b"s" * 32))
    for number in range(CONVERSATIONS):
        fields = [b"title", b"conversation %d" % number, b"updated", b"%d" % number, b"shelf", b"s%d" % number]
        writer.write(Key(b"dm:conv:u%d:%d" % (number % 7, number), "hash", fields))
        writer.write(Key(b"dm:order:u%d:%d" % (number % 7, number), "list", [b"1", b"2"]))
    writer.close(conversations=CONVERSATIONS, people=0)
    await load(client, Reader(stream), "test", quiet)


async def filled(server: RedisServer) -> None:
    client = RedisClient(server.url, server.password)
    try:
        await fill(client)
    finally:
        await client.aclose()


def dump(server: RedisServer) -> dict[str, Any]:
    """Everything, in few round trips: there are thousands of keys."""
    read = {b"hash": "HGETALL", b"string": "GET", b"list": "LLEN"}
    with redis.Redis(unix_socket_path=str(server.socket), password=server.password) as client:
        names = sorted(client.scan_iter(count=1000))
        kinds = _all(client, [("TYPE", name) for name in names])
        values = _all(client, [(read[kind], name) for kind, name in zip(kinds, names, strict=True)])
    return {name.decode(): value for name, value in zip(names, values, strict=True)}


def _all(client: redis.Redis, commands: list[tuple[str, bytes]]) -> list[Any]:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute()


async def forward(client: RedisClient) -> None:
    await bring_forward(client, quiet, STEPS)


def test_data_comes_forward_the_same_however_often_and_wherever_it_is_killed(
    redis_server: RedisServer, lua: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(migrations, "BATCH", 30)
    asyncio.run(filled(redis_server))
    assert not killed_at(10**6, redis_server, forward, lua=lua)
    undisturbed = dump(redis_server)
    assert undisturbed["dm:meta"] == {b"data_version": b"3"}
    assert undisturbed["dm:conv:u0:0"] == {b"name": b"CONVERSATION 0", b"shelf": b"s0"}
    assert undisturbed["dm:updated:u0:0"] == b"1"

    redis_server.reset()
    asyncio.run(filled(redis_server))
    kills = 0
    while killed_at(kills + 1, redis_server, forward, lua=lua):
        kills += 1
    assert kills >= 20
    assert dump(redis_server) == undisturbed


async def test_gateways_that_start_at_once_bring_the_data_forward_together(
    redis_client: RedisClient, redis_server: RedisServer, lua: Path
):
    await fill(redis_client)
    clients = [RedisClient(redis_server.url, redis_server.password, lua=lua) for _ in range(3)]
    try:
        await asyncio.gather(*map(forward, clients))
    finally:
        for client in clients:
            await client.aclose()
    found: Any = dump(redis_server)
    assert found["dm:meta"] == {b"data_version": b"3"}
    for number in range(CONVERSATIONS):
        assert found[f"dm:updated:u{number % 7}:{number}"] == b"%d" % (number + 1)


async def test_a_straggler_of_a_finished_step_changes_nothing(redis_server: RedisServer, lua: Path):
    client = RedisClient(redis_server.url, redis_server.password, lua=lua)
    try:
        await client.call("HSET", "dm:meta", "data_version", 2)
        await client.call("HSET", "dm:conv:u:c", "title", "kept")
        assert await client.run("rename_title", args=[1, "dm:conv:u:c"]) == 0
        assert await client.call("HGET", "dm:conv:u:c", "title") == b"kept"
        assert await client.run("stamp_data", args=[1, 2]) == 0
    finally:
        await client.aclose()


async def test_a_new_database_is_stamped_and_data_of_a_later_release_is_refused(redis_client: RedisClient):
    assert await data_version(redis_client) is None
    await bring_forward(redis_client, quiet)
    await bring_forward(redis_client, quiet)
    assert await data_version(redis_client) == DATA_VERSION
    await redis_client.call("HSET", "dm:meta", "data_version", DATA_VERSION + 1)
    with pytest.raises(NewerData, match=f"version {DATA_VERSION + 1}"):
        await bring_forward(redis_client, quiet)
    assert await redis_client.call("HGET", "dm:meta", "data_version") == b"%d" % (DATA_VERSION + 1)
