"""Server-sent events: whole on the wire, and whoever leaves closes what was writing for them."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import EventStream, event, unless_left


class Client:
    """The other side of an ASGI response: leaves when told to, keeps what it got."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.messages: list[dict[str, Any]] = []
        self.news = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        self.news.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


class Events:
    """A generator of events that notes how it ended."""

    def __init__(self, *given: bytes, then: BaseException | None = None, forever: bool = False) -> None:
        self.given, self.then, self.forever = given, then, forever
        self.started = False
        self.closed = asyncio.Event()

    async def __call__(self):
        self.started = True
        try:
            for data in self.given:
                yield data
            if self.then is not None:
                raise self.then
            if self.forever:
                await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleanup that awaits
            self.closed.set()


class Ends:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def run(stream: EventStream, client: Client) -> None:
    async with asyncio.timeout(5):
        await stream({"type": "http"}, client.receive, client.send)


@given(st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53), max_size=3))
def test_an_event_is_two_lines_whatever_it_carries(fields):
    payload = fields | {"type": "some.kind"}
    name, data, *rest = event(payload).decode().split("\n")
    assert name == "event: some.kind" and rest == ["", ""]
    assert json.loads(data.removeprefix("data: ")) == payload


async def test_a_stream_is_its_events_one_send_each_and_says_what_it_is():
    client, events, ends = Client(), Events(b"one", b"two"), Ends()
    await run(EventStream(events(), {"x-request-id": "r1"}, on_end=ends), client)
    start, *parts = client.messages
    headers = dict(start["headers"])
    assert start["status"] == 200 and headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store" and headers[b"x-request-id"] == b"r1"
    assert [(part["body"], part["more_body"]) for part in parts] == [(b"one", True), (b"two", True), (b"", False)]
    assert events.closed.is_set() and ends.count == 1


async def test_who_leaves_while_nothing_comes_closes_the_generator_before_the_response_returns():
    client, events, ends = Client(), Events(b"one", forever=True), Ends()
    running = asyncio.create_task(run(EventStream(events(), on_end=ends), client))
    while client.body != b"one":
        await client.news.wait()
        client.news.clear()
    client.left.set()
    await running
    assert events.closed.is_set() and ends.count == 1
    assert all(message.get("more_body", True) for message in client.messages)  # no end was claimed


async def test_who_reads_no_more_and_leaves_closes_it_too():
    client, events, ends = Client(), Events(b"one", b"two"), Ends()

    async def stuck(message: Any) -> None:
        client.messages.append(message)
        client.news.set()
        if message.get("body"):
            await asyncio.Event().wait()

    client.send = stuck  # type: ignore[method-assign]
    running = asyncio.create_task(run(EventStream(events(), on_end=ends), client))
    while client.body != b"one":
        await client.news.wait()
        client.news.clear()
    client.left.set()
    await running
    assert events.closed.is_set() and ends.count == 1


async def test_who_has_left_before_the_start_is_noticed_and_the_end_is_called():
    client, events, ends = Client(), Events(forever=True), Ends()
    client.left.set()
    await run(EventStream(events(), on_end=ends), client)
    assert ends.count == 1 and (events.closed.is_set() or not events.started)


async def test_an_error_of_ours_goes_up_and_the_end_is_called():
    client, events, ends = Client(), Events(b"one", then=RuntimeError("a bug")), Ends()
    with pytest.raises(RuntimeError, match="a bug"):
        await run(EventStream(events(), on_end=ends), client)
    assert events.closed.is_set() and ends.count == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
async def test_a_response_that_is_cancelled_at_any_step_closes_the_generator_and_calls_the_end(steps):
    client, events, ends = Client(), Events(b"one", forever=True), Ends()
    running = asyncio.create_task(EventStream(events(), on_end=ends)({"type": "http"}, client.receive, client.send))
    for _ in range(steps + 1):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ends.count == 1 and (events.closed.is_set() or not events.started)


async def test_a_body_that_arrives_is_not_taken_for_leaving():
    client, events = Client(), Events(b"one")
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(messages, None) or await client.receive()

    await EventStream(events())({"type": "http"}, receive, client.send)
    assert client.body == b"one"


# unless_left ---------------------------------------------------------------------------------------------------------


async def test_work_is_done_while_the_client_stays():
    async def work() -> int:
        await asyncio.sleep(0)
        return 42

    assert await unless_left(Client().receive, work()) == 42


async def test_work_ends_when_the_client_leaves_with_its_cleanup_done():
    client, cleaned = Client(), asyncio.Event()

    async def work() -> int:
        try:
            client.left.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()
        return 42

    assert await unless_left(client.receive, work()) is None
    assert cleaned.is_set()


async def test_an_error_of_the_work_goes_up():
    async def work() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await unless_left(Client().receive, work())


async def test_work_ends_when_whoever_waits_for_it_is_cancelled():
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    waiting = asyncio.create_task(unless_left(Client().receive, work()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cleaned.is_set()
