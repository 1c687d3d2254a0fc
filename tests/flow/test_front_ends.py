"""Front ends with one key for many people: each is a person of their own, named from allowed addresses only."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest

from gateway.auth.people import People
from gateway.auth.principal import Scope
from gateway.redis_client import RedisClient
from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer

HEADER = "X-OpenWebUI-User-Id"
ANN, BOB = "0c7b3f3e-9d5c-4c67-8b3b-0c6f0f0b3a55", "bob@example.org"
HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
LONG = " word" * 500  # at a pace of 100 ms longer than any test
SLOWEST_SECONDS = 20.0  # a second is the promise; the rest is this machine's
FRONT_END = frozenset({Scope.DELEGATE})


@pytest.fixture(scope="module")
def shared_gateway(one_redis: RedisServer, shared_worker: FakeWorker) -> Iterator[GatewayProcess]:
    settings = {"DESKMATE_DELEGATE_HEADER": HEADER, "DESKMATE_QUEUE_PER_PERSON": "2"}
    with GatewayProcess(one_redis, shared_worker.url, settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def proxied_gateway(one_redis: RedisServer, shared_worker: FakeWorker) -> Iterator[GatewayProcess]:
    """Believes a proxy at 127.0.0.1, and front ends in 10.0.0.0/8 only."""
    settings = {
        "DESKMATE_DELEGATE_HEADER": HEADER,
        "DESKMATE_DELEGATE_ADDRESSES": "10.0.0.0/8",
        "DESKMATE_DELEGATE_PEOPLE": "3",
        "DESKMATE_TRUSTED_PROXIES": "127.0.0.1",
    }
    with GatewayProcess(one_redis, shared_worker.url, settings) as gateway:
        yield gateway


@pytest.fixture
async def front_end(ready: GatewayProcess, person: str) -> str:
    """The key of a front end of its own, which belongs to `person`."""
    return await ready.key(person, FRONT_END)


@asynccontextmanager
async def as_(
    gateway: GatewayProcess, key: str, name: str | None, from_: str = "127.0.0.1", **headers: str
) -> AsyncIterator[httpx2.AsyncClient]:
    """A front end that asks for the person of that name, from that address of this machine."""
    named = {HEADER: name} if name is not None else {}
    transport = httpx2.AsyncHTTPTransport(local_address=from_)
    async with httpx2.AsyncClient(
        base_url=gateway.url, headers={"authorization": f"Bearer {key}", **named, **headers}, transport=transport
    ) as http:
        yield http


async def asked(gateway: GatewayProcess, key: str, name: str | None, **how: str) -> tuple[int, str]:
    """Status and code of a short question."""
    async with as_(gateway, key, name, **how) as http:
        answer = await http.post("/v1/chat/completions", json=HELLO | {"max_tokens": 2}, timeout=60)
    return answer.status_code, answer.json().get("error", {}).get("code", "")


async def salt_of(gateway: GatewayProcess, worker: FakeWorker, key: str, name: str | None) -> str:
    before = len(worker.generations)
    assert await asked(gateway, key, name) == (200, "")
    return str(worker.generations[before].body["cache_salt"])


def sdk(gateway: GatewayProcess, key: str, name: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=60, default_headers={HEADER: name}
    )


# who is who ----------------------------------------------------------------------------------------------------------
async def test_each_person_has_a_salt_of_their_own_whichever_key_of_the_front_end_names_them(
    ready, scripted, front_end, person
):
    plain, second, other = (
        await ready.key(person),
        await ready.key(person, FRONT_END),
        await ready.key(f"{person} other", FRONT_END),
    )
    ann = await salt_of(ready, scripted, front_end, ANN)
    assert await salt_of(ready, scripted, front_end, ANN) == ann
    assert await salt_of(ready, scripted, second, ANN) == ann, "both keys are of one owner"
    others = [
        await salt_of(ready, scripted, front_end, BOB),
        await salt_of(ready, scripted, other, ANN),  # another front end's Ann is another Ann
        await salt_of(ready, scripted, plain, ANN),  # a key without the scope names nobody
    ]
    assert len({ann, *others}) == 4
    assert await salt_of(ready, scripted, plain, None) == others[2]


async def test_conversations_and_answers_belong_to_the_person_and_to_nobody_else(ready, scripted, front_end, person):
    plain, elsewhere = await ready.key(person), await ready.key(f"{person} other", FRONT_END)
    async with sdk(ready, front_end, ANN) as ann:
        conversation = await ann.conversations.create()
        mine = await ann.responses.create(input="a secret", conversation=conversation.id)
        for key, name in ((front_end, BOB), (elsewhere, ANN), (plain, ANN)):
            async with sdk(ready, key, name) as stranger:
                for attempt in (
                    stranger.responses.retrieve(mine.id),
                    stranger.responses.cancel(mine.id),
                    stranger.conversations.retrieve(conversation.id),
                    stranger.conversations.items.list(conversation.id),
                ):
                    with pytest.raises(openai.NotFoundError):
                        await attempt
        async with as_(ready, front_end, BOB) as http:
            assert (await http.get("/v1/conversations")).json()["data"] == []
        assert (await ann.responses.retrieve(mine.id)).output_text == mine.output_text


async def test_one_persons_flood_is_refused_at_their_limit_and_passes_nobody_by(ready, scripted, front_end):
    """Four seats, two places in line for each: Ann has all of both, Bob comes last and is the first."""
    scripted.script(pace_ms=100, answer=LONG)
    async with sdk(ready, front_end, ANN) as ann, sdk(ready, front_end, BOB) as bob, AsyncExitStack() as running:
        streams = [await ann.chat.completions.create(**HELLO, stream=True) for _ in range(4)]
        for stream in streams:
            await running.enter_async_context(stream)
        await scripted.until(lambda worker: len(worker.generations) == 4)
        line = [asyncio.create_task(ann.chat.completions.create(**HELLO, max_tokens=1)) for _ in range(2)]
        await until_waiting(ready, 2)
        with pytest.raises(openai.RateLimitError) as refused:
            await ann.chat.completions.create(**HELLO, max_tokens=1)
        assert refused.value.code == "queue_full"
        line.append(asyncio.create_task(bob.chat.completions.create(**HELLO, max_tokens=1)))
        await until_waiting(ready, 3)
        scripted.script(pace_ms=0)
        await streams[0].close()
        await line[2]  # the last seat is kept for one like him
        await streams[1].close()
        await asyncio.gather(*line)
    salts = [record.body["cache_salt"] for record in scripted.generations]
    assert len(set(salts)) == 2
    assert [salt == salts[0] for salt in salts[4:]] == [False, True, True]


async def until_waiting(gateway: GatewayProcess, number: int) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url) as http, asyncio.timeout(30):
        while f"\ndeskmate_requests_waiting {number}.0\n" not in (await http.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# LibreChat's requests -------------------------------------------------------------------------------------------------
LIBRECHAT = {
    "accept": "application/json",
    "user-agent": "OpenAI/JS 5.12.2",
    "x-stainless-arch": "x64",
    "x-stainless-lang": "js",
    "x-stainless-os": "Linux",
    "x-stainless-package-version": "5.12.2",
    "x-stainless-retry-count": "0",
    "x-stainless-runtime": "node",
}
LIBRECHAT_BODY = {  # its documented defaults
    "model": "fake",
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "user": "66f0c0ffee",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [{"role": "user", "content": "hi how are you"}],
}


async def test_librechat_asks_for_models_answers_stops_and_asks_again(ready, scripted, front_end):
    async with as_(
        ready, front_end, None, accept="application/json, text/plain, */*", **{"user-agent": "axios"}
    ) as http:
        models = (await http.get("/v1/models", params={"user": "66f0c0ffee"})).json()
        assert [model["id"] for model in models["data"]] == ["fake"]
    async with as_(ready, front_end, "66f0c0ffee", **LIBRECHAT) as http:
        first = await streamed(http, LIBRECHAT_BODY)
        assert first and await streamed(http, LIBRECHAT_BODY) == first, "asked again"
        title = LIBRECHAT_BODY | {"stream": False, "messages": [{"role": "user", "content": "a title of five words"}]}
        title.pop("stream_options")
        assert (await http.post("/v1/chat/completions", json=title)).json()["choices"][0]["message"]["content"]
        scripted.script(pace_ms=100, answer=LONG)
        async with http.stream("POST", "/v1/chat/completions", json=LIBRECHAT_BODY) as stream:
            async for line in stream.aiter_lines():
                if '"content":" wor' in line:
                    break  # the person presses stop: LibreChat ends the request
        await scripted.until(lambda worker: worker.generations[-1].state == "aborted")
    assert len({record.body["cache_salt"] for record in scripted.generations}) == 1
    assert all("user" not in record.body for record in scripted.generations)


async def streamed(http: httpx2.AsyncClient, body: dict[str, Any]) -> str:
    async with http.stream("POST", "/v1/chat/completions", json=body, timeout=60) as stream:
        assert stream.status_code == 200
        lines = [line.removeprefix("data: ") async for line in stream.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]" and json.loads(lines[-2])["usage"]["completion_tokens"]
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


# nobody --------------------------------------------------------------------------------------------------------------
QUESTIONS = [
    ("/v1/chat/completions", HELLO),
    ("/v1/responses", {"input": "hello"}),
    ("/v1/messages", HELLO | {"max_tokens": 5}),
    ("/v1/conversations", {}),
    ("/v1/responses/compact", {"model": "fake", "input": "hello"}),
]


@pytest.mark.parametrize("name", [None, "", "{{LIBRECHAT_USER_ID}}"], ids=["no header", "empty", "placeholder"])
async def test_a_front_end_that_names_nobody_can_see_the_models_and_nothing_else(ready, scripted, person, name):
    key = await ready.key(person, frozenset({Scope.DELEGATE, Scope.CHAT}))
    async with as_(ready, key, name) as http:
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["fake"]
        for path, body in QUESTIONS:
            answer = await http.post(path, json=body)
            assert answer.status_code == 403 and HEADER in answer.json()["error"]["message"], path
    assert await asked(ready, key, name) == (403, "no_person_named")
    assert scripted.generations == []


async def test_a_connection_of_a_front_end_speaks_for_the_person_its_handshake_names(ready, scripted, front_end):
    async with sdk(ready, front_end, ANN) as ann, ann.responses.connect() as connection:
        await connection.response.create(model="fake", input="hello")
        async for event in connection:
            if event.type == "response.completed":
                break
        salt = scripted.generations[-1].body["cache_salt"]
    assert salt == await salt_of(ready, scripted, front_end, ANN)
    async with sdk(ready, front_end, "") as nobody:
        with pytest.raises(Exception, match="403"):
            async with nobody.responses.connect():
                pass


@pytest.mark.parametrize("name", ["x" * 129, "\u202ebob".encode(), b"Zo\xeb"], ids=["long", "unprintable", "no UTF-8"])
async def test_a_name_that_cannot_be_one_is_refused_and_makes_nobody(ready, front_end, person, name):
    assert await asked(ready, front_end, name) == (400, "invalid_person")
    assert await delegates_of(ready, person) == []


# from where ----------------------------------------------------------------------------------------------------------
async def test_people_are_named_from_allowed_addresses_only_and_a_claimed_address_counts_for_nothing(
    ready, proxied_gateway, person
):
    await proxied_gateway.until_ready()
    key = await ready.key(person, FRONT_END)
    refused = (403, "address_not_allowed")
    claims = {"x-forwarded-for": "10.1.2.3"}
    assert await asked(ready, key, ANN) == (200, ""), "this machine is allowed where nothing is set"
    assert await asked(ready, key, ANN, **claims) == refused, "behind a proxy nobody told of, all are this machine"
    assert await asked(proxied_gateway, key, ANN, **claims) == (200, ""), "the proxy is believed"
    assert await asked(proxied_gateway, key, ANN, **{"x-forwarded-for": "192.168.0.1"}) == refused
    assert await asked(proxied_gateway, key, ANN) == refused, "this machine is not in the setting"
    assert await asked(proxied_gateway, key, ANN, from_="127.0.0.2", **claims) == refused, "who is no proxy claims"
    async with as_(proxied_gateway, key, ANN) as http:
        message = (await http.post("/v1/chat/completions", json=HELLO)).json()["error"]["message"]
    assert "127.0.0.1" in message and "DESKMATE_DELEGATE_ADDRESSES" in message


async def test_a_front_end_names_so_many_people_and_a_further_one_is_refused(ready, proxied_gateway, person):
    await proxied_gateway.until_ready()
    key = await ready.key(person, FRONT_END)
    there = {"x-forwarded-for": "10.1.2.3"}
    for number in range(3):
        assert await asked(proxied_gateway, key, f"u{number}", **there) == (200, "")
    assert await asked(proxied_gateway, key, "u3", **there) == (403, "too_many_people")
    assert await asked(proxied_gateway, key, "u0", **there) == (200, ""), "those who are there go on"
    assert len(await delegates_of(ready, person)) == 3


# administration ------------------------------------------------------------------------------------------------------
async def test_a_person_of_a_front_end_is_disabled_alone_and_comes_back(ready, scripted, front_end, person):
    scripted.script(pace_ms=100, answer=LONG)
    async with sdk(ready, front_end, ANN) as ann, sdk(ready, front_end, BOB) as bob:
        of_ann = await ann.chat.completions.create(**HELLO, stream=True)
        of_bob = await bob.chat.completions.create(**HELLO, stream=True)
        in_background = await ann.responses.create(input="tell me", background=True)
        await scripted.until(lambda worker: len(worker.generations) == 3)
        await asyncio.to_thread(ready.command, "user", "disable", f"{person}/{ANN}")
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            await drained(of_ann)
        await scripted.until(
            lambda worker: [record.state for record in worker.generations].count("aborted") == 2, SLOWEST_SECONDS
        )
        assert await asked_until(ready, front_end, ANN, 401) == (401, "account_disabled")
        assert [record.state for record in scripted.generations].count("running") == 1, "he is told on"
        scripted.script(pace_ms=0)
        await drained(of_bob)
        assert (await asked(ready, front_end, BOB))[0] == 200
        await asyncio.to_thread(ready.command, "user", "enable", f"{person}/{ANN}")
        assert await asked_until(ready, front_end, ANN, 200) == (200, "")
        assert (await ann.responses.retrieve(in_background.id)).status == "cancelled"


@pytest.mark.parametrize("what", ["key", "owner"])
async def test_all_of_a_front_ends_people_end_with_its_key_or_its_owner(ready, scripted, person, what):
    made = await asyncio.to_thread(ready.command, "key", "create", "--user", person, "--scope", "delegate", "--json")
    key, id = json.loads(made)["key"], json.loads(made)["id"]
    scripted.script(pace_ms=100, answer=LONG)
    async with sdk(ready, key, ANN) as ann, sdk(ready, key, BOB) as bob:
        streams = [await one.chat.completions.create(**HELLO, stream=True) for one in (ann, bob)]
        begun = 2
        if (
            what == "owner"
        ):  # what runs for nobody's connection ends with the person, not with a key; so for a front end
            await ann.responses.create(input="tell me", background=True)
            begun = 3
        await scripted.until(lambda worker: len(worker.generations) == begun)
        command = ("key", "revoke", id) if what == "key" else ("user", "disable", person)
        await asyncio.to_thread(ready.command, *command)
        await scripted.until(
            lambda worker: all(record.state == "aborted" for record in worker.generations), SLOWEST_SECONDS
        )
        for stream in streams:
            with pytest.raises((openai.APIError, httpx2.HTTPError)):
                await drained(stream)
    assert (await asked_until(ready, key, ANN, 401))[0] == 401


async def test_a_front_ends_people_stand_behind_it_in_every_list_and_sign_in_nowhere(
    ready, scripted, front_end, person
):
    for name in (ANN, BOB):
        assert await asked(ready, front_end, name) == (200, "")

    def told(*command: str) -> str:
        return ready.command(*command)

    listed = json.loads(await asyncio.to_thread(told, "user", "list", "--json"))
    assert {one["name"]: one["speaks_for"] for one in listed if one["name"].startswith(person)} == {person: 2}
    assert f"{person}  speaks for 2" in await asyncio.to_thread(told, "user", "list")
    of = json.loads(await asyncio.to_thread(told, "user", "list", "--of", person, "--json"))
    assert [one["name"] for one in of] == [f"{person}/{BOB}", f"{person}/{ANN}"]
    admin = await ready.key("an automation", frozenset({Scope.ADMIN}))
    async with as_(ready, admin, None) as http:
        shown = (await http.get("/admin/users")).json()["data"]
        (owner,) = [one for one in shown if one["name"].startswith(person)]
        place = f"/admin/users/{owner['id']}/speaks_for"
        both = (await http.get(place)).json()
        assert [one["name"] for one in both["data"]] == [f"{person}/{BOB}", f"{person}/{ANN}"] and not both["has_more"]
        found = (await http.get(place, params={"query": "BOB@"})).json()["data"]
        assert [one["name"] for one in found] == [f"{person}/{BOB}"]
        assert (await http.get(place, params={"query": person})).json()["data"] == [], "the front end's name is no name"
        link = await http.post(f"/admin/users/{found[0]['id']}/link")
        assert link.status_code == 400 and link.json()["error"]["code"] == "delegated"
        disabled = await http.post(f"/admin/users/{found[0]['id']}/disable")
        assert disabled.json()["disabled"] is True
    assert (await asked_until(ready, front_end, BOB, 401))[0] == 401


async def delegates_of(gateway: GatewayProcess, owner: str) -> list[str]:
    redis = RedisClient(gateway.redis.url, gateway.redis.password)
    try:
        people = People(redis)
        found = await people.named(owner)
        return [one.name async for one in people.delegates(found.id)] if found else []
    finally:
        await redis.aclose()


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


async def asked_until(gateway: GatewayProcess, key: str, name: str, status: int) -> tuple[int, str]:
    """What is answered once it is that status: what an answer rests on is remembered for half a second."""
    async with asyncio.timeout(20):
        while (found := await asked(gateway, key, name))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return found
