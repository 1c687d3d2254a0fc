"""Limits over HTTP: each refusal as the official SDKs read it, headers, /v1/usage, what administrators show and set."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from gateway.auth.keys import Keys
from gateway.auth.people import People
from gateway.auth.principal import Scope
from gateway.auth.secret import Secrets
from gateway.quotas import UNLIMITED, Kind, Wish
from gateway.quotas.store import RedisQuotas
from gateway.redis_client import RedisClient
from tests.gateway_process import SECRET, GatewayProcess

HELLO: Any = {"model": "fake", "messages": [{"role": "user", "content": "hello there"}]}
DAY, MONTH, MINUTE, AT_ONCE = Kind


@dataclass
class Ann:
    """A person with a key, and a way to change their limits."""

    gateway: GatewayProcess
    redis: RedisClient
    quotas: RedisQuotas
    name: str
    id: str
    key_id: str
    key: str

    async def may(self, kind: Kind, wish: Wish) -> None:
        await self.quotas.set(self.id, {kind: wish})

    async def usage(self) -> dict[str, Any]:
        async with self.http() as http:
            answer = await http.get("/v1/usage")
        assert answer.status_code == 200
        return answer.json()

    async def until_used(self, tokens: int) -> dict[str, Any]:
        """What was used is told when the seat is given back, which may be a moment after the answer's end."""
        async with asyncio.timeout(60):
            while (found := await self.usage())["tokens_per_day"]["used"] < tokens:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found

    def http(self) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx2.AsyncClient(base_url=self.gateway.url, headers=headers, timeout=30)

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.key, **{"max_retries": 0, **options})


@pytest.fixture
async def ann(ready: GatewayProcess, scripted, person: str) -> AsyncIterator[Ann]:
    redis = RedisClient(ready.redis.url, ready.redis.password)
    made = await People(redis).ensure(person)
    key, text = await Keys(redis, Secrets(SECRET)).create(made.id)
    yield Ann(ready, redis, RedisQuotas(redis, UNLIMITED), person, made.id, key.id, text)
    await redis.aclose()


async def test_what_every_route_produced_is_what_usage_says(ann: Ann, scripted):
    before = await ann.usage()
    assert before["object"] == "usage" and before["concurrency"]["limit"] == 512
    assert before["tokens_per_day"] | {"renews_at": 0} == {
        "limit": None, "used": 0, "left": None, "renews_at": 0, "source": "installation",
    }  # fmt: skip
    assert 0 < before["tokens_per_day"]["renews_at"] - time.time() < 86_500
    spent = 0
    async with ann.sdk() as client:
        usage = (await client.chat.completions.create(**HELLO)).usage
        spent += usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens + usage.completion_tokens
        stream = await client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True})
        async for chunk in stream:
            usage = chunk.usage or usage
        spent += usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens + usage.completion_tokens
        used = (await client.responses.create(input="hello there")).usage
        spent += used.input_tokens - used.input_tokens_details.cached_tokens + used.output_tokens
    after = await ann.until_used(spent)
    assert after["tokens_per_day"]["used"] == after["tokens_per_month"]["used"] == spent
    assert after["concurrency"]["used"] == 0


async def test_without_tokens_nothing_is_asked_and_the_official_client_does_not_try_again(ann: Ann, scripted):
    await ann.may(DAY, 1)
    async with ann.sdk(max_retries=3) as client:
        answer = await client.chat.completions.with_raw_response.create(**HELLO)
        assert answer.headers["x-ratelimit-limit-tokens"] == "1"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "1"
        assert answer.headers["x-ratelimit-reset-tokens"].endswith("s")
        assert "x-ratelimit-limit-requests" not in answer.headers
        await ann.until_used(2)
        asked = len(scripted.generations)
        for ask in (
            lambda: client.chat.completions.create(**HELLO),
            lambda: client.chat.completions.create(**HELLO, stream=True),
            lambda: client.responses.create(input="hello"),
            lambda: client.responses.create(input="hello", stream=True),
            lambda: client.responses.create(input="hello", store=False),
            lambda: client.responses.create(input="hello", background=True),
        ):
            with pytest.raises(openai.RateLimitError, match=r"of 1 tokens today; they renew at .* UTC") as refused:
                await ask()
            body = refused.value.body
            assert (body["type"], body["code"], body["param"]) == ("insufficient_quota", "insufficient_quota", None)
            assert refused.value.response.headers["x-should-retry"] == "false"
            assert refused.value.response.headers["x-ratelimit-remaining-tokens"] == "0"
            assert "retry-after" not in refused.value.response.headers
        async with ann.http() as http:
            assert (await http.get("/v1/conversations")).status_code == 200, "what needs no engine goes on"
    assert len(scripted.generations) == asked
    assert (await ann.usage())["tokens_per_day"]["left"] == 0


async def test_anthropics_client_reads_it_too(ann: Ann):
    await ann.may(DAY, 100_000)
    async with anthropic.AsyncAnthropic(base_url=ann.gateway.url, api_key=ann.key, max_retries=2) as client:
        for streamed in (False, True):
            answer = await client.messages.with_raw_response.create(**HELLO, max_tokens=5, stream=streamed)
            told = answer.headers
            assert told["anthropic-ratelimit-tokens-limit"] == told["x-ratelimit-limit-tokens"] == "100000"
            assert told["anthropic-ratelimit-tokens-remaining"] == told["x-ratelimit-remaining-tokens"]
            reset = datetime.fromisoformat(told["anthropic-ratelimit-tokens-reset"])
            assert reset.time().isoformat() == "00:00:00" and (reset - datetime.now(UTC)).total_seconds() <= 86_400
            assert "anthropic-ratelimit-requests-limit" not in told
            if streamed:
                async for _ in await answer.parse():
                    pass
        await ann.may(DAY, 0)
        with pytest.raises(anthropic.RateLimitError, match="tokens today") as refused:
            await client.messages.create(**HELLO, max_tokens=5)
    assert refused.value.body["error"]["type"] == "rate_limit_error"
    assert refused.value.response.headers["anthropic-ratelimit-tokens-remaining"] == "0"
    async with ann.http() as http:
        for path in ("/v1/chat/completions", "/v1/responses"):
            body = HELLO if "chat" in path else {"input": "hello"}
            answer = await http.post(path, json=body)
            assert answer.status_code == 429 and not [name for name in answer.headers if name.startswith("anthropic-")]


async def test_requests_of_a_minute_end_with_the_time_to_wait_and_every_answer_says_what_is_left(ann: Ann):
    await ann.may(MINUTE, 3)
    headers, refused = await within_one_minute(lambda: until_refused(ann))
    assert [one["x-ratelimit-remaining-requests"] for one in headers] == ["2", "1", "0"]
    assert {one["x-ratelimit-limit-requests"] for one in headers} == {"3"}
    assert "3 requests a minute" in refused.message
    assert (refused.code, refused.body["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    told = refused.response.headers
    assert 1 <= int(told["retry-after"]) <= 60 and 1 <= int(told["retry-after-ms"]) <= 60_000
    assert told["x-ratelimit-remaining-requests"] == "0" and "x-should-retry" not in told


async def within_one_minute(ask: Callable[[], Awaitable[Any]]) -> Any:
    """What is answered where no minute of the clock has ended in between."""
    for _ in range(10):
        minute = time.time() // 60
        found = await ask()
        if time.time() // 60 == minute:
            return found
    raise AssertionError("it always takes longer than a minute")


async def until_refused(ann: Ann) -> tuple[list[Any], openai.RateLimitError]:
    headers: list[Any] = []
    await ann.redis.call("DEL", f"dm:used:{ann.id}")
    async with ann.sdk() as client:
        chats, responses = client.chat.completions.with_raw_response, client.responses.with_raw_response
        try:
            while len(headers) < 100:
                headers.append((await chats.create(**HELLO)).headers)
                headers.append((await responses.create(input="hello")).headers)
                stream = await responses.create(input="hello", stream=True)
                headers.append(stream.headers)
                async for _ in stream.parse():
                    pass
        except openai.RateLimitError as refused:
            return headers, refused
    raise AssertionError("nothing is refused")


async def test_only_so_many_requests_of_a_person_are_under_way(ann: Ann, scripted):
    await ann.may(AT_ONCE, 1)
    scripted.script(pace_ms=100, answer="word " * 400)
    async with ann.sdk() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        await scripted.until(lambda worker: len(worker.generations) == 1)
        assert (await ann.usage())["concurrency"] == {
            "limit": 1, "used": 1, "left": 0, "renews_at": None, "source": "person",
        }  # fmt: skip
        with pytest.raises(openai.RateLimitError, match="1 requests under way") as refused:
            await client.responses.create(input="hello")
        assert refused.value.code == "rate_limit_exceeded" and int(refused.value.response.headers["retry-after"]) >= 1
        await stream.close()
        async with asyncio.timeout(60):
            while (await ann.usage())["concurrency"]["used"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        scripted.script(pace_ms=0, answer=None)
        await client.responses.create(input="hello")


async def test_over_a_websocket_it_is_an_error_event_and_the_connection_lives_on(ann: Ann):
    await ann.may(DAY, 0)
    async with ann.sdk() as client, client.responses.connect() as connection:
        await connection.response.create(model="fake", input="hello")
        error = await anext(aiter(connection))
        assert (error.type, error.error.code) == ("error", "insufficient_quota")
        await ann.may(DAY, "default")
        await connection.response.create(model="fake", input="hello")
        async for event in connection:
            if event.type == "response.completed":
                break


async def test_administrators_show_and_set_limits_of_people_and_keys(ann: Ann):
    admin = await ann.gateway.key("an automation", frozenset({Scope.ADMIN}))
    headers = {"authorization": f"Bearer {admin}"}
    async with httpx2.AsyncClient(base_url=ann.gateway.url, headers=headers, timeout=30) as http:
        person, key = f"/admin/users/{ann.id}/limits", f"/admin/keys/{ann.key_id}/limits"
        asked = {"tokens_per_day": 100, "tokens_per_month": "none", "requests_per_minute": None}
        answer = (await http.post(person, json=asked)).json()
        assert still(answer) == still((await http.get(person)).json())
        assert [(answer[kind]["limit"], answer[kind]["source"], answer[kind]["own"]) for kind in Kind] == [
            (100, "person", 100), (None, "person", "none"),
            (None, "installation", "default"), (512, "installation", "default"),
        ]  # fmt: skip
        answer = (await http.post(key, json={"tokens_per_day": 7, "tokens_per_month": "none"})).json()
        assert still(answer) == still((await http.get(key)).json())
        owns = [answer[kind].pop("own", None) for kind in Kind]
        assert still(answer) == still(await ann.usage()) and owns == [7, "default", "default", None]
        assert (answer["tokens_per_day"]["limit"], answer["tokens_per_day"]["source"]) == (7, "key")
        day = (await http.post(key, json={"tokens_per_day": 5000})).json()["tokens_per_day"]
        assert (day["limit"], day["source"], day["own"]) == (100, "person", 5000), "the person's is less"
        day = (await http.post(key, json={"tokens_per_day": "default"})).json()["tokens_per_day"]
        assert (day["limit"], day["source"], day["own"]) == (100, "person", "default")
        for where, wrong, param in (
            (person, {"tokens_per_day": -1}, "tokens_per_day"),
            (person, {"tokens_per_day": True}, "tokens_per_day"),
            (person, {"concurrency": "many"}, "concurrency"),
            (person, {"tokens_per_year": 1}, "tokens_per_year"),
            (key, {"concurrency": 1}, "concurrency"),
        ):
            refused = await http.post(where, json=wrong)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == param
        assert (await http.get(f"/admin/users/{ann.key_id}/limits")).status_code == 404
        assert (await http.get("/admin/keys/key_none/limits")).status_code == 404


async def test_administrators_set_how_much_of_the_engine_a_persons_share_is(ann: Ann):
    admin = await ann.gateway.key("an automation", frozenset({Scope.ADMIN}))
    headers = {"authorization": f"Bearer {admin}"}
    async with httpx2.AsyncClient(base_url=ann.gateway.url, headers=headers, timeout=30) as http:
        path = f"/admin/users/{ann.id}/weight"
        assert (await http.get(path)).json() == {"weight": 1}
        assert (await http.post(path, json={"weight": 2.5})).json() == (await http.get(path)).json() == {"weight": 2.5}
        assert (await http.post(path, json={"weight": 1})).json() == {"weight": 1}
        for wrong in ({"weight": 0}, {"weight": 11}, {"weight": True}, {"weight": "2"}, {}, {"weight": 2, "more": 1}):
            refused = await http.post(path, json=wrong)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "weight"
        assert (await http.get(f"/admin/users/{ann.key_id}/weight")).status_code == 404
        told = await asyncio.to_thread(ann.gateway.command, "user", "weight", ann.name, "3")
        assert "has the weight 3" in told and (await http.get(path)).json() == {"weight": 3}


def still(answer: dict[str, Any]) -> dict[str, Any]:
    """What does not change with the clock."""
    rows = {kind: answer[kind] for kind in Kind}
    return {kind: {name: value for name, value in row.items() if name != "renews_at"} for kind, row in rows.items()}


async def test_the_command_line_shows_and_sets_them_too(ann: Ann):
    def told(*command: str) -> str:
        return ann.gateway.command(*command)

    shown = await asyncio.to_thread(
        told, "user", "limits", ann.name, "--tokens-per-day", "12000", "--requests-per-minute", "none"
    )
    day, month, minute, at_once = shown.splitlines()
    assert "0 of 12,000" in day and "person" in day and day.endswith("00:00 UTC")
    assert "0 of no limit" in month and "installation" in month and "person" in minute
    assert "0 of 512" in at_once and at_once.endswith("installation")
    assert (await ann.usage())["tokens_per_day"]["limit"] == 12_000
    shown = await asyncio.to_thread(told, "key", "limits", ann.key_id, "--tokens-per-day", "5", "--json")
    assert json.loads(shown)["tokens_per_day"]["source"] == "key"
