"""Limits on real Redis: what is refused, what is counted and how often, and when it renews. Times are virtual."""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.admission import Ticket
from gateway.admission.line import Capacity, How, Line
from gateway.errors import Busy, QuotaSpent, RateLimited
from gateway.quotas import Allowance, Balance, Kind, Source
from gateway.quotas.store import RedisQuotas
from gateway.redis_client import RedisClient
from tests.servers import RedisServer

MANY = Capacity(1000)
DAY, MONTH, MINUTE, AT_ONCE = Kind


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc]


class Door:
    """One gateway at the line at a moment that a test moves; everybody has the same limits at first."""

    def __init__(self, redis: RedisClient, name: str = "gw_one", **limits: int) -> None:
        everybody = Allowance(**limits)
        self.redis = redis
        self.line = Line(redis, name, longest=10_000, everybody=everybody)
        self.quotas = RedisQuotas(redis, everybody)
        self.now = ms(2026, 11, 26, 12)
        self.ids = (f"{name}-{n}" for n in itertools.count(1))

    async def open(self) -> "Door":
        await self.line.step(MANY, 3600, register=True, now_ms=self.now)
        return self

    async def at(self, *date: int) -> None:
        self.now = ms(*date)
        await self.open()

    async def comes(self, person: str, key: str | None = None, *, how: How = How.NEW, **more: Any) -> str:
        id = next(self.ids)
        ticket = Ticket(person, 10, 100, key=key, **more)
        _, self.balance = await self.line.join(MANY, id, ticket, how, now_ms=self.now)
        return id

    async def goes(self, id: str, tokens: int, prompt: int | None = None) -> None:
        await self.line.leave(MANY, {id: (tokens, prompt)}, now_ms=self.now)

    async def uses(self, person: str, tokens: int, key: str | None = None) -> None:
        await self.goes(await self.comes(person, key), tokens, 0)

    async def stands(self, person: str, key: str | None = None) -> Balance:
        return await self.quotas.balance(person, key, now_ms=self.now)

    async def used(self, person: str) -> list[int]:
        return [meter.used for meter in (await self.stands(person)).meters]


@pytest.fixture
def door(redis_client: RedisClient) -> Callable[..., Any]:
    return lambda **limits: Door(redis_client, **limits).open()


async def test_without_limits_everything_is_counted_and_nothing_refused(door):
    one = await door()
    id = await one.comes("ada", "key_1")
    assert one.balance.meters == () and await one.used("ada") == [0, 0, 1, 1]
    await one.goes(id, 7)
    assert await one.used("ada") == [17, 17, 1, 0], "10 of the prompt, 7 of the answer"
    assert await one.used("bob") == [0, 0, 0, 0]
    assert {meter.limit for meter in (await one.stands("ada", "key_1")).meters} == {None}


async def test_tokens_of_a_day_end_and_renew_at_midnight(door):
    one = await door(tokens_per_day=100)
    await one.uses("ada", 99)
    await one.uses("ada", 50)  # what has begun within the limit is finished
    with pytest.raises(QuotaSpent, match=r"149 of 100 tokens today.*2026-11-27 00:00 UTC") as refused:
        await one.comes("ada")
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    assert refused.value.headers == {
        "x-should-retry": "false",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "12h0m0s",
        "anthropic-ratelimit-tokens-limit": "100",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-11-27T00:00:00Z",
    }
    await one.uses("bob", 5)
    await one.at(2026, 11, 26, 23, 59, 59)
    with pytest.raises(QuotaSpent):
        await one.comes("ada")
    await one.at(2026, 11, 27)
    await one.uses("ada", 5)
    assert await one.used("ada") == [5, 154, 1, 0]


@pytest.mark.parametrize(
    ("last", "next"),
    [
        ((2026, 11, 30, 23, 59), (2026, 12, 1)),
        ((2026, 12, 31, 23, 59), (2027, 1, 1)),
        ((2027, 2, 28, 23, 59), (2027, 3, 1)),
        ((2028, 2, 29, 23, 59), (2028, 3, 1)),
        ((2028, 2, 28, 23, 59), (2028, 3, 1)),
        ((2100, 2, 28, 23, 59), (2100, 3, 1)),
    ],
)
async def test_tokens_of_a_month_renew_with_the_calendar(door, last, next):
    one = await door(tokens_per_month=100)
    await one.at(*last[:2], 1)
    await one.uses("ada", 60)
    await one.at(*last)
    await one.uses("ada", 40)
    with pytest.raises(QuotaSpent, match="100 of 100 tokens this month"):
        await one.comes("ada")
    renews = (await one.stands("ada")).nearest(MONTH).renews_at
    assert renews == ms(*next) // 1000
    one.now = renews * 1000 - 1
    with pytest.raises(QuotaSpent):
        await one.comes("ada")
    await one.at(*next)
    assert (await one.used("ada"))[:2] == [0, 0]
    await one.comes("ada")


async def test_of_a_hundred_at_once_exactly_as_many_come_in_as_may(redis_server: RedisServer):
    patient = RedisClient(redis_server.url, redis_server.password, timeout_seconds=60)
    async with aclosing(patient):
        await a_hundred_come(await Door(patient, requests_per_minute=10).open())


async def a_hundred_come(one: Door) -> None:
    one.now += 15_000
    came = await asyncio.gather(*(one.comes("ada") for _ in range(100)), return_exceptions=True)
    refused = [fault for fault in came if isinstance(fault, RateLimited)]
    assert len(refused) == 90 and {fault.code for fault in refused} == {"rate_limit_exceeded"}
    assert refused[0].headers == {
        "retry-after": "45",
        "retry-after-ms": "45000",
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "45s",
        "anthropic-ratelimit-requests-limit": "10",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-26T12:01:00Z",
    }
    assert "10 requests a minute; ask again in 45 s" in refused[0].message
    assert await one.used("ada") == [0, 0, 10, 10], "what is refused is not counted"
    one.now += 45_000
    await one.open()
    await one.comes("ada")
    assert one.balance.nearest(MINUTE).left == 9, "this one is counted"


async def test_only_so_many_wait_or_run_at_once_over_all_keys_and_classes(door):
    one = await door(concurrency=3)
    first = await one.comes("ada", "key_1")
    await one.comes("ada", "key_2", flex=True)
    one.line = Line(one.redis, "gw_one", everybody=Allowance(concurrency=3))
    tiny = Capacity(2)
    ticket = Ticket("ada", 10, 100)
    await one.line.join(tiny, "waits", ticket, now_ms=one.now)
    assert list(await one.line.places(tiny, now_ms=one.now)) == ["waits"]
    with pytest.raises(RateLimited, match="3 requests under way") as refused:
        await one.comes("ada")
    assert int(refused.value.headers["retry-after"]) >= 1 and isinstance(refused.value, Busy)
    await one.comes("bob")
    await one.goes(first, 1)
    await one.comes("ada")


async def test_what_a_dead_gateway_had_does_not_count_as_under_way(redis_client: RedisClient):
    one, other = [Door(redis_client, name, concurrency=2) for name in ("gw_one", "gw_two")]
    await one.line.step(MANY, 2.0, register=True, now_ms=one.now)
    await other.open()
    for _ in range(2):
        await one.comes("ada")
    with pytest.raises(RateLimited):
        await other.comes("ada")
    other.now += 2_001
    await other.comes("ada")
    assert (await other.used("ada"))[3] == 1


async def test_a_refusal_that_meets_a_dead_gateways_seats_gives_them_back(redis_client: RedisClient):
    """What a step did before it refused counts all the same."""
    one, other = [Door(redis_client, name, requests_per_minute=1) for name in ("gw_one", "gw_two")]
    await one.line.step(MANY, 2.0, register=True, now_ms=one.now)
    await other.open()
    await one.comes("ada")
    await other.comes("bob")
    other.now += 2_001
    with pytest.raises(RateLimited):
        await other.comes("bob")
    assert await redis_client.call("HGET", "dm:line:clock", "flying") == b"1"


async def test_a_request_is_charged_once_however_often_its_end_is_told(door):
    one = await door(tokens_per_day=1000)
    id = await one.comes("ada", "key_1")
    for _ in range(3):
        await one.goes(id, 30, 4)
    assert await one.used("ada") == [34, 34, 1, 0]
    waits = next(one.ids)
    full = Capacity(0)
    await one.line.join(full, waits, Ticket("ada", 10, 100), now_ms=one.now)
    await one.line.leave(full, {waits: (0, None)}, now_ms=one.now)
    assert await one.used("ada") == [34, 34, 2, 0], "who left the line has used no token"


async def test_what_a_gateway_that_was_only_slow_brings_back_is_not_charged_twice(redis_client: RedisClient):
    slow, other = [Door(redis_client, name) for name in ("gw_slow", "gw_two")]
    await slow.line.step(MANY, 2.0, register=True, now_ms=slow.now)
    await other.open()
    id = await slow.comes("ada", "key_1")
    await slow.line.step(MANY, 2.0, produced={id: 20}, now_ms=slow.now)
    other.now += 2_001
    await other.comes("bob")
    assert await other.used("ada") == [30, 30, 1, 0], "as far as it was told"
    slow.now = other.now
    await slow.open()
    ticket = Ticket("ada", 10, 100, key="key_1")
    await slow.line.join(MANY, id, ticket, How.SEATED, now_ms=slow.now)
    await slow.goes(id, 50)
    assert await slow.used("ada") == [60, 60, 1, 0]
    await slow.quotas.set("key_1", {DAY: 1000})
    assert (await slow.stands("ada", "key_1")).meters[4].used == 60


async def test_an_answer_that_goes_on_elsewhere_is_neither_refused_nor_paid_for_again(door):
    one = await door(tokens_per_day=40, requests_per_minute=1)
    begun = await one.comes("ada")
    await one.goes(begun, 30)  # its gateway handed it over: 10 of the prompt are paid for
    with pytest.raises(QuotaSpent):
        await one.comes("ada")
    goes_on = await one.comes("ada", promised=True, accepted=True)
    await one.goes(goes_on, 5)
    assert await one.used("ada") == [45, 45, 1, 0]
    anew = await one.comes("ada", accepted=True)  # nothing of it was said yet
    await one.goes(anew, 5)
    assert await one.used("ada") == [60, 60, 1, 0]


async def test_a_person_may_have_other_limits_than_the_installation_also_none(door):
    one = await door(tokens_per_day=100, requests_per_minute=5)
    await one.quotas.set("ada", {DAY: 1000, MINUTE: "none"})
    await one.quotas.set("bob", {DAY: 0})
    await one.uses("ada", 500)
    with pytest.raises(QuotaSpent):
        await one.comes("bob")
    day, month, minute, _ = (await one.stands("ada")).meters
    assert (day.limit, day.source, day.left) == (1000, Source.PERSON, 500)
    assert (month.limit, month.source, month.left) == (None, Source.INSTALLATION, None)
    assert (minute.limit, minute.source) == (None, Source.PERSON)
    await one.quotas.set("ada", {DAY: "default"})
    day, _, minute, _ = (await one.stands("ada")).meters
    assert (day.limit, day.source, day.left) == (100, Source.INSTALLATION, 0)
    assert minute.source is Source.PERSON, "what was not named stays"


async def test_a_keys_limit_holds_for_that_key_within_what_its_person_may(door):
    one = await door(tokens_per_day=100)
    await one.quotas.set("key_1", {DAY: 30, MINUTE: 2})
    await one.uses("ada", 30, "key_1")
    with pytest.raises(QuotaSpent, match="This key has used 30 of 30 tokens"):
        await one.comes("ada", "key_1")
    await one.uses("ada", 30, "key_2")
    assert (await one.stands("ada", "key_1")).nearest(DAY).source is Source.KEY
    assert (await one.stands("ada", "key_2")).nearest(DAY).source is Source.INSTALLATION
    await one.quotas.set("key_1", {DAY: 1000})
    await one.uses("ada", 40, "key_1")
    with pytest.raises(QuotaSpent, match="You have used 100 of 100"):
        await one.comes("ada", "key_1")
    with pytest.raises(QuotaSpent):
        await one.comes("ada")  # signed in on the page
    await one.comes("bob", "key_3")


async def test_limits_of_a_key_go_with_it_and_counts_go_when_nobody_comes_any_more(door):
    one = await door()
    await one.quotas.set("key_1", {DAY: 5}, expires_at=4_000_000_000)
    await one.quotas.set("ada", {DAY: 5})
    await one.comes("ada", "key_1")
    assert await one.redis.call("EXPIRETIME", "dm:limits:key_1") == 4_000_000_000
    assert await one.redis.call("TTL", "dm:limits:ada") == -1
    for id in ("ada", "key_1"):
        assert 31 * 86_400 < await one.redis.call("TTL", f"dm:used:{id}") <= 40 * 86_400
