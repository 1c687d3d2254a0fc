"""Whoever loses their key, session or account while they are answered hears no more within a second."""

import asyncio
import json
import time
from contextlib import suppress

import httpx2
import openai
import pytest

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess

LONG = " word" * 1000
HEARD_SECONDS = 1.5  # the promise is one; the rest is this machine's


@pytest.fixture
def slow(scripted: FakeWorker) -> FakeWorker:
    scripted.script(pace_ms=30, answer=LONG)
    return scripted


async def key_of(gateway: GatewayProcess, person: str) -> tuple[str, str]:
    """A key's id and the key."""
    made = json.loads(await asyncio.to_thread(gateway.command, "key", "create", "--user", person, "--json"))
    return made["id"], made["key"]


async def broken_off(gateway: GatewayProcess, key: str, path: str, body: dict, *command: str) -> tuple[str, float]:
    """What was heard of a stream during which a command was run, and how long after it the stream ended."""
    heard, done = "", 0.0
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client,
        client.stream("POST", path, json=body | {"stream": True}) as response,
    ):
        assert response.status_code == 200
        with suppress(httpx2.RemoteProtocolError):  # it may end without its end
            async for text in response.aiter_text():
                heard += text
                if "wor" in heard and not done:
                    done = 1.0
                    await asyncio.to_thread(gateway.command, *command)
                    done = time.monotonic()
    return heard, time.monotonic() - done


REQUESTS = [
    ("/v1/responses", {"input": "tell me"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "tell me"}], "model": "fake"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "tell me"}], "model": "fake", "max_tokens": 1024}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=[path for path, _ in REQUESTS])
@pytest.mark.parametrize("what", ["key", "person"])
async def test_a_stream_ends_when_its_key_is_revoked_or_its_person_disabled(ready, slow, person, path, body, what):
    id, key = await key_of(ready, person)
    command = ("key", "revoke", id) if what == "key" else ("user", "disable", person)
    heard, seconds = await broken_off(ready, key, path, body, *command)
    assert seconds < HEARD_SECONDS and 0 < heard.count('"delta"') < 900
    await slow.until(lambda w: w.generations and all(record.state == "aborted" for record in w.generations))


async def test_a_background_answer_of_a_person_who_is_disabled_ends_too(ready, slow, person):
    async with await ready.client(person) as client:
        response = await client.responses.create(input="tell me", background=True)
        await slow.until(lambda w: w.generations and w.generations[-1].tokens_sent > 5)
        await asyncio.to_thread(ready.command, "user", "disable", person)
        await slow.until(lambda w: w.generations[-1].state == "aborted", within_seconds=HEARD_SECONDS)
        await asyncio.to_thread(ready.command, "user", "enable", person)
        async with asyncio.timeout(5):
            while True:
                try:
                    ended = await client.responses.retrieve(response.id)
                    break
                except openai.AuthenticationError:  # the refusal is remembered for half a second
                    await asyncio.sleep(0.1)
        assert ended.status == "cancelled" and ended.output_text and LONG.startswith(ended.output_text)


async def test_others_hear_their_answers_to_the_end(ready, slow, person):
    slow.script(pace_ms=5)
    id, _ = await key_of(ready, person)
    async with await ready.client(person) as client:
        stream = await client.responses.create(input="tell me", stream=True, max_output_tokens=200)
        await asyncio.to_thread(ready.command, "key", "revoke", id)
        assert [event async for event in stream][-1].type == "response.incomplete"
