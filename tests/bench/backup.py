"""`./deskmate bench backup`: the drill. How long a backup and a restore take, and what people who write feel of it."""

import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.backup.dump import dump
from gateway.backup.file import Header, Reader, Secret, Writer
from gateway.backup.load import arguments, batches
from gateway.conversations import Begin, Begun, Finish, Json
from gateway.conversations.store import RedisConversations
from gateway.redis_client import LUA, RedisClient, load_scripts
from tests.servers import RedisServer, some_redis

ROOT = Path(__file__).resolve().parents[2]
TURNS = 10  # of a conversation: twenty messages
CHARACTERS = 400  # of a message
PEOPLE = 200
WRITERS = 4
QUIET_SECONDS = 10.0
TOGETHER = 16


@dataclass(frozen=True)
class Waits:
    """Milliseconds that writes took."""

    p99: float
    longest: float
    count: int


def message(role: str) -> Json:
    """Random digits compress to a half, about as text does."""
    text = os.urandom(CHARACTERS // 2).hex()
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


async def turn(store: RedisConversations, owner: str, conversation: str) -> None:
    id = f"resp_{os.urandom(12).hex()}"
    begin = Begin(owner=owner, turn=id, created_at=int(time.time()), input=[message("user")], request=b'{"model":"m"}',
                  conversation=conversation, holder="bench")  # fmt: skip
    begun = await store.begin(begin)
    assert isinstance(begun, Begun)
    await store.finish(Finish(owner, id, begun.fence, "completed", [message("assistant")], b'{"r":1}', 100, 100))


async def fill(url: str, password: str, conversations: int) -> None:
    """One person's conversations by the store itself, then the same for others: in a tenth of the time."""
    redis = RedisClient(url, password)
    store = RedisConversations(redis, retention_days=30, log_ttl_seconds=3600)
    numbers = iter(range(conversations // PEOPLE))

    async def some() -> None:
        for number in numbers:
            conversation = (await store.create("user_0", {"deskmate:title": f"Conversation {number}"}, [])).id
            for _ in range(TURNS):
                await turn(store, "user_0", conversation)

    await asyncio.gather(*(some() for _ in range(TOGETHER)))
    stream = io.BytesIO()
    await dump(redis, Writer(stream, Header(1, "bench", 0), Secret(b"s" * 48)), lambda text: None)
    for person in range(1, PEOPLE):
        for batch in batches(Reader(stream).keys()):
            mine = (key for key in batch if b"user_0" in key.name)
            renamed = (replace(key, name=key.name.replace(b"user_0", b"user_%d" % person)) for key in mine)
            await redis.run("restore_keys", args=[part for key in renamed for part in arguments(key)])
    await redis.aclose()


async def write_until(url: str, password: str, over: asyncio.Event) -> Waits:
    """People who write all the time, each a turn after the other, and how long each turn took to be acknowledged."""
    redis = RedisClient(url, password)
    store = RedisConversations(redis, retention_days=30, log_ttl_seconds=3600)
    waits: list[float] = []

    async def person(number: int) -> None:
        conversation = (await store.create(f"writer_{number}", {}, [])).id
        while not over.is_set():
            started = time.perf_counter()
            await turn(store, f"writer_{number}", conversation)
            waits.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.02)

    await asyncio.gather(*map(person, range(WRITERS)))
    await redis.aclose()
    waits.sort()
    return Waits(waits[len(waits) * 99 // 100], waits[-1], len(waits))


async def writing(url: str, password: str, work: "asyncio.Future[Any] | None") -> Waits:
    over = asyncio.Event()
    writers = asyncio.create_task(write_until(url, password, over))
    await (asyncio.sleep(QUIET_SECONDS) if work is None else work)
    over.set()
    return await writers


def words(server: RedisServer, folder: Path, *given: str) -> tuple[float, float]:
    """Seconds that a command of the gateway's took, its start included, and of a processor."""
    (folder / "password").write_text(server.password)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")} | {
        "DESKMATE_REDIS_URL": server.url,
        "DESKMATE_REDIS_PASSWORD_FILE": str(folder / "password"),
        "DESKMATE_SECRET_FILE": str(folder / "secret"),
    }
    started, before = time.monotonic(), os.times()
    command = [sys.executable, "-m", "gateway", *given]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - started, used


def longest_call(one: RedisServer) -> float:
    """Milliseconds that Redis was busy with one call of the backup and with nothing else; 0 when less than one."""
    ours = {script.sha.encode() for name, script in load_scripts(LUA).items() if name.startswith("backup_")} | {b"SCAN"}
    calls: list[Any] = one.admin("SLOWLOG", "GET", 1000)  # type: ignore[assignment]
    return max((took / 1000 for _, _, took, command, *_ in calls if ours & set(command[:2])), default=0.0)


def used_bytes(one: RedisServer) -> int:
    about: dict[str, int] = one.admin("INFO", "memory")  # type: ignore[assignment]
    return about["used_memory"]


@contextmanager
def server(name: str) -> Iterator[RedisServer]:
    with some_redis(name, "valkey", "redis") as one:
        one.admin("CONFIG", "SET", "appendfsync", "always")
        yield one


def drill(conversations: int) -> Iterator[str]:
    """Lines of the report."""
    with tempfile.TemporaryDirectory(prefix="dmdrill") as name, server("redis") as first, server("valkey") as second:
        folder = Path(name)
        (folder / "secret").write_text("s" * 48)
        first.admin("CONFIG", "SET", "appendfsync", "no")
        asyncio.run(fill(first.url, first.password, conversations))
        first.admin("CONFIG", "SET", "appendfsync", "always")
        keys, memory = first.admin("DBSIZE"), used_bytes(first)
        file = folder / "drill.backup"

        async def measured() -> tuple[Waits, Waits, tuple[float, float]]:
            quiet = await writing(first.url, first.password, None)
            saving = asyncio.ensure_future(asyncio.to_thread(words, first, folder, "backup", str(file)))
            during = await writing(first.url, first.password, saving)
            return quiet, during, saving.result()

        first.admin("CONFIG", "SET", "slowlog-log-slower-than", 1000)
        first.admin("CONFIG", "SET", "slowlog-max-len", 1000)
        quiet, during, saved = asyncio.run(measured())
        busy = longest_call(first)
        restored = words(second, folder, "restore", str(file), "--secret-out", str(folder / "given"))
        size = file.stat().st_size
    whole = f"{conversations} conversations × {2 * TURNS} messages × {CHARACTERS} characters"
    yield f"{datetime.now(UTC):%Y-%m-%d}, {whole} ({keys} keys, {memory / 1e6:.0f} MB in Redis)."
    yield f"Redis writes every change to the disk (`always`); load of the machine: {os.getloadavg()[0]:.1f}."
    yield ""
    yield "| what | figure |"
    yield "|---|---|"
    yield f"| backup, while {WRITERS} people write | {saved[0]:.1f} s, {saved[1]:.1f} s of a processor |"
    yield f"| file | {size / 1e6:.1f} MB |"
    yield f"| restore into {second.binary.name} | {restored[0]:.1f} s, {restored[1]:.1f} s of a processor |"
    yield f"| longest call of the backup in Redis | {busy:.1f} ms |"
    for name, waits in (("without a backup", quiet), ("during the backup", during)):
        yield f"| a turn stored {name}, p99 / longest of {waits.count} | {waits.p99:.1f} / {waits.longest:.1f} ms |"
