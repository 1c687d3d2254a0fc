"""A backup holds what people have, whole, and opens on another server: between every two kinds that are supported."""

import asyncio
import io
import itertools
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import redis_client as redis_client_module
from gateway.admission import Ticket
from gateway.admission.line import Capacity, Line
from gateway.auth.keys import Keys
from gateway.auth.links import Links
from gateway.auth.people import People
from gateway.auth.principal import Role
from gateway.auth.secret import Secrets
from gateway.auth.sessions import Sessions
from gateway.auth.throttle import Throttle
from gateway.backup import BackupError, families
from gateway.backup.commands import backup, restore
from gateway.backup.dump import dump as write_dump
from gateway.backup.file import VALUES, Header, Key, Reader, Secret, Writer
from gateway.backup.load import load
from gateway.backup.names import ALONE, DERIVED, FAMILIES, PEOPLE
from gateway.conversations import Append, Lease
from gateway.conversations.store import BRANCH_OF, TITLE, RedisConversations
from gateway.errors import ConversationLocked
from gateway.migrations import DATA_VERSION, UnfinishedRestore, bring_forward
from gateway.quotas import TOKENS, UNLIMITED, Kind
from gateway.quotas.store import RedisQuotas
from gateway.redis_client import RedisClient
from gateway.settings import Settings
from tests.contract.conftest import Desk, dump, said, texts
from tests.killing import killed_at
from tests.servers import BINARIES, RedisServer, some_redis

ROOT = Path(__file__).parents[2]
SECRET = b"the secret of one installation, made for a test"
VERSION_1 = ROOT / "tests" / "data" / "version-1.backup"


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="session", params=BINARIES)
def other_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Where a backup is restored: the same kind of server, or the other one."""
    with some_redis(request.param) as server:
        yield server


@pytest.fixture
async def other(other_server: RedisServer) -> AsyncIterator[RedisClient]:
    other_server.reset()
    client = RedisClient(other_server.url, other_server.password)
    yield client
    await client.aclose()


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    return file


@pytest.fixture
def settings(secret_file: Path) -> Settings:
    return Settings(redis_url="unix:///nowhere", secret_file=secret_file)


async def backed_up(redis: RedisClient) -> Reader:
    """A backup of what is there, in memory."""
    stream = io.BytesIO()
    await write_dump(redis, Writer(stream, Header(DATA_VERSION, "0", int(time.time())), Secret(SECRET)), quiet)
    return Reader(stream)


def store_at(redis: RedisClient) -> RedisConversations:
    return RedisConversations(redis, retention_days=30, log_ttl_seconds=3600)


async def furnish(desk: Desk) -> None:
    """One of everything that conversations can be: shared, chained, deleted from, being written, remembered."""
    store, owner = desk.store, desk.owner
    first = await desk.conversation(**{TITLE: "Überschrift", "color": "green"})
    await desk.turn("1", "2", conversation=first, key="idem", digest="d")
    turn = await desk.turn("3", "4", conversation=first)
    branch = (await store.create(owner, {BRANCH_OF: turn}, [said("aside")])).id
    await desk.turn("5", "6", conversation=branch)
    item = (await store.items(owner, first, 10, "asc", None))[0][0]
    await store.delete_item(owner, first, item.id)
    chained = await desk.turn("a", "b", previous=await desk.turn("c", "d"))
    await store.create(owner, {BRANCH_OF: chained}, [])
    await store.delete(owner, await desk.conversation())
    await store.delete_response(owner, await desk.turn("x", "y"))
    running, begun = await desk.begins("and?", conversation=await desk.conversation())
    await store.append([Append(owner, running.turn, begun.fence, 1, [b"one", b"two"])])
    long = await desk.conversation()
    await store.add_items(owner, long, [said(f"{number} " + "word " * 400) for number in range(VALUES + 500)])


def without_leases(found: dict[str, object]) -> dict[str, object]:
    """Leases of running turns are over in a backup; everything else is as it was."""
    leases: Any = found.pop("dm:leases", [])
    return {**found, "leases": sorted(member for member, _ in leases)}


async def test_what_is_restored_is_what_was_backed_up_on_every_pair_of_servers(
    desk: Desk, redis_client: RedisClient, redis_server: RedisServer, other: RedisClient, other_server: RedisServer
):
    await bring_forward(redis_client, quiet)
    await furnish(desk)
    await furnish(Desk(desk.store, "u_bob"))
    before = without_leases(dump(redis_server))
    reader = await backed_up(redis_client)
    assert reader.footer.conversations == 10
    await load(other, reader, "b", quiet)
    assert without_leases(dump(other_server)) == before
    for name in before:
        if name.startswith("dm:") and name != "dm:meta":
            there, here = (server.admin("PTTL", name) for server in (redis_server, other_server))
            assert (there == here == -1) or (there > 0 and abs(there - here) < 20_000), name  # type: ignore[operator]


async def test_people_keys_links_and_sessions_open_the_same_doors_after_a_restore(
    redis_client: RedisClient, other: RedisClient, settings: Settings
):
    secrets = Secrets(SECRET)
    people, keys, sessions = People(redis_client), Keys(redis_client, secrets), Sessions(redis_client, secrets)
    ada = await people.create("Ada Ω", Role.ADMINISTRATOR, "Numbers")
    bob = await people.create("bob")
    await people.set_password_hash(bob.id, "$argon2id$…")
    await people.disable(bob.id)
    named = await people.delegate(bob, "3f2c", 10)
    _, text = await keys.create(ada.id, "mine")
    _, expiring = await keys.create(ada.id, "short", expires_in_days=1)
    revoked, gone = await keys.create(ada.id)
    await keys.revoke(revoked.id)
    link = (await Links(redis_client, secrets, settings).create(ada.id)).url.partition("#link=")[2]
    token, ended = await sessions.open(ada.id), await sessions.open(ada.id)
    await sessions.end(ended)
    await Throttle(redis_client, secrets).begin("ada", "10.0.0.1")

    await load(other, await backed_up(redis_client), "b", quiet)
    there, there_keys, there_sessions = People(other), Keys(other, secrets), Sessions(other, secrets)
    assert await there.all() == await people.all()
    assert [person async for person in there.delegates(bob.id)] == [await there.delegate(bob, "3f2c", 1)] == [named]
    assert await there.named("ADA ω") == await people.named("ada ω")
    assert sorted(key.name for key in await there_keys.all()) == ["mine", "short"]
    for opened in (text, expiring):
        found = await there_keys.find(secrets.digest_of_key(opened))
        assert found is not None
        assert found.user == ada.id
    assert await there_keys.find(secrets.digest_of_key(gone)) is None
    assert await there_sessions.user_of(secrets.digest_of_token(token)) == ada.id
    assert await there_sessions.user_of(secrets.digest_of_token(ended)) is None
    assert await Links(other, secrets, settings).open(link) == ada.id
    await there_sessions.end_all(ada.id)
    assert await there_sessions.user_of(secrets.digest_of_token(token)) is None


async def test_limits_and_what_was_used_of_them_stand_as_they_were(redis_client: RedisClient, other: RedisClient):
    quotas, capacity = RedisQuotas(redis_client, UNLIMITED), Capacity(4)
    line = Line(redis_client, "gw_one")
    await quotas.set("ada", {Kind.TOKENS_PER_DAY: 100, Kind.CONCURRENCY: "none"})
    await quotas.set("key_1", {Kind.TOKENS_PER_MONTH: 50}, expires_at=4_000_000_000)
    await line.step(capacity, 60, register=True)
    await line.join(capacity, "one", Ticket("ada", 10, 20, key="key_1"))
    await line.leave(capacity, {"one": (5, None)})
    before = await quotas.balance("ada", "key_1")
    await load(other, await backed_up(redis_client), "b", quiet)
    after = await RedisQuotas(other, UNLIMITED).balance("ada", "key_1")
    spent = {meter.kind: meter.used for meter in after.meters if meter.kind in TOKENS}
    assert spent == {meter.kind: meter.used for meter in before.meters if meter.kind in TOKENS}
    assert [(meter.limit, meter.source) for meter in after.meters] == [(m.limit, m.source) for m in before.meters]
    assert await other.call("EXPIRETIME", "dm:limits:key_1") == 4_000_000_000
    assert 0 < await other.call("TTL", "dm:used:ada") <= 40 * 86_400


async def test_what_ends_at_a_date_ends_then_and_what_lasts_lasts_as_long_again(redis_client: RedisClient):
    reader = _written(
        Key(b"dm:link:over", "string", [b"user_x"], until_ms=int(time.time() * 1000) - 1),
        Key(b"dm:link:good", "string", [b"user_x"], until_ms=int(time.time() * 1000) + 60_000),
        Key(b"dm:usage:u:20260101", "hash", [b"requests", b"1"], lasts_ms=60_000),
    )
    await load(redis_client, reader, "b", quiet)
    assert await redis_client.call("EXISTS", "dm:link:over") == 0
    assert 0 < await redis_client.call("PTTL", "dm:link:good") <= 60_000
    assert 0 < await redis_client.call("PTTL", "dm:usage:u:20260101") <= 60_000


async def test_a_turn_that_was_running_can_be_ended_by_whoever_serves_the_restored_data(
    desk: Desk, redis_client: RedisClient, redis_server: RedisServer
):
    conversation = await desk.conversation()
    running, begun = await desk.begins("and?", conversation=conversation)
    reader = await backed_up(redis_client)
    redis_server.reset()
    await load(redis_client, reader, "b", quiet)
    store = desk.store
    with pytest.raises(ConversationLocked):
        await store.begin(desk.asks("more", conversation=conversation))
    assert await store.expired() == [Lease(desk.owner, running.turn)]
    fence = await store.adopt(Lease(desk.owner, running.turn), "gateway-2", 5.0)
    assert fence == begun.fence + 1
    await store.finish(desk.answers(running, "cut off", fence, status="failed"))
    assert texts(await store.history(desk.owner, conversation, None)) == ["and?", "cut off"]


def _written(*keys: Key) -> Reader:
    stream = io.BytesIO()
    writer = Writer(stream, Header(DATA_VERSION, "0", 0), Secret(SECRET))
    for key in keys:
        writer.write(key)
    writer.close(conversations=0, people=0)
    return Reader(stream)


# while people write -----------------------------------------------------------------------------------------------
async def write(desk: Desk, number: int, done: asyncio.Event, told: list[tuple[str, str, str]]) -> None:
    """One person who talks, branches, chains, renames and deletes; `told` is what was acknowledged."""
    conversation = await desk.conversation()
    previous = None
    for step in itertools.count():
        if done.is_set():
            return
        text = f"{number}.{step}"
        turn = await desk.turn(text, text, conversation=conversation)
        told.append((desk.owner, conversation, text))
        previous = await desk.turn(text, text, previous=previous)
        if step % 5 == 4:
            branch = (await desk.store.create(desk.owner, {BRANCH_OF: turn}, [])).id
            await desk.turn(text, text, conversation=branch)
            await desk.store.update(desk.owner, branch, {TITLE: text}, None)
            await desk.store.delete(desk.owner, await desk.conversation())
            aside = await desk.turn(text, text, previous=previous)
            await desk.store.delete_response(desk.owner, aside)
        if step % 7 == 6:
            items, _ = await desk.store.items(desk.owner, conversation, 1, "asc", None)
            told[:] = [one for one in told if one[1:] != (conversation, items[0].body["content"][0]["text"])]
            await desk.store.delete_item(desk.owner, conversation, items[0].id)


def faults(found: dict[str, Any]) -> list[str]:
    """What contradicts itself in a dump: the promises of lua/parts/keys.lua."""
    return [*_conversation_faults(found), *_turn_faults(found), *_shelf_faults(found)]


def _conversation_faults(found: dict[str, Any]) -> Iterator[str]:
    for name, fields in found.items():
        kind, owner, id = [*name.split(":"), "", ""][1:4]
        if kind != "conv":
            continue
        shelf = found.get(f"dm:shelf:{owner}:{fields[b'shelf'].decode()}", {})
        order = found.get(f"dm:order:{owner}:{id}", [])
        turns = [turn.decode() for turn in found.get(f"dm:turns:{owner}:{id}", [])]
        if order != sorted(order, key=int) or any(number not in shelf for number in order):
            yield f"{name} names items that are not there"
        if any(f"dm:turn:{owner}:{turn}" not in found for turn in turns):
            yield f"{name} names turns that are not there"
        running = [turn for turn in turns if found[f"dm:turn:{owner}:{turn}"][b"status"] == b"in_progress"]
        if running != [one.decode() for one in (fields.get(b"running"),) if one]:
            yield f"{name} is locked by another turn than runs"
        if [id.encode(), float(fields[b"updated"])] not in found.get(f"dm:convs:{owner}", []):
            yield f"{name} is not in the list"


def _turn_faults(found: dict[str, Any]) -> Iterator[str]:
    leases = {member.decode() for member, _ in found.get("dm:leases", [])}
    for name, fields in found.items():
        kind, owner, id = [*name.split(":"), "", ""][1:4]
        if kind != "turn":
            continue
        shelf = found.get(f"dm:shelf:{owner}:{fields[b'shelf'].decode()}", {})
        first = fields[b"in"].split(b"-")[0]
        runs = fields[b"status"] == b"in_progress"
        if b"q" + first not in shelf or (b"r" + first in shelf) == runs:
            yield f"{name} lacks its request or its result"
        if runs != (f"{owner}:{id}" in leases):
            yield f"{name} runs without a lease, or has one that it does not need"
        if b"conv" not in fields and any(b"%d" % number not in shelf for number in _numbers(fields)):
            yield f"{name} names items that are not there"
        if b"conv" in fields and id.encode() not in found.get(f"dm:turns:{owner}:{fields[b'conv'].decode()}", []):
            yield f"{name} is unknown to its conversation"
        if b"prev" in fields and f"dm:turn:{owner}:{fields[b'prev'].decode()}" not in found:
            yield f"{name} follows a turn that is not there"


def _shelf_faults(found: dict[str, Any]) -> Iterator[str]:
    for name, fields in found.items():
        kind, owner, id = [*name.split(":"), "", ""][1:4]
        if kind != "shelf":
            continue
        members = [
            (other.split(":")[1], other, one)
            for other, one in found.items()
            if other.startswith((f"dm:conv:{owner}:", f"dm:turn:{owner}:")) and one[b"shelf"] == id.encode()
        ]
        users = [one for one in members if one[0] == "conv" or b"conv" not in one[2]]
        if int(fields[b"refs"]) != len(users):
            yield f"{name} has {fields[b'refs'].decode()} users, {len(users)} are there"
        held: dict[bytes, int] = {}
        for kind, other, one in users:
            numbers = (
                found.get(other.replace("dm:conv", "dm:order"), []) if kind == "conv" else map(_text, _numbers(one))
            )
            for number in numbers:
                held[number] = held.get(number, 0) + 1
        items = {field: int(fields.get(b"h" + field, 1)) for field in fields if field.isdigit()}
        if items != held:
            yield f"{name} counts other holders than there are"
        if int(fields[b"n"]) < max(map(int, items), default=0):
            yield f"{name} would give a number twice"


def _numbers(fields: dict[bytes, bytes]) -> list[int]:
    ranges = [fields[name].split(b"-") for name in (b"in", b"out") if name in fields]
    return [number for first, last in ranges for number in range(int(first), int(last) + 1)]


def _text(number: int) -> bytes:
    return b"%d" % number


async def test_a_backup_made_while_eight_people_write_is_whole_and_has_all_that_was_acknowledged_before(
    redis_client: RedisClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(families, "MEMBERS", 20)  # many calls, so that much is written between them
    monkeypatch.setattr(families, "BYTES", 5000)
    monkeypatch.setattr(redis_client_module, "SCAN_COUNT", 50)
    store = store_at(redis_client)
    done = asyncio.Event()
    told: list[list[tuple[str, str, str]]] = [[] for _ in range(8)]
    writers = [asyncio.create_task(write(Desk(store, f"u_{n}"), n, done, told[n])) for n in range(8)]
    readers, meanwhile = [], 0
    for _ in range(3):
        count = sum(map(len, told))
        while sum(map(len, told)) < count + 40:  # noqa: ASYNC110 - people do not say when they have said enough
            await asyncio.sleep(0.01)
        before = [list(one) for one in told]
        readers.append((before, await backed_up(redis_client)))
        meanwhile += sum(map(len, told)) - sum(map(len, before))
    done.set()
    await asyncio.gather(*writers)
    assert meanwhile > 20
    assert faults(dump(redis_server)) == [], "the check itself finds faults in what was never backed up"
    for before, reader in readers:
        redis_server.reset()
        await load(redis_client, reader, "b", quiet)
        assert faults(dump(redis_server)) == []
        for person, now in zip(before, told, strict=True):
            for owner, conversation in {one[:2] for one in person}:
                kept = {one[2] for one in person if one[1] == conversation} & {one[2] for one in now}
                assert kept <= set(texts(await store.history(owner, conversation, None)))


async def test_keys_that_this_release_does_not_know_are_not_left_out_in_silence(redis_client: RedisClient):
    await redis_client.call("SET", "dm:novelty:1", "x")
    with pytest.raises(BackupError, match="dm:novelty"):
        await backed_up(redis_client)


def test_every_kind_of_key_that_the_code_names_is_known_to_the_backup():
    sources = [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "gateway" / "lua").rglob("*.lua")]
    named = {kind for path in sources for kind in re.findall(r"\bdm:(\w+)", path.read_text())} - {"foo"}
    named |= set(re.findall(r"key\('(\w+)'", "".join(path.read_text() for path in sources if path.suffix == ".lua")))
    assert named - FAMILIES - ALONE - DERIVED - {PEOPLE} == set()
    assert len(named) > 15


# the file ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole() -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream, Header(DATA_VERSION, "0", 0), Secret(SECRET))
    for number in range(40):
        writer.write(Key(b"dm:conv:u:%d" % number, "hash", [os.urandom(8), os.urandom(20_000)]))
    writer.close(conversations=0, people=0)
    return stream.getvalue()


@pytest.mark.parametrize("place", [0, 5, 17, 18, 40, 0.25, 0.5, 0.75, -33, -32, -1])
def test_a_backup_with_one_altered_bit_is_refused(whole: bytes, place: float):
    at = int(place * len(whole)) if isinstance(place, float) else place % len(whole)
    altered = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    with pytest.raises(BackupError, match=r"altered|not a backup|later release"):
        Reader(io.BytesIO(altered))


@pytest.mark.parametrize("length", [0, 3, 17, 18, 30, 0.1, 0.5, 0.9, -32, -1])
def test_a_backup_that_is_cut_off_is_refused(whole: bytes, length: float):
    kept = int(length * len(whole)) if isinstance(length, float) else length % len(whole)
    with pytest.raises(BackupError, match=r"cut off|not a backup"):
        Reader(io.BytesIO(whole[:kept]))


def test_bytes_behind_a_backup_are_refused(whole: bytes):
    with pytest.raises(BackupError, match="altered"):
        Reader(io.BytesIO(whole + b"\0"))


def test_a_long_key_comes_in_parts_that_hold_whole_pairs():
    values = [part for n in range(VALUES) for part in (b"f%d" % n, b"v" * 900)]
    parts = list(_written(Key(b"dm:shelf:u:s", "hash", values)).keys())
    assert len(parts) > 2
    assert all(len(part.values) % 2 == 0 and len(part.values) <= VALUES for part in parts)
    assert [value for part in parts for value in part.values] == values


# the words --------------------------------------------------------------------------------------------------------
async def test_the_file_is_its_owners_alone_and_never_replaces_one(
    redis_client: RedisClient, desk: Desk, secret_file: Path, tmp_path: Path
):
    await desk.conversation()
    file = tmp_path / "b"
    await backup(redis_client, secret_file, str(file), quiet)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    with pytest.raises(BackupError, match="exists"):
        await backup(redis_client, secret_file, str(file), quiet)
    assert file.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [file, secret_file]


async def test_a_restore_into_data_or_of_a_newer_backup_or_with_another_secret_changes_nothing(
    redis_client: RedisClient, redis_server: RedisServer, desk: Desk, secret_file: Path, tmp_path: Path
):
    await desk.conversation()
    file, newer = tmp_path / "b", tmp_path / "newer"
    await backup(redis_client, secret_file, str(file), quiet)
    before = dump(redis_server)
    with pytest.raises(BackupError, match="holds data already"):
        await restore(redis_client, secret_file, str(file), None, quiet)
    assert dump(redis_server) == before
    redis_server.reset()
    with newer.open("wb") as stream:
        writer = Writer(stream, Header(DATA_VERSION + 1, "9.9", 0), Secret(SECRET))
        writer.close(conversations=0, people=0)
    with pytest.raises(BackupError, match=r"release 9\.9"):
        await restore(redis_client, secret_file, str(newer), None, quiet)
    secret_file.write_bytes(b"another secret, of another installation")
    with pytest.raises(BackupError, match="another secret"):
        await restore(redis_client, secret_file, str(file), None, quiet)
    with pytest.raises(BackupError, match="another installation"):
        await restore(redis_client, secret_file, str(file), str(secret_file), quiet)
    assert dump(redis_server) == {}


def test_the_gateways_own_words_work_through_pipes_and_give_out_the_secret(
    redis_server: RedisServer, secret_file: Path, tmp_path: Path
):
    _words(redis_server, secret_file, "user", "create", "Ada")
    made = _words(redis_server, secret_file, "backup", "-")
    given = tmp_path / "given"
    redis_server.reset()
    given.write_bytes(_words(redis_server, tmp_path / "none", "restore", "-", "--secret-out", "-", send=made))
    assert given.read_bytes().strip() == SECRET
    assert b"Ada" in _words(redis_server, given, "user", "list")


def _words(server: RedisServer, secret: Path, *words: str, send: bytes = b"") -> bytes:
    password = secret.with_name("password")
    password.write_text(server.password)
    variables = {"REDIS_URL": server.url, "REDIS_PASSWORD_FILE": str(password), "SECRET_FILE": str(secret)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
    environment |= {f"DESKMATE_{name}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, input=send, stdout=subprocess.PIPE, check=True).stdout


# cut off ----------------------------------------------------------------------------------------------------------
def test_a_restore_that_was_killed_is_never_served_and_is_repaired_by_running_it_again(
    redis_server: RedisServer, whole: bytes
):
    def work(redis: RedisClient) -> Any:
        return load(redis, Reader(io.BytesIO(whole)), "monday", quiet)

    assert not killed_at(10**6, redis_server, work)
    undisturbed = dump(redis_server)
    assert len(undisturbed) == 41
    for call in range(3, 20):
        redis_server.reset()
        if not killed_at(call, redis_server, work):
            assert call > 6, "a restore has more calls than this"
            break
        if redis_server.admin("HEXISTS", "dm:meta", "restoring"):
            with pytest.raises(UnfinishedRestore, match="monday"):
                asyncio.run(_served(redis_server))
            killed_at(call, redis_server, work)
        else:
            assert dump(redis_server) in ({}, undisturbed), "what is half there must be marked"
        if dump(redis_server) != undisturbed:
            assert not killed_at(10**6, redis_server, work)
        assert dump(redis_server) == undisturbed


async def _served(server: RedisServer) -> None:
    redis = RedisClient(server.url, server.password)
    try:
        await bring_forward(redis, quiet)
    finally:
        await redis.aclose()


# what later releases must still read ------------------------------------------------------------------------------
def digest_of(items: list[Any]) -> str:
    return blake2b("\0".join(texts(items)).encode(), digest_size=8).hexdigest()


async def test_data_of_version_1_is_read_to_the_last_word(redis_client: RedisClient):
    """The file was made by the release that wrote version 1 first; it is never made again."""
    with VERSION_1.open("rb") as stream:
        reader = Reader(stream)
        assert reader.header.data_version == 1
        await load(redis_client, reader, "version 1", quiet)
    await bring_forward(redis_client, quiet)
    told = msgspec.json.decode(VERSION_1.with_suffix(".json").read_bytes())
    store = store_at(redis_client)
    assert [person.name for person in await People(redis_client).all()] == told["people"]
    for owner, conversations in told["conversations"].items():
        found, more = await store.list(owner, 100, None, None)
        assert not more
        assert {one.id for one in found} == set(conversations)
        for id, (metadata, said_then) in conversations.items():
            assert (await store.get(owner, id)).metadata == metadata
            assert digest_of(await store.history(owner, id, None)) == said_then
    for owner, turn, status, said_then in told["responses"]:
        response = await store.response(owner, turn)
        assert response.status == status
        assert digest_of([*response.input, *response.output]) == said_then
    assert await Keys(redis_client, Secrets(reader.secret.value)).find(told["key_digest"]) is not None
