"""WebSocket on /v1/responses from the outside: the official client, bare frames, a real gateway, a scripted worker."""

import asyncio
import itertools
import json
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import httpx2
import openai
import pytest
from openai.types.responses import ResponsesServerEvent
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.auth.keys import Keys
from gateway.auth.people import People
from gateway.auth.secret import Secrets
from gateway.auth.sessions import Sessions
from gateway.redis_client import RedisClient
from tests.fake_worker import FakeWorker, answer
from tests.flow.test_turns import ORDER, said, text_of
from tests.gateway_process import SECRET, GatewayProcess
from tests.servers import RedisServer

LAST = ("response.completed", "response.incomplete", "response.failed", "error")
LONG = " word" * 1000
PATIENT_SECONDS = 180.0  # with a real engine that sixteen callers share on a busy machine
HEARD_SECONDS = 5.0  # the promise is one; the answer itself would take twenty
OFFICIAL = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponsesServerEvent)[0])
}

Event = dict[str, Any]


class Caller:
    """A client that speaks bare frames, and checks every event it hears."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def create(self, input: Any, **more: Any) -> None:
        await self.send(type="response.create", input=input, **more)

    async def hear(self) -> Event:
        text = await asyncio.wait_for(self.socket.recv(), PATIENT_SECONDS)
        assert isinstance(text, str)
        event: Event = json.loads(text)
        if not event["type"].startswith("deskmate:"):
            check(json.loads(text))
        return event

    async def rest(self) -> list[Event]:
        """All events to the last one of a response, or to an error."""
        events = [await self.hear()]
        while events[-1]["type"] not in LAST:
            events.append(await self.hear())
        return events

    async def until(self, kind: str) -> list[Event]:
        events = [await self.hear()]
        while events[-1]["type"] != kind:
            events.append(await self.hear())
        return events

    async def ask(self, input: Any, **more: Any) -> list[Event]:
        await self.create(input, **more)
        return await self.rest()

    async def answered(self, input: Any, **more: Any) -> Event:
        """The completed response."""
        last = (await self.ask(input, **more))[-1]
        assert last["type"] == "response.completed", last
        response: Event = last["response"]
        return response

    async def refused(self, input: Any = "x", **more: Any) -> tuple[int, str]:
        """Status and code of the one error that comes instead of a response."""
        return error_of(await self.ask(input, **more))

    async def closed(self, within_seconds: float = 10.0) -> int:
        """The code that the gateway closes with; events on the way are left out."""
        async with asyncio.timeout(within_seconds):
            with pytest.raises(ConnectionClosed):
                while True:
                    await self.socket.recv()
        assert self.socket.close_code is not None
        return self.socket.close_code


def check(event: Event) -> None:
    """Read it as strictly as the official types can."""
    if (event.get("response") or {}).get("error"):
        event["response"]["error"]["code"] = "server_error"  # the standard knows no code of ours; its clients take any
    read = OFFICIAL[event["type"]].model_validate_json(json.dumps(event), strict=True)
    assert read.model_dump(mode="json", exclude_unset=True) == event


def error_of(events: list[Event]) -> tuple[int, str]:
    (event,) = events
    assert event["type"] == "error" and set(event["error"]) >= {"type", "code", "message", "param"}, event
    return event["status"], event["error"]["code"]


@asynccontextmanager
async def calling(gateway: GatewayProcess, key: str | None = None, **headers: str) -> AsyncIterator[Caller]:
    address = f"{gateway.url.replace('http', 'ws')}/v1/responses"
    sent = headers | ({"Authorization": f"Bearer {key}"} if key else {})
    async with connect(address, additional_headers=sent, max_size=None) as socket:
        yield Caller(socket)


async def refusal(gateway: GatewayProcess, key: str | None = None, **headers: str) -> tuple[int, str]:
    """Status and code of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with calling(gateway, key, **headers):
            pass
    response = refused.value.response
    assert response.headers["x-request-id"] and response.headers["x-content-type-options"] == "nosniff"
    return response.status_code, json.loads(response.body or b"")["error"]["code"]


@pytest.fixture
async def caller(ready: GatewayProcess, person: str) -> AsyncIterator[Caller]:
    async with calling(ready, await ready.key(person)) as caller:
        yield caller


@asynccontextmanager
async def storage(redis: RedisServer) -> AsyncIterator[RedisClient]:
    client = RedisClient(redis.url, redis.password)
    try:
        yield client
    finally:
        await client.aclose()


# what an answer looks like -------------------------------------------------------------------------------------------


async def test_the_messages_are_the_events_of_the_stream(ready, person):
    key = await ready.key(person)
    async with calling(ready, key) as caller:
        events = await caller.ask("Hello?")
    assert list(dict.fromkeys(event["type"] for event in events)) == ORDER
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert text_of(events) == answer(said("Hello?"))
    async with httpx2.AsyncClient(base_url=ready.url, headers={"authorization": f"Bearer {key}"}) as http:
        replay = await http.get(f"/v1/responses/{events[0]['response']['id']}", params={"stream": "true"})
    told = [json.loads(data) for data in re.findall(r"^data: (\{.*)$", replay.text, re.MULTILINE)]
    joined = [event for event in told if event["type"] != "response.output_text.delta"]
    assert joined == [e | {"sequence_number": j["sequence_number"]} for e, j in zip(whole(events), joined, strict=True)]


def whole(events: list[Event]) -> list[Event]:
    return [event for event in events if event["type"] != "response.output_text.delta"]


async def test_the_official_client_speaks_several_turns_on_one_connection(client, scripted):
    async with client.responses.connect() as connection:
        previous, texts = None, []
        for question in ("One", "Two", "Three"):
            more = {"previous_response_id": previous} if previous else {}
            await connection.response.create(input=question, store=False, **more)
            async for event in connection:
                if event.type == "response.completed":
                    previous = event.response.id
                    texts += [question, event.response.output_text]
                    break
    assert scripted.generations[-1].body["messages"] == said(*texts[:-1])


async def test_turns_that_are_sent_at_once_are_answered_one_after_the_other(caller, scripted):
    scripted.script(pace_ms=3)
    for question in ("One", "Two", "Three"):
        await caller.create(question, store=False)
    ids = []
    for question in ("One", "Two", "Three"):
        events = await caller.rest()
        assert text_of(events) == answer(said(question))
        ids += list({event["response"]["id"] for event in events if "response" in event})
    assert len(set(ids)) == len(ids) == 3
    records = scripted.generations
    assert all(before.ended_at <= after.started_at for before, after in itertools.pairwise(records))


async def test_turns_are_counted_as_over_http(ready, caller):
    def counted() -> dict[str, float]:
        with urllib.request.urlopen(f"{ready.url}/metrics") as answer:
            found = re.findall(r"^(deskmate_re\w+_total\{.*\}) (\S+)$", answer.read().decode(), re.MULTILINE)
        return {name: float(value) for name, value in found}

    before = await asyncio.to_thread(counted)
    await caller.answered("Hello?", store=False)
    await caller.refused(wibble=1)
    after = await asyncio.to_thread(counted)
    grown = {name for name, value in after.items() if value == before.get(name, 0) + 1}
    assert 'deskmate_requests_total{outcome="completed",route="responses"}' in grown
    assert 'deskmate_refusals_total{code="unknown_parameter"}' in grown


# what it remembers ---------------------------------------------------------------------------------------------------


async def test_what_is_not_stored_is_gone_on_with_on_its_connection_only(ready, person, scripted):
    key = await ready.key(person)
    async with calling(ready, key) as caller, calling(ready, key) as other:
        first = await caller.answered("One", store=False)
        second = await caller.answered("Two", store=False, previous_response_id=first["id"], instructions="Be brief.")
        await caller.answered("Three", store=False, previous_response_id=second["id"])
        texts = [response["output"][0]["content"][0]["text"] for response in (first, second)]
        assert scripted.generations[-1].body["messages"] == said("One", texts[0], "Two", texts[1], "Three")
        missing = (400, "previous_response_not_found")
        assert await other.refused(store=False, previous_response_id=second["id"]) == missing
        assert await caller.refused(store=True, previous_response_id=second["id"]) == (400, "invalid_value")
    async with calling(ready, key) as again:
        assert await again.refused(store=False, previous_response_id=second["id"]) == missing
        await again.answered("I begin anew.", store=False)


async def test_the_output_of_a_tool_goes_on_from_its_call(caller, scripted):
    scripted.script(tools=[{"name": "weather", "arguments": {"city": "Ulm"}}])
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    events = await caller.ask("How is it in Ulm?", store=False, tools=tools)
    assert "response.function_call_arguments.done" in [event["type"] for event in events]
    called = events[-1]["response"]
    (call,) = called["output"]
    scripted.script(tools=None)
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    await caller.answered([output], store=False, previous_response_id=called["id"])
    roles = [message["role"] for message in scripted.generations[-1].body["messages"]]
    assert roles == ["system", "user", "assistant", "tool"]


async def test_a_chain_that_failed_once_is_forgotten(caller):
    first = await caller.answered("One", store=False)
    output = [{"type": "function_call_output", "call_id": "call_nobody", "output": "x"}]
    status, _ = await caller.refused(output, store=False, previous_response_id=first["id"])
    assert status == 400
    missing = await caller.refused(store=False, previous_response_id=first["id"])
    assert missing == (400, "previous_response_not_found")


async def test_a_chain_whose_engine_failed_is_forgotten_too(caller, scripted):
    first = await caller.answered("One", store=False)
    scripted.script(fail="400")
    failed = await caller.ask("Two", store=False, previous_response_id=first["id"])
    scripted.script(fail=None)
    assert failed[-1]["type"] == "response.failed", failed[-1]
    missing = await caller.refused(store=False, previous_response_id=first["id"])
    assert missing == (400, "previous_response_not_found")


async def test_stored_responses_are_gone_on_with_from_anywhere(caller, client, scripted):
    first = await client.responses.create(input="One")
    second = await caller.answered("Two", previous_response_id=first.id)
    text = second["output"][0]["content"][0]["text"]
    await client.responses.create(input="Three", previous_response_id=second["id"])
    assert scripted.generations[-1].body["messages"] == said("One", first.output_text, "Two", text, "Three")
    assert (await client.responses.retrieve(second["id"])).output_text == text


async def test_a_conversation_is_locked_and_remembered_as_over_http(caller, client, scripted):
    scripted.script(pace_ms=20, answer=LONG)
    conversation = await client.conversations.create()
    await caller.create("One", conversation=conversation.id)
    await caller.until("response.output_text.delta")
    with pytest.raises(openai.ConflictError):
        await client.responses.create(input="Two", conversation=conversation.id)
    await caller.send(type="response.cancel")
    await caller.rest()
    items = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert [item.role for item in items] == ["user", "assistant"]


async def test_a_warm_up_asks_no_engine_and_can_be_gone_on_with(caller, scripted):
    ready = await caller.ask([{"role": "developer", "content": "Be brief."}], store=False, generate=False)
    assert [event["type"] for event in ready] == ["response.created", "response.completed"]
    assert not scripted.generations
    await caller.answered("Hello?", store=False, previous_response_id=ready[-1]["response"]["id"])
    _, developer, user = scripted.generations[-1].body["messages"]
    assert (developer["content"], user["content"]) == ("Be brief.", "Hello?")
    assert await caller.refused(generate=False) == (400, "unsupported_parameter")


# errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        (b'{"type": "response.create", "input": "x"}', "invalid_json"),
        ('{"type": "response.create", "type": "response.create", "input": "x"}', "invalid_json"),
        ('{"input": "x"}', "invalid_value"),
        ('{"type": "response.steer", "input": "x"}', "invalid_value"),
        ('{"type": "response.create"}', "invalid_value"),
        ('{"type": "response.create", "input": "x", "wibble": 1}', "unknown_parameter"),
        ('{"type": "response.create", "input": "x", "stream_id": "1"}', "unknown_parameter"),
        ('{"type": "response.create", "input": "x", "stream": false}', "unsupported_parameter"),
        ('{"type": "response.create", "input": "x", "background": true}', "unsupported_parameter"),
        ('{"type": "response.create", "input": "x", "stream_options": {}}', "unsupported_parameter"),
        ('{"type": "response.create", "input": "x", "generate": 1}', "invalid_value"),
        ('{"type": "response.create", "input": "x", "model": "gpt-9"}', "model_not_found"),
        ('{"type": "response.create", "input": "x", "conversation": "conv_nobody"}', "not_found"),
        ('{"type": "response.create", "input": "x", "previous_response_id": "r"}', "previous_response_not_found"),
        ('{"type": "response.cancel"}', "not_found"),
        ('{"type": "response.cancel", "response_id": 5}', "invalid_value"),
        ('{"type": "response.cancel", "wibble": 1}', "unknown_parameter"),
    ],
)
async def test_what_is_refused_is_one_error_and_the_connection_lives_on(caller, message, code):
    await caller.socket.send(message)
    status, found = error_of(await caller.rest())
    assert (found, status) == (code, 404 if code in ("model_not_found", "not_found") else 400)
    await caller.answered("Hello?", store=False, stream=True, background=False)


async def test_too_large_a_message_ends_the_connection_and_says_so(ready, caller):
    await caller.create("x" * (1 << 20))
    assert await caller.closed() == 1009


async def test_a_message_in_many_pieces_is_one_and_in_too_many_is_none(caller):
    message = json.dumps({"type": "response.create", "input": "Hello?", "store": False})
    await caller.socket.send(iter(message))
    assert (await caller.rest())[-1]["type"] == "response.completed"
    with pytest.raises(ConnectionClosed):
        await caller.socket.send("x" for _ in range(3000))
        await caller.socket.recv()
    assert await caller.closed() == 1009


async def test_who_sends_too_much_ahead_is_told_so_after_the_answer_under_way(caller, scripted):
    scripted.script(pace_ms=10)
    await caller.create("One")
    await caller.until("response.output_text.delta")
    for _ in range(10):
        await caller.create("Two")
    assert (await caller.rest())[-1]["type"] == "response.completed"
    assert error_of(await caller.rest()) == (400, "too_many_messages")
    assert await caller.closed() == 1008
    assert len(scripted.generations) == 1


# ending --------------------------------------------------------------------------------------------------------------


async def test_cancel_ends_the_answer_and_keeps_what_was_said(caller, client, scripted):
    scripted.script(pace_ms=20, answer=LONG)
    await caller.create("Go on")
    events = await caller.until("response.output_text.delta")
    id = events[0]["response"]["id"]
    await caller.send(type="response.cancel", response_id="resp_other")
    await caller.send(type="response.cancel", response_id=id)
    events += await caller.rest()
    assert events[-1]["type"] == "response.incomplete"
    assert error_of(await caller.rest()) == (404, "not_found")  # answered in its turn
    stored = await client.responses.retrieve(id)
    assert stored.status == "cancelled" and stored.output_text == text_of(events)
    await scripted.until(lambda worker: worker.generations[0].state == "aborted")
    scripted.script(pace_ms=0, answer=None)
    await caller.answered("Hello?")


async def test_a_cancel_that_comes_with_its_question_counts_for_that_alone(caller, scripted):
    scripted.script(pace_ms=20, answer=LONG)
    await caller.create("Go on", store=False)
    await caller.send(type="response.cancel")
    await caller.create("Go on", store=False, max_output_tokens=16)
    assert (await caller.rest())[-1]["response"]["status"] == "cancelled"
    assert (await caller.rest())[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    await caller.socket.send("no JSON")
    await caller.send(type="response.cancel")
    await caller.create("Go on", store=False, max_output_tokens=16)
    assert [error_of(await caller.rest()), error_of(await caller.rest())] == [(400, "invalid_json"), (404, "not_found")]
    assert (await caller.rest())[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("politely", [True, False])
async def test_who_leaves_ends_the_answer_at_once_and_what_was_said_is_kept(ready, person, client, scripted, politely):
    scripted.script(pace_ms=20, answer=LONG)
    async with calling(ready, await ready.key(person)) as caller:
        await caller.create("Go on")
        events = await caller.until("response.output_text.delta")
        if politely:
            await caller.socket.close()
        else:
            caller.socket.transport.abort()
        await scripted.until(lambda worker: worker.generations[0].state == "aborted", HEARD_SECONDS)
    stored = await client.responses.cancel(events[0]["response"]["id"])  # waits for the end, changes nothing
    assert stored.status == "cancelled" and stored.output_text and LONG.startswith(stored.output_text)


@pytest.fixture(scope="module")
def own_gateway(one_redis: RedisServer, shared_worker: FakeWorker) -> Iterator[GatewayProcess]:
    with GatewayProcess(one_redis, shared_worker.url, {"DESKMATE_SOCKET_SECONDS": "1"}) as gateway:
        yield gateway


async def test_an_old_connection_tells_its_answer_to_the_end_and_is_closed(own_gateway, person, scripted):
    await own_gateway.until_ready()
    scripted.script(pace_ms=30, answer=LONG)
    async with calling(own_gateway, await own_gateway.key(person)) as caller:
        events = await caller.ask("Go on", max_output_tokens=50)
        assert events[-1]["type"] == "response.incomplete"
        assert error_of(await caller.rest()) == (400, "websocket_connection_limit_reached")
        assert await caller.closed() == 1000


async def test_a_gateway_that_stops_tells_what_it_can_and_closes(one_redis, shared_worker, scripted, person):
    settings = {"DESKMATE_DRAIN_SECONDS": "2"}
    with GatewayProcess(one_redis, shared_worker.url, settings) as gateway:
        await gateway.until_ready()
        scripted.script(pace_ms=30, answer=LONG)
        key = await gateway.key(person)
        async with calling(gateway, key) as idle, calling(gateway, key) as short, calling(gateway, key) as long:
            await short.create("Go on", max_output_tokens=16)
            await long.create("Go on")
            await short.until("response.output_text.delta")
            await long.until("response.output_text.delta")
            assert gateway.process
            gateway.process.send_signal(signal.SIGTERM)
            assert await idle.closed() == 1001
            assert (await short.rest())[-1]["type"] == "response.incomplete"
            assert await short.closed() == 1001
            assert error_of((await long.rest())[-1:]) == (503, "draining")
            assert await long.closed() == 1001
        assert await asyncio.to_thread(gateway.process.wait, 20) == 0


# who is calling ------------------------------------------------------------------------------------------------------


async def test_a_handshake_without_a_good_key_is_refused_as_http(ready, person):
    assert await refusal(ready) == (401, "no_api_key")
    assert await refusal(ready, "dm_live_none") == (401, "invalid_api_key")
    assert await refusal(ready, await ready.key(person, frozenset())) == (403, "insufficient_scope")
    assert await refusal(ready, await ready.key(person), Host="evil.example") == (400, "invalid_host")


async def test_a_page_elsewhere_cannot_use_the_cookie_of_whoever_reads_it(ready, one_redis, person):
    async with storage(one_redis) as redis:
        user = (await People(redis).ensure(person)).id
        token = await Sessions(redis, Secrets(SECRET)).open(user)
    cookie = {"Cookie": f"deskmate_sid={token}"}
    foreign = (403, "cross_site_request")
    assert await refusal(ready, **cookie, Origin="http://evil.example") == foreign
    assert await refusal(ready, **cookie, Origin="null") == foreign
    assert await refusal(ready, **cookie) == foreign
    assert await refusal(ready, **cookie | {"Origin": ready.url, "Sec-Fetch-Site": "cross-site"}) == foreign
    assert await refusal(ready, **cookie | {"Sec-Fetch-Site": "same-origin"}) == foreign
    async with calling(ready, **cookie, Origin=ready.url) as ours:
        await ours.answered("Hello?", store=False)
    async with calling(ready, await ready.key(person), Origin="http://evil.example") as program:
        await program.answered("Hello?", store=False)


@pytest.mark.parametrize("what", ["key", "session", "person"])
async def test_whoever_may_no_longer_ask_is_hung_up_on(ready, one_redis, person, scripted, what):
    scripted.script(pace_ms=20, answer=LONG)
    async with storage(one_redis) as redis:
        people, keys, sessions = People(redis), Keys(redis, Secrets(SECRET)), Sessions(redis, Secrets(SECRET))
        user = (await people.ensure(person)).id
        key, text = await keys.create(user)
        token = await sessions.open(user)
        by_key, by_cookie = {"key": text}, {"Cookie": f"deskmate_sid={token}", "Origin": ready.url}
        async with calling(ready, **by_cookie if what == "session" else by_key) as caller:
            await caller.create("Go on", store=False)
            await caller.until("response.output_text.delta")
            match what:
                case "key":
                    await keys.revoke(key.id)
                case "session":
                    await sessions.end(token)
                case "person":
                    await asyncio.to_thread(ready.command, "user", "disable", person)
            assert await caller.closed(HEARD_SECONDS) == 1008
        await scripted.until(lambda worker: worker.generations[0].state == "aborted")


async def test_one_person_has_so_many_connections_and_no_more(ready, person):
    key = await ready.key(person)
    open = [calling(ready, key) for _ in range(32)]
    try:
        for one in open:
            await one.__aenter__()
        assert await refusal(ready, key) == (429, "too_many_connections")
    finally:
        for one in open:
            await one.__aexit__(None, None, None)


# bytes ---------------------------------------------------------------------------------------------------------------


HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /v1/conversations", HANDSHAKE, 404),
        ("GET /v1/responses", HANDSHAKE, 401),
        ("GET /v1/responses", HANDSHAKE + f"X-Long: {'x' * 9000}\r\n", 431),
        ("GET /v1/responses", HANDSHAKE.replace("Version: 13", "Version: 7"), 400),
        ("GET /v1/responses", HANDSHAKE + "Content-Length: 3\r\n", 400),
        ("POST /v1/conversations", HANDSHAKE, 401),
        ("GET /healthz", HANDSHAKE.replace("websocket", "h2c"), 200),
    ],
)
async def test_a_handshake_that_is_none_is_answered_and_the_connection_ends(ready, request_line, headers, status):
    reader, writer = await asyncio.open_connection("127.0.0.1", ready.port)
    try:
        writer.write(f"{request_line} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        async with asyncio.timeout(5):
            answered = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    assert answered.startswith(f"HTTP/1.1 {status} ".encode()), answered[:200]
