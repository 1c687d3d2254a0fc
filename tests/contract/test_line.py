"""The shared line on real Redis: who gets the next seat, and what everybody has had. Times are virtual.

The workloads are those of fair-sharing papers (see docs/fairness.md); how they feel on a real engine is a benchmark.
"""

import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest

from gateway.admission import Fairness, Ticket
from gateway.admission.line import Capacity, How, Line, Lost
from gateway.errors import Busy
from gateway.quotas import UNLIMITED
from gateway.quotas.store import RedisQuotas
from gateway.redis_client import RedisClient
from tests.line_model import Model, ModelLine
from tests.line_simulation import Job, World, percentile
from tests.servers import RedisServer, some_redis

SEATS = Capacity(16)
ONE = Capacity(1)
MANY = Capacity(20)


@pytest.fixture
def chance() -> random.Random:
    return random.Random(7)


def about(chance: random.Random, person: str, prompt: int, output: int, **more: object) -> Callable[[], Job]:
    """Requests like this one; real ones do not end all together."""
    vary = lambda mean: chance.randint(mean - mean // 4, mean + mean // 4)  # noqa: E731
    return lambda: Job(person, vary(prompt), vary(output), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def one_redis() -> Iterator[RedisServer]:
    with some_redis() as server:
        yield server


@pytest.fixture
async def world(one_redis: RedisServer) -> AsyncIterator[Callable[..., World]]:
    """Time goes by on any one server alike."""
    one_redis.reset()
    redis = RedisClient(one_redis.url, one_redis.password)
    yield lambda capacity=SEATS, **given: World(Line(redis, "gw_one"), capacity, **given)
    await redis.aclose()


class Desk:
    """One gateway at the line, at a moment that a test moves."""

    def __init__(self, redis: RedisClient, name: str = "gw_one", capacity: Capacity = ONE, **limits: float) -> None:
        self.line = Line(redis, name, **limits)  # type: ignore[arg-type]
        self.capacity = capacity
        self.now = 1_000
        self.ids = (f"{name}-{n}" for n in itertools.count(1))

    async def register(self) -> "Desk":
        await self.line.step(self.capacity, 2.0, register=True, now_ms=self.now)
        return self

    async def join(self, person: str, *, how: How = How.NEW, prompt: int = 10, most: int = 10, **more: object) -> str:
        id = next(self.ids)
        ticket = Ticket(person, prompt, most, **more)  # type: ignore[arg-type]
        await self.line.join(self.capacity, id, ticket, how, now_ms=self.now)
        return id

    async def leave(self, id: str, tokens: int = 10) -> None:
        await self.line.leave(self.capacity, {id: (tokens, None)}, now_ms=self.now)

    async def seated(self) -> set[str]:
        """All that have a seat: nothing was said to be heard."""
        return set((await self.line.step(self.capacity, 2.0, now_ms=self.now))[1])

    async def places(self) -> dict[str, int]:
        return {
            id: waiting.position for id, waiting in (await self.line.places(self.capacity, now_ms=self.now)).items()
        }

    async def clock(self) -> dict[str, float]:
        flat = await self.line.redis.call("HGETALL", "dm:line:clock")
        return {name.decode(): float(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def counter(self, person: str) -> float:
        packed = await self.line.redis.call("HGET", "dm:line:people", person)
        return float(msgspec.msgpack.decode(packed)["inter"])


@pytest.fixture
async def desk(redis_client: RedisClient) -> Desk:
    return await Desk(redis_client).register()


# one step after the other -------------------------------------------------------------------------------------------


async def test_who_was_served_least_is_next_and_ones_own_come_in_their_order(desk: Desk):
    running = await desk.join("heavy")
    more = [await desk.join("heavy") for _ in range(3)]
    light = await desk.join("light")
    assert await desk.seated() == {running}
    places = await desk.places()
    assert places[light] == 1 and [places[id] for id in more] == [2, 3, 4]
    await desk.leave(running)
    assert await desk.seated() == {light}


async def test_a_person_has_the_weight_that_was_set_for_them(desk: Desk):
    await RedisQuotas(desk.line.redis, UNLIMITED).set_weight("ada", 4.0)
    await desk.leave(await desk.join("ada", prompt=100, most=1000), tokens=300)
    await desk.leave(await desk.join("bob", prompt=100, most=1000), tokens=300)
    assert await desk.counter("ada") == (100 + 2 * 300) / 4
    assert await desk.counter("bob") == 100 + 2 * 300


async def test_among_equals_who_came_first_is_first(desk: Desk):
    running = await desk.join("zoe")
    waiting = [await desk.join(person) for person in ("cem", "ada", "bob")]
    assert await desk.places() == dict(zip(waiting, (1, 2, 3), strict=True))
    first, *others = waiting
    await desk.leave(first)  # it gives up
    again = await desk.join("cem")
    for next_one in [*others, again]:
        await desk.leave(running)
        assert await desk.seated() == {next_one}
        running = next_one


async def test_every_step_may_be_repeated_and_nothing_is_left_behind(desk: Desk):
    id = next(desk.ids)
    for _ in range(3):
        assert (await desk.line.join(ONE, id, Ticket("ada", 10, 10), now_ms=desk.now))[0] == {id}
    waiting = await desk.join("ada")
    assert (await desk.clock())["flying"] == 1
    for _ in range(3):
        await desk.leave(id)
    assert await desk.seated() == {waiting}
    await desk.leave(waiting)
    clock = await desk.clock()
    assert (clock["flying"], clock["reserved"]) == (0, 0)
    left = [name async for names in desk.line.redis.scan("dm:line:*") for name in names]
    assert sorted(left) == [b"dm:line:clock", b"dm:line:gateways", b"dm:line:light", b"dm:line:people"]


async def test_seats_that_are_freed_at_once_are_given_one_by_one(redis_client: RedisClient):
    desk = await Desk(redis_client, capacity=Capacity(2)).register()
    running = [await desk.join("ada"), await desk.join("ada")]
    first, second, other = await desk.join("bob"), await desk.join("bob"), await desk.join("cem")
    await desk.line.leave(desk.capacity, dict.fromkeys(running, (10, None)), now_ms=desk.now)
    assert await desk.seated() == {first, other}
    assert await desk.places() == {second: 1}


async def test_batch_work_neither_helps_nor_harms_its_person_at_the_desk(desk: Desk):
    await desk.join("batch")
    for _ in range(5):
        await desk.join("batch", flex=True)
    for _ in range(30):  # meanwhile another is served, and a tenth is batch work
        await desk.join("busy")
        await desk.leave((await desk.seated()).pop())
    own, _ = [{await desk.join(who) for _ in range(12)} for who in ("batch", "busy")]
    served = []
    for _ in range(12):
        await desk.leave((await desk.seated()).pop())
        served += list(await desk.seated())
    assert 4 <= len(own & set(served)) <= 7


async def test_an_answer_that_has_begun_comes_before_everybody_and_is_never_refused(redis_client: RedisClient):
    desk = await Desk(redis_client, longest=1).register()
    running, first = await desk.join("ada"), await desk.join("ada")
    with pytest.raises(Busy) as refused:
        await desk.join("ada")
    assert int(refused.value.headers["retry-after"]) >= 1
    begun, next_one = ("z", "a")  # their names say nothing of their order
    for id in (begun, next_one):
        await desk.line.join(ONE, id, Ticket("ada", 10, 10), How.PROMISED, now_ms=desk.now)
    assert await desk.places() == {begun: 1, next_one: 2, first: 3}
    await desk.leave(running)
    assert await desk.seated() == {begun}


async def test_a_wait_longer_than_the_longest_is_refused_at_once_with_its_estimate(redis_client: RedisClient):
    desk = await Desk(redis_client, longest_wait_seconds=60).register()
    running = [await desk.join(f"p{n}", most=1000) for n in range(20)]
    for _ in range(8):  # it takes a while until it is known how fast the engine is
        desk.now += 1000
        await desk.line.step(ONE, 2.0, produced={running[0]: (desk.now - 1000) // 100}, now_ms=desk.now)
    with pytest.raises(Busy, match="about") as refused:
        await desk.join("late", most=1000)
    assert int(refused.value.headers["retry-after"]) > 60


async def test_an_engine_that_reads_a_long_prompt_makes_no_estimate_grow(redis_client: RedisClient):
    desk = await Desk(redis_client).register()
    running, waiting = [await desk.join(f"p{n}", most=1000) for n in range(2)]
    told = []
    for second in range(1, 58):
        desk.now += 1000
        produced = 100 * min(second, 8)  # then it reads for 49 seconds, and writes nothing
        await desk.line.step(ONE, 2.0, produced={running: produced}, now_ms=desk.now)
        told.append((await desk.line.places(ONE, now_ms=desk.now))[waiting].eta_seconds)
    assert told[8] == told[-1]
    desk.now += 1000
    await desk.line.step(ONE, 2.0, produced={running: 900}, now_ms=desk.now)
    assert told[-1] < (await desk.line.places(ONE, now_ms=desk.now))[waiting].eta_seconds < 2 * told[-1]


async def test_ones_own_line_is_bounded_by_the_longest_wait_too(redis_client: RedisClient):
    desk = await Desk(redis_client, longest_wait_seconds=60).register()
    running = await desk.join("ann", most=1000)
    await desk.join("ann", most=1000)
    for _ in range(8):
        desk.now += 1000
        await desk.line.step(ONE, 2.0, produced={running: (desk.now - 1000) // 100}, now_ms=desk.now)
    with pytest.raises(Busy, match="about"):
        for _ in range(100):
            await desk.join("ann", most=1000)


async def test_a_request_too_large_for_the_free_memory_is_passed_but_not_for_ever(redis_client: RedisClient):
    desk = await Desk(redis_client, capacity=Capacity(8, kv_tokens=1000)).register()
    small = [await desk.join(f"p{n}", prompt=100, most=50) for n in range(4)]
    large = await desk.join("large", prompt=800, most=50)
    passing = await desk.join("passing", prompt=100, most=50)
    assert await desk.seated() == {*small, passing}
    desk.now += 2_500
    late = await desk.join("late", prompt=50, most=10)
    assert late not in await desk.seated()
    for id in (*small, passing):
        await desk.leave(id)
    assert {large, late} >= await desk.seated() >= {large}


# gateways that come and go -------------------------------------------------------------------------------------------


async def test_gateways_share_the_seats_and_what_a_dead_one_held_is_given_back_and_charged(redis_client: RedisClient):
    one, other = [await Desk(redis_client, name, Capacity(2)).register() for name in ("gw_one", "gw_two")]
    dead = [await one.join("ada", prompt=100, most=1000), await one.join("bob", prompt=100, most=1000)]
    waits = await one.join("ada")
    mine = await other.join("eve")
    await one.line.step(one.capacity, 2.0, produced={dead[0]: 300}, now_ms=one.now)
    assert await other.seated() == set()
    for _ in range(9):
        other.now += 250
        await other.seated()
    assert await other.seated() == {mine}
    assert (await other.clock())["flying"] == 1
    charged = await one.counter("ada")
    with pytest.raises(Lost):
        await one.line.step(one.capacity, 2.0, now_ms=other.now)
    one.now = other.now
    await one.register()
    for id, who in zip(dead, ("ada", "bob"), strict=True):
        await one.line.join(one.capacity, id, Ticket(who, 100, 1000), How.SEATED, now_ms=one.now)
    assert await one.seated() == set(dead)
    assert (await one.clock())["flying"] == 3  # more than there are seats, until they end: they are in the engine
    assert waits not in await one.places()
    assert await one.counter("ada") == charged == 100 + 2 * 300  # not twice
    await one.leave(dead[0], tokens=400)
    assert await one.counter("ada") == 100 + 2 * 400


async def test_what_a_dead_gateway_held_is_given_back_also_when_the_one_that_sees_it_is_refused(
    redis_client: RedisClient,
):
    one = await Desk(redis_client, "gw_one", Capacity(2)).register()
    other = await Desk(redis_client, "gw_two", Capacity(2), longest=1).register()
    for _ in range(2):
        await one.join("ada")
    other.now += 1_500
    assert await other.seated() == set()
    mine = await other.join("eve")
    other.now += 1_000
    with pytest.raises(Busy):
        await other.join("eve")
    assert await other.seated() == {mine}
    assert (await other.clock())["flying"] == 1


async def test_the_line_as_a_whole_is_told_by_class_over_all_gateways(redis_client: RedisClient):
    one, two = [await Desk(redis_client, name).register() for name in ("gw_one", "gw_two")]
    empty = await one.line.look(ONE, now_ms=one.now)
    assert (empty.flying, empty.people, empty.behind) == (0, 0, 0)
    assert empty.fairness == Fairness(jain=1.0, largest=0.0, people=0)
    assert set(empty.waiting.values()) == set(empty.oldest_seconds.values()) == {0}
    await one.join("ann", most=100)
    one.now += 500
    await one.join("ann")
    two.now = one.now + 500
    await two.join("bob", flex=True)
    await two.join("cid", how=How.PROMISED)
    seen = await two.line.look(ONE, now_ms=two.now + 1000)
    assert (seen.flying, seen.people) == (1, 2)
    assert seen.waiting == {"inter": 1, "flex": 1, "promised": 1}
    assert seen.oldest_seconds == {"inter": 1.5, "flex": 1.0, "promised": 1.0}
    assert seen.behind >= 0


async def test_how_even_a_minute_was_among_those_who_always_wanted_more(desk: Desk):
    for who in ("ada", "bob", "cem"):
        for _ in range(120):
            await desk.join(who, weight=3.0 if who == "cem" else 1.0)
    for second in range(121):
        desk.now += 1000
        if second == 70:
            await desk.join("late")
        (running,) = await desk.seated()
        await desk.leave(running)
    fairness = (await desk.line.look(ONE, now_ms=desk.now)).fairness
    assert fairness.people == 3 and fairness.jain > 0.999
    assert fairness.largest == pytest.approx(1 / 3, abs=0.02)


async def test_what_was_not_heard_is_told_again(desk: Desk):
    id = await desk.join("ada")
    for _ in range(2):
        assert (await desk.line.step(ONE, 2.0, now_ms=desk.now))[1] == {id}
    await desk.line.step(ONE, 2.0, heard=[id], now_ms=desk.now)
    assert await desk.seated() == set()


# people, over time ----------------------------------------------------------------------------------------------------


async def test_a_day_on_the_model_is_the_same_day_as_in_redis(world: Callable[..., World]):
    """What benchmarks simulate is what people get."""
    days = []
    for made in (world(MANY), World(ModelLine(Model(), "gw_one"), MANY)):
        made.closed("heavy", 40, about(random.Random(1), "heavy", 256, 128))
        made.closed("batch", 10, about(random.Random(2), "batch", 128, 128, flex=True))
        for at in range(0, 20_000, 700):
            made.at(at, Job("light", 100, 30, weight=2))
        await made.run(15_000)
        await made.look()
        await made.run(20_000)
        days.append((made.history, [(ran.seated, ran.first, ran.done) for ran in made.ran], [t[1:] for t in made.told]))
    assert days[0] == days[1]
    assert len(days[0][2]) > 20


async def test_beside_one_with_48_jobs_others_are_served_as_if_nearly_alone(world: Callable[..., World]):
    """FS1. One line for all makes them wait hundreds of times as long."""

    def people(made: World, *, heavy: bool) -> World:
        chance = random.Random(7)
        if heavy:
            made.closed("heavy", 48, about(random.Random(8), "heavy", 256, 128))
        for person in (f"light{n}" for n in range(10)):
            at = chance.random() * 10_000
            while at < 60_000:
                made.at(at, Job(person, 128, chance.randint(32, 64)))
                at += 3_000 + chance.expovariate(1 / 6_000)  # they read the answer first
        return made

    light = [f"light{n}" for n in range(10)]
    waits = {}
    for name, heavy, first_come in (("alone", False, False), ("fair", True, False), ("first come", True, True)):
        made = await people(world(MANY, first_come=first_come), heavy=heavy).run(60_000)
        waits[name] = made.waits(*light, after=20_000)
        await made.line.redis.call("DEL", *[n async for names in made.line.redis.scan("dm:line:*") for n in names])
        if heavy:
            total = sum(made.served.values())
            print(name, f"{total / 60:.0f} tokens/s")
    alone, fair, first = (percentile(waits[name], 0.95) for name in ("alone", "fair", "first come"))
    print(f"p95 to the first token: alone {alone:.3f} s, fair {fair:.3f} s, one line {first:.3f} s")
    assert fair <= 4 * alone and first >= 20 * fair


@pytest.mark.parametrize("shapes", [((256, 256), (256, 256)), ((64, 256), (256, 64))], ids=["same", "mirrored"])
async def test_two_who_always_want_more_are_served_the_same(world: Callable[..., World], chance: random.Random, shapes):
    """FS2, FS3. The bound is that of the algorithm, without knowing how long an answer will be."""
    made = world()
    for person, (prompt, output), parallel in zip("ab", shapes, (24, 48), strict=True):
        made.closed(person, parallel, about(chance, person, prompt, output))
    await made.run(60_000)
    bound = 2 * (320 + 2 * 16 * 320)
    apart = [abs(served.get("a", 0) - served.get("b", 0)) for _, served in made.history]
    print(f"most apart {max(apart):.0f} of {bound}; {dict(made.served)}")
    assert max(apart) <= bound
    a, b = made.service("a", 15_000), made.service("b", 15_000)
    assert (a + b) ** 2 / (2 * (a * a + b * b)) > 0.999
    assert made.most_flying == 16


async def test_weights_are_the_shares(world: Callable[..., World], chance: random.Random):
    """FS5."""
    made = world()
    for weight in (1, 2, 3, 4):
        made.closed(f"w{weight}", 24, about(chance, f"w{weight}", 128, 128, weight=weight))
    await made.run(60_000)
    each = [made.service(f"w{weight}", 20_000) / weight for weight in (1, 2, 3, 4)]
    assert max(each) / min(each) < 1.1


@pytest.mark.parametrize("before", [0, 3], ids=["away", "asked for little"])
async def test_who_asked_for_less_is_not_owed_the_rest_and_who_stayed_is_not_starved(
    world: Callable[..., World], chance: random.Random, before: int
):
    """FS6. Counters without a clock would give the newcomer everything for as long as it was away."""
    made = world()
    made.closed("stays", 24 if before else 10, about(chance, "stays", 128, 128))
    made.closed("comes", before, about(chance, "comes", 128, 128))
    made.closed("comes", 32, about(chance, "comes", 128, 128), start=30_000)
    await made.run(60_000)
    stays, comes = made.service("stays", 32_000), made.service("comes", 32_000)
    assert stays / (stays + comes) > 0.45


async def test_flex_takes_what_is_free_and_a_tenth_when_nothing_is(world: Callable[..., World], chance: random.Random):
    """FS7."""
    made = world(MANY)
    made.closed("batch", 40, about(chance, "batch", 128, 128, flex=True))
    await made.run(20_000)
    alone = made.service("batch", 5_000) / 15
    made.closed("desk", 40, about(chance, "desk", 128, 128), start=20_000)
    await made.run(65_000)
    batch, desk = made.service("batch", 25_000), made.service("desk", 25_000)
    assert alone > 0.7 * (batch + desk) / 40
    assert 0.08 < batch / (batch + desk) < 0.15


@pytest.mark.parametrize("trick", ["many tiny", "asks for much", "leaves early"])
async def test_nobody_gets_more_by_a_trick(world: Callable[..., World], trick: str):
    """FS10. A person's keys are one person by their ticket; these are the other ways."""
    made = world()
    job = {
        "many tiny": Job("sly", 8, 8),
        "asks for much": Job("sly", 128, 128, most=4096),
        "leaves early": Job("sly", 256, 4),
    }
    made.closed("sly", 64, lambda: job[trick])
    made.closed("fair", 24, about(random.Random(8), "fair", 128, 128))
    await made.run(30_000)
    sly, fair = made.service("sly", 10_000), made.service("fair", 10_000)
    assert sly / (sly + fair) < 0.55


async def test_the_estimate_of_the_wait_is_honest(world: Callable[..., World]):
    """FS11."""
    made = world()
    for person in "abcd":
        made.closed(person, 16, about(random.Random(ord(person)), person, 128, 128))
    await made.run(15_000)
    told = {id: w.eta_seconds for id, w in (await made.line.places(SEATS, now_ms=int(made.now) + 1)).items()}
    asked = {id: made.waiting[id] for id in told}
    since = made.now
    await made.run(45_000)
    errors = [told[id] / max(0.05, (ran.seated - since) / 1000) for id, ran in asked.items() if ran.seated]
    print("told ÷ real: p10, p50, p90", [round(percentile(errors, share), 2) for share in (0.1, 0.5, 0.9)])
    assert len(errors) > 30 and 0.5 < percentile(errors, 0.5) < 2
