"""The 17 checks of Open Responses' compliance suite, by their names, written anew on its specification.

Every body and every event is read strictly (`open_responses.py`), then looked at for what the check is about. None sets
`max_output_tokens` or `tool_choice`, and a response must come to its end all the same. What the engine read is known of
a scripted one only; with a real one (`tests/e2e/test_up.py`) the rest of a check holds.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx2
import msgspec
import pytest

from tests.fake_worker import FakeWorker
from tests.flow.open_responses import (
    Json,
    checked_compaction,
    checked_error,
    checked_event,
    checked_order,
    checked_response,
    checked_stream,
)
from tests.flow.test_images import asking
from tests.flow.test_socket import PATIENT_SECONDS, Caller, calling, error_of
from tests.gateway_process import GatewayProcess

NOT_FOUND = (400, "previous_response_not_found")
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Place(Protocol):
    """Where a gateway is."""

    @property
    def url(self) -> str: ...


@dataclass(frozen=True)
class Server:
    """Who is checked."""

    gateway: Place
    key: str
    worker: FakeWorker | None  # None: a real one
    model: str = "fake"
    wishes: Json = field(default_factory=dict)  # sent with every question

    async def post(self, body: Json, path: str = "/v1/responses") -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx2.AsyncClient(base_url=self.gateway.url, headers=headers) as http:
            return await http.post(path, json=body, timeout=PATIENT_SECONDS)

    async def answered(self, input: Any, **more: Any) -> Json:
        """The response, which must be completed and say something."""
        answer = await self.post(self.question(input=input, **more))
        assert answer.status_code == 200, answer.text
        return completed(checked_response(answer.content))

    def question(self, **more: Any) -> Json:
        return {"model": self.model, **self.wishes, **more}

    async def compacted(self, **asked: Any) -> list[Json]:
        answer = await self.post({"model": self.model, **asked}, "/v1/responses/compact")
        assert answer.status_code == 200, answer.text
        output: list[Json] = checked_compaction(answer.content)["output"]
        return output

    @asynccontextmanager
    async def socket(self) -> AsyncIterator["Socket"]:
        async with calling(self.gateway, self.key) as caller:
            yield Socket(caller, self)

    def asked(self) -> list[Json]:
        """The messages that a scripted engine was last asked with, less our system message."""
        messages: list[Json] = self.worker.generations[-1].body["messages"][1:] if self.worker else []
        return messages

    def has_read(self, *expected: Json | str) -> None:
        """The engine was last asked with just these messages, or with some that say just this."""
        if self.worker:
            pairs = zip(self.asked(), expected, strict=True)
            assert [asked if isinstance(one, dict) else asked["content"] for asked, one in pairs] == [*expected]


@dataclass(frozen=True)
class Socket:
    caller: Caller
    server: Server

    async def answered(self, input: Any, **more: Any) -> Json:
        events = await self.caller.ask(**self.server.question(input=input, **more))
        for event in events:
            checked_event(msgspec.json.encode(event))
        return completed(checked_order(events)[-1]["response"])

    async def refused(self, input: Any, **more: Any) -> tuple[int, str]:
        events = await self.caller.ask(**self.server.question(input=input, **more))
        checked_event(msgspec.json.encode(events[0]))
        return error_of(events)


def completed(response: Json) -> Json:
    assert response["status"] == "completed" and response["output"] and response["completed_at"]
    return response


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


def texts(response: Json) -> list[str]:
    return [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"]


Check = Callable[[Server], Awaitable[None]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


# over HTTP ------------------------------------------------------------------------------------------------------------


@check
async def basic_response(server: Server) -> None:
    response = await server.answered([user("Say hello in three words.")])
    assert texts(response)[0] and response["usage"]["total_tokens"] > 0


@check
async def assistant_phase(server: Server) -> None:
    phases = ("commentary", "final_answer")
    said = [{"type": "message", "role": "assistant", "content": phase, "phase": phase} for phase in phases]
    response = await server.answered([user("Hello?"), *said, user("Go on.")])
    server.has_read("Hello?", *phases, "Go on.")
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx2.AsyncClient(base_url=server.gateway.url, headers=headers) as http:
        listed = (await http.get(f"/v1/responses/{response['id']}/input_items?order=asc")).json()["data"]
    assert [item.get("phase") for item in listed] == [None, *phases, None]


@check
async def response_output_phase_schema(server: Server) -> None:
    """A message of the answer says a phase of the standard or none; sent back it is taken as it was."""
    first = await server.answered([user("Hello?")])
    assert all(item.get("phase", "final_answer") in ("commentary", "final_answer") for item in first["output"])
    await server.answered([user("Hello?"), *first["output"], user("Go on.")])
    server.has_read("Hello?", *texts(first), "Go on.")


@check
async def streaming_response(server: Server) -> None:
    answer = await server.post(server.question(input=[user("Count to five.")], stream=True))
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    events = checked_stream(answer.content)
    completed(events[-1]["response"])
    assert any(event["type"] == "response.output_text.delta" for event in events)


@check
async def system_prompt(server: Server) -> None:
    system = {"type": "message", "role": "system", "content": "You are a pirate."}
    await server.answered([system, user("Say hello.")])
    server.has_read({"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Say hello."})


@check
async def tool_calling(server: Server) -> None:
    assert server.worker, "only a model that can decide to call calls"
    server.worker.script(tools=[{"name": "weather", "arguments": {"city": "Bonn"}}])
    asked = {"input": [user("How is the weather in Bonn?")], "tools": [WEATHER]}
    (call,) = (await server.answered(**asked))["output"]
    assert (call["type"], call["name"], msgspec.json.decode(call["arguments"])) == (
        "function_call",
        "weather",
        {"city": "Bonn"},
    )
    answer = await server.post(server.question(stream=True, **asked))
    assert checked_stream(answer.content)[-1]["response"]["output"][0]["type"] == "function_call"


@check
async def image_input(server: Server) -> None:
    response = await server.answered(asking())
    assert response["metadata"]["deskmate:images_replaced"] == "1"


@check
async def multi_turn(server: Server) -> None:
    turns = [user("I am Ada."), {"type": "message", "role": "assistant", "content": "Hello!"}, user("Who am I?")]
    await server.answered(turns)
    server.has_read(*({name: turn[name] for name in ("role", "content")} for turn in turns))


@check
async def compact_response(server: Server) -> None:
    said = [user("I am Ada."), {"type": "message", "role": "assistant", "content": "Hello!"}]
    output = await server.compacted(input=said)
    assert [item["type"] for item in output] == ["message", "compaction"] and output[-1]["encrypted_content"]
    await server.answered([*output, user("Who am I?")])


@check
async def compact_missing_model(server: Server) -> None:
    answer = await server.post({"input": [user("Hello?")]}, "/v1/responses/compact")
    assert answer.status_code == 400
    assert checked_error(answer.content)["param"] == "model"
    assert server.worker is None or server.worker.generations == []


# over WebSocket -------------------------------------------------------------------------------------------------------


@check
async def websocket_response(server: Server) -> None:
    async with server.socket() as socket:
        assert texts(await socket.answered([user("Hello?")]))[0]


@check
async def websocket_sequential_responses(server: Server) -> None:
    async with server.socket() as socket:
        first, second = await socket.answered([user("One")]), await socket.answered([user("Two")])
    assert first["id"] != second["id"]
    server.has_read({"role": "user", "content": "Two"})


@check
async def websocket_continuation(server: Server) -> None:
    async with server.socket() as socket:
        for stored in (True, False):
            first = await socket.answered([user("One")], store=stored)
            second = await socket.answered([user("Two")], store=stored, previous_response_id=first["id"])
            assert second["previous_response_id"] == first["id"]
            server.has_read("One", *texts(first), "Two")


@check
async def websocket_reconnect_store_false_recovery(server: Server) -> None:
    async with server.socket() as socket:
        first = await socket.answered([user("One")], store=False)
    async with server.socket() as again:
        assert await again.refused([user("Two")], store=False, previous_response_id=first["id"]) == NOT_FOUND
        whole = [user("One"), *first["output"], user("Two")]
        second = await again.answered(whole, store=False)
        await again.answered([user("Three")], store=False, previous_response_id=second["id"])
    server.has_read("One", *texts(first), "Two", *texts(second), "Three")


@check
async def websocket_previous_response_not_found(server: Server) -> None:
    async with server.socket() as socket:
        assert await socket.refused([user("One")], previous_response_id="resp_nobody") == NOT_FOUND
        await socket.answered([user("One")])


@check
async def websocket_failed_continuation_evicts_cache(server: Server) -> None:
    output = {"type": "function_call_output", "call_id": "call_nobody", "output": "x"}
    async with server.socket() as socket:
        first = await socket.answered([user("One")], store=False)
        assert (await socket.refused([output], store=False, previous_response_id=first["id"]))[0] == 400
        assert await socket.refused([user("Two")], store=False, previous_response_id=first["id"]) == NOT_FOUND


@check
async def websocket_compact_new_chain(server: Server) -> None:
    async with server.socket() as socket:
        first = await socket.answered([user("One")], store=False)
        output = await server.compacted(input=[user("One"), *first["output"]])
        second = await socket.answered([*output, user("Two")], store=False)
        assert second["previous_response_id"] is None
        before = [message["content"] for message in server.asked()]
        await socket.answered([user("Three")], store=False, previous_response_id=second["id"])
    server.has_read(*before, *texts(second), "Three")
    assert not server.worker or (before[0] == "One" and before[-1] == "Two" and texts(first)[0] not in before)


# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server(ready: GatewayProcess, scripted: FakeWorker, person: str) -> Server:
    return Server(ready, await ready.key(person), scripted)


@pytest.mark.parametrize("name", CHECKS)
async def test_what_open_responses_asks_for_is_so(server, name):
    await CHECKS[name](server)


def test_there_are_seventeen_checks_and_the_document_names_each():
    document = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", document.partition("## Open Responses")[2], re.MULTILINE) == [*CHECKS]
    assert len(CHECKS) == 17


async def test_all_that_one_key_asks_at_once_is_answered(server):
    responses = await asyncio.gather(*(server.answered([user(f"{number}")]) for number in range(17)))
    assert len({response["id"] for response in responses}) == 17


async def test_a_refusal_has_its_four_fields(server):
    answer = await server.post({"model": "fake"})
    assert answer.status_code == 400 and checked_error(answer.content)["param"] == "input"
