"""People, keys, sessions and links on every Redis supported."""

import asyncio
import contextlib

import pytest

from gateway.auth.keys import Keys, new_key
from gateway.auth.people import People, Person, refuse_delegate
from gateway.auth.principal import Role, Scope
from gateway.auth.secret import Secrets
from gateway.auth.sessions import ABSOLUTE_SECONDS, IDLE_SECONDS, Sessions
from gateway.auth.throttle import Throttle
from gateway.errors import BadRequest, Busy, Forbidden
from gateway.redis_client import RedisClient
from tests.servers import RedisServer

DAY = 86_400
MOST = 10_000


class Clock:
    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets(b"s" * 32)


@pytest.fixture
def people(redis_client: RedisClient, clock: Clock) -> People:
    return People(redis_client, clock)


@pytest.fixture
def keys(redis_client: RedisClient, secrets: Secrets, clock: Clock) -> Keys:
    return Keys(redis_client, secrets, clock)


@pytest.fixture
def sessions(redis_client: RedisClient, secrets: Secrets, clock: Clock) -> Sessions:
    return Sessions(redis_client, secrets, clock)


async def test_a_person_is_found_by_id_and_by_name_whatever_its_case(people: People) -> None:
    made = await people.create("Grüße Müller", Role.ADMINISTRATOR, "IT")
    assert await people.get(made.id) == made
    assert await people.named("GRÜSSE MU\u0308LLER ") == made
    assert (made.role, made.department, made.disabled) == (Role.ADMINISTRATOR, "IT", False)
    assert await people.named("nobody") is None


async def test_a_name_is_given_once_however_many_ask_for_it(people: People) -> None:
    made = await asyncio.gather(*(people.ensure("ann") for _ in range(50)))
    assert len({person.id for person in made}) == 1
    assert len(await people.all()) == 1
    with pytest.raises(BadRequest, match="already a person named 'Ann'"):
        await people.create("Ann")


@pytest.mark.parametrize("name", ["", "   ", "x" * 129, "a\nb", "a\0b", "front/end", "\u202eevil"])
async def test_an_unusable_name_is_refused(people: People, name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await people.create(name)
    assert refused.value.param == "name"
    assert await people.all() == []


async def test_the_people_are_listed_oldest_first_with_their_keys_counted(
    people: People, keys: Keys, clock: Clock
) -> None:
    for name in ("zoe", "ann"):
        person = await people.create(name)
        clock.now += 1
    await keys.create(person.id)
    assert [(p.name, p.keys) for p in await people.all()] == [("zoe", 0), ("ann", 1)]


async def test_a_delegates_person_is_nobody_who_signs_in_here(people: People) -> None:
    front_end = await people.create("webui")
    ann = await people.create("ann")
    delegate = await people.delegate(front_end, "ann", MOST)
    assert delegate.id != ann.id and delegate.name == "webui/ann" and delegate.owner == front_end.id
    assert await people.named("WebUI/ann") == delegate
    with pytest.raises(BadRequest):
        await people.delegate(delegate, "other", MOST)
    with pytest.raises(BadRequest):
        refuse_delegate(delegate)
    with pytest.raises(BadRequest):
        await people.create("webui/bob")


async def test_a_front_ends_people_are_named_to_the_letter_and_apart_from_those_of_another(people: People) -> None:
    one, other = await people.create("webui"), await people.create("chat")
    words = ["Zm9v", "zm9v", "ann", "ann/", "a/nn", "Ann"]
    made = {(await people.delegate(owner, word, MOST)).id for owner in (one, other) for word in words}
    assert len(made) == 2 * len(words)


async def test_a_front_ends_person_is_made_once_and_then_only_read(people: People, redis_server: RedisServer) -> None:
    owner = await people.create("webui")
    made = await asyncio.gather(*(people.delegate(owner, "ann", MOST) for _ in range(50)))
    assert len({person.id for person in made}) == 1
    before = _changes(redis_server)
    for _ in range(20):
        await people.delegate(owner, "ann", MOST)
    assert _changes(redis_server) == before


async def test_a_front_end_names_no_more_people_than_it_may_however_many_at_once(people: People) -> None:
    owner = await people.create("webui")
    made = await asyncio.gather(*(people.delegate(owner, f"p{n}", 5) for n in range(20)), return_exceptions=True)
    refused = [one for one in made if isinstance(one, Forbidden)]
    assert len(refused) == 15 and {one.code for one in refused} == {"too_many_people"}
    known = next(one for one in made if isinstance(one, Person))
    assert await people.delegate(owner, known.name.partition("/")[2], 5) == known, "who is there goes on"
    await people.delegate(await people.create("chat"), "p19", 5)


async def test_a_front_ends_people_are_listed_with_it_and_not_among_the_others(people: People, clock: Clock) -> None:
    owner = await people.create("webui")
    for name in ("ann", "bob"):
        await people.delegate(owner, name, MOST)
        clock.now += 1
    assert [(p.name, p.speaks_for) for p in await people.all()] == [("webui", 2)]
    assert [p.name async for p in people.delegates(owner.id)] == ["webui/bob", "webui/ann"]


async def test_very_many_people_of_a_front_end_are_listed_in_pieces(people: People, clock: Clock) -> None:
    owner = await people.create("webui")
    for number in range(1203):
        await people.delegate(owner, str(number), MOST)
        clock.now += 1
    listed = [int(p.name.partition("/")[2]) async for p in people.delegates(owner.id)]
    assert listed == list(range(1202, -1, -1))


async def test_a_key_is_found_by_its_digest_only_and_never_stored(
    keys: Keys, secrets: Secrets, redis_server: RedisServer
) -> None:
    key, text = await keys.create("user_1", "laptop", frozenset({Scope.CHAT, Scope.METRICS}))
    found = await keys.find(secrets.digest_of_key(text))
    assert found is not None
    assert (found.id, found.user, found.name, found.scopes) == (key.id, "user_1", "laptop", key.scopes)
    assert await keys.find(secrets.digest_of_key(new_key())) is None
    names = [name.decode() for name in redis_server.admin("KEYS", "*")]
    assert sorted(names) == sorted([f"dm:key:{secrets.digest_of_key(text)}", "dm:keys", "dm:keys:user_1"])
    assert not any(text.encode() in redis_server.admin("DUMP", name) for name in names)


async def test_a_revoked_key_opens_nothing_and_is_revoked_once(keys: Keys, secrets: Secrets) -> None:
    key, text = await keys.create("user_1")
    assert await keys.revoke(key.id)
    assert await keys.find(secrets.digest_of_key(text)) is None
    assert not await keys.revoke(key.id)
    assert await keys.all() == []


async def test_an_expired_key_opens_nothing(keys: Keys, secrets: Secrets, clock: Clock) -> None:
    key, text = await keys.create("user_1", expires_in_days=2)
    assert key.expires_at == clock.now + 2 * DAY
    clock.now += 2 * DAY - 1
    assert await keys.find(secrets.digest_of_key(text))
    clock.now += 1
    assert await keys.find(secrets.digest_of_key(text)) is None


async def test_an_expiring_key_leaves_redis_by_itself(
    keys: Keys, secrets: Secrets, redis_client: RedisClient, redis_server: RedisServer
) -> None:
    _, text = await keys.create("user_1", expires_in_days=1)
    name = f"dm:key:{secrets.digest_of_key(text)}"
    assert await redis_client.call("TTL", name) > 0
    await redis_client.call("DEL", name)  # as its TTL will
    assert await keys.all() == []
    assert redis_server.admin("HLEN", "dm:keys") == 0


async def test_a_keys_use_is_written_once_a_day(
    keys: Keys, secrets: Secrets, redis_server: RedisServer, clock: Clock
) -> None:
    _, text = await keys.create("user_1")
    digest = secrets.digest_of_key(text)
    await keys.find(digest)
    assert (await keys.all())[0].last_used == "2033-05-18"
    before = _changes(redis_server)
    for _ in range(20):
        await keys.find(digest)
    assert _changes(redis_server) == before
    clock.now += DAY
    await keys.find(digest)
    assert (await keys.all())[0].last_used == "2033-05-19"


def _changes(server: RedisServer) -> int:
    info = server.admin("INFO", "persistence")
    assert isinstance(info, dict)
    return int(info["rdb_changes_since_last_save"])


async def test_a_use_noted_while_a_key_is_revoked_brings_nothing_back(redis_client: RedisClient) -> None:
    assert await redis_client.run("mark_key_used", ["dm:key:gone"], ["2033-05-18"]) == 0
    assert await redis_client.call("EXISTS", "dm:key:gone") == 0


async def test_a_session_is_known_by_its_token_only(sessions: Sessions, secrets: Secrets) -> None:
    token = await sessions.open("user_1")
    assert len(token) == 43
    assert await sessions.user_of(secrets.digest_of_token(token)) == "user_1"
    assert await sessions.user_of(secrets.digest_of_token(token[:-1])) is None
    assert await sessions.user_of(token) is None


async def test_a_session_ends_by_idleness_and_at_its_absolute_age(
    sessions: Sessions, secrets: Secrets, redis_client: RedisClient, clock: Clock
) -> None:
    digest = secrets.digest_of_token(await sessions.open("user_1"))
    name = f"dm:session:{digest}"
    assert await _ttl(redis_client, name) == IDLE_SECONDS

    await redis_client.call("EXPIRE", name, 1000)
    await sessions.user_of(digest)
    assert await _ttl(redis_client, name) == IDLE_SECONDS, "use puts the idle limit off"

    await redis_client.call("EXPIRE", name, IDLE_SECONDS - 1800)
    await sessions.user_of(digest)
    assert await _ttl(redis_client, name) == IDLE_SECONDS - 1800, "but costs a write once an hour only"

    clock.now += ABSOLUTE_SECONDS - 100
    await redis_client.call("EXPIRE", name, 50)
    await sessions.user_of(digest)
    assert await _ttl(redis_client, name) == 50, "and never goes past the absolute limit"

    clock.now += 100
    assert await sessions.user_of(digest) is None
    assert await redis_client.call("EXISTS", name) == 0


async def _ttl(redis_client: RedisClient, name: str) -> int:
    return round(await redis_client.call("PTTL", name) / 1000)


async def test_a_session_ended_is_ended_on_the_server(sessions: Sessions, secrets: Secrets) -> None:
    one, other = await sessions.open("user_1"), await sessions.open("user_1")
    await sessions.end(one)
    assert await sessions.user_of(secrets.digest_of_token(one)) is None
    assert await sessions.user_of(secrets.digest_of_token(other)) == "user_1"
    await sessions.end_all("user_1")
    assert await sessions.user_of(secrets.digest_of_token(other)) is None


async def test_sessions_that_ended_are_forgotten_at_the_next_sign_in(
    sessions: Sessions, redis_client: RedisClient
) -> None:
    for _ in range(5):
        await sessions.end(await sessions.open("user_1"))
    await sessions.open("user_1")
    assert await redis_client.call("SCARD", "dm:sessions:user_1") == 1


async def test_disabling_a_person_ends_their_sessions_for_ever(
    people: People, sessions: Sessions, secrets: Secrets
) -> None:
    person, other = await people.create("ann"), await people.create("bob")
    tokens = [await sessions.open(person.id) for _ in range(3)]
    kept = await sessions.open(other.id)
    await people.disable(person.id)
    await people.enable(person.id)
    assert not (await people.get(person.id)).disabled  # type: ignore[union-attr]
    for token in tokens:
        assert await sessions.user_of(secrets.digest_of_token(token)) is None
    assert await sessions.user_of(secrets.digest_of_token(kept)) == other.id


async def test_disabling_nobody_makes_nobody(people: People) -> None:
    await people.disable("user_none")
    assert await people.get("user_none") is None


@pytest.fixture
def throttle(redis_client: RedisClient, secrets: Secrets) -> Throttle:
    return Throttle(redis_client, secrets)


async def fail(throttle: Throttle, account: str, address: str, times: int) -> int:
    """How many of so many failed tries were let through."""
    through = 0
    for _ in range(times):
        with contextlib.suppress(Busy):
            await throttle.begin(account, address)
            through += 1
    return through


async def test_an_address_has_five_failures_at_an_account(throttle: Throttle) -> None:
    assert await fail(throttle, "ann", "10.0.0.1", 8) == 5
    assert await fail(throttle, "ann", "10.0.0.2", 1) == 1, "another address"
    assert await fail(throttle, "bob", "10.0.0.1", 1) == 1, "another account"


async def test_an_address_that_tries_many_accounts_and_an_account_tried_from_many_addresses_are_held_back(
    throttle: Throttle,
) -> None:
    assert sum([await fail(throttle, f"name {n}", "10.0.0.1", 1) for n in range(120)]) == 100
    assert sum([await fail(throttle, "ann", f"10.0.{n}.1", 1) for n in range(1, 121)]) == 100


async def test_who_has_signed_in_from_an_address_is_not_locked_out_by_others(throttle: Throttle) -> None:
    await throttle.succeeded(await throttle.begin("ann", "10.0.0.1"))
    await asyncio.gather(*(fail(throttle, f"name {n}", "10.0.0.1", 1) for n in range(120)))
    await asyncio.gather(*(fail(throttle, "ann", f"10.1.{n}.1", 1) for n in range(120)))
    assert await fail(throttle, "new", "10.0.0.1", 1) == 0
    assert await fail(throttle, "ann", "10.2.0.1", 1) == 0
    assert await fail(throttle, "ann", "10.0.0.1", 8) == 5


async def test_success_and_withdrawal_give_tries_back(throttle: Throttle, redis_client: RedisClient) -> None:
    await fail(throttle, "ann", "10.0.0.1", 4)
    await throttle.succeeded(await throttle.begin("ann", "10.0.0.1"))
    assert await fail(throttle, "ann", "10.0.0.1", 8) == 5
    for _ in range(20):
        await throttle.withdraw(await throttle.begin("bob", "10.0.0.2"))
    assert await fail(throttle, "bob", "10.0.0.2", 8) == 5


async def test_an_ipv6_client_is_its_whole_network(throttle: Throttle) -> None:
    assert sum([await fail(throttle, "ann", f"2001:db8::{n:x}", 1) for n in range(8)]) == 5
    assert await fail(throttle, "ann", "2001:db8:0:1::1", 1) == 1


async def test_what_the_throttle_keeps_names_nobody_and_goes_by_itself(
    throttle: Throttle, redis_server: RedisServer
) -> None:
    await throttle.succeeded(await throttle.begin("ann", "10.0.0.1"))
    await throttle.begin("ann", "10.0.0.2")
    names = redis_server.admin("KEYS", "*")
    assert names
    for name in names:
        assert b"ann" not in name and b"10.0" not in name
        assert redis_server.admin("TTL", name) > 0
