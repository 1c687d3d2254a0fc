"""The middleware by itself: which names are ours, what a chunk costs, what happens to a Refusal from within."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import BadRequest, EngineLost
from gateway.limits import Hosts, Limits
from gateway.settings import Settings


def settings(**given: str) -> Settings:
    required = {"DESKMATE_REDIS_URL": "unix:///r", "DESKMATE_SECRET_FILE": "/s"}
    return Settings.from_environment(required | {f"DESKMATE_{name.upper()}": value for name, value in given.items()})


LOOPBACK_ONLY: dict[str, str] = {}
EVERYWHERE = {"host": "0.0.0.0"}
BEHIND_PROXY = {"public_url": "https://desk.example.org/", "host": "10.0.0.5"}


@pytest.mark.parametrize(
    ("given", "name", "ours"),
    [
        (LOOPBACK_ONLY, "localhost:8000", True),
        (LOOPBACK_ONLY, "[::1]", True),
        (LOOPBACK_ONLY, "192.168.1.5", False),
        (LOOPBACK_ONLY, "rebound.example", False),
        (EVERYWHERE, "192.168.1.5:8000", True),
        (EVERYWHERE, "[fd00::1]:8000", True),
        (EVERYWHERE, "rebound.example", False),
        (EVERYWHERE, "192.168.1.5.rebound.example", False),
        (BEHIND_PROXY, "desk.example.org", True),
        (BEHIND_PROXY, "DESK.example.org:443", True),
        (BEHIND_PROXY, "10.0.0.5:8000", True),
        (BEHIND_PROXY, "other.example.org", False),
        ({"allowed_hosts": "gateway, *"}, "anything.example", True),
        ({"allowed_hosts": "gateway"}, "gateway:8000", True),
        ({"allowed_hosts": "gateway"}, "gateway2", False),
    ],
)
def test_only_names_of_ours_are_answered(given: dict[str, str], name: str, ours: bool) -> None:
    hosts = Hosts(settings(**given))
    if ours:
        hosts.check([name.encode()])
    else:
        with pytest.raises(BadRequest, match="DESKMATE_ALLOWED_HOSTS"):
            hosts.check([name.encode()])


App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def exchange(
    app: App,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    body: list[Message] | None = None,
    given: dict[str, str] | None = None,
) -> list[Message]:
    sent: list[Message] = []
    parts = iter(body or [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(parts)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost"), *(headers or [])]}
    await Limits(app, settings(**(given or {})))(scope, receive, send)
    return sent


async def test_a_refusal_that_nobody_rendered_becomes_an_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise EngineLost("The engine is gone.")

    start, body = await exchange(app)
    assert start["status"] == 503 and b"engine_lost" in body["body"]


async def test_a_refusal_after_the_answer_began_goes_up() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise EngineLost("The engine is gone.")

    with pytest.raises(EngineLost):
        await exchange(app)


async def test_the_request_id_on_an_answer_is_ours_whatever_the_worker_said() -> None:
    ids = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ids.append(scope["state"]["request_id"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Request-Id", b"the worker's")]})
        await send({"type": "http.response.body", "body": b""})

    start, _ = await exchange(app)
    assert [value for name, value in start["headers"] if name.lower() == b"x-request-id"] == [ids[0].encode()]


@pytest.mark.parametrize("name", ["X-User", "X-Forwarded-Email"])
async def test_the_header_in_which_a_front_end_names_its_people_gets_in(name: str) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(name for name, _ in scope["headers"])
        raise EngineLost("The engine is gone.")

    header = (name.lower().encode(), b"ann")
    await exchange(app, headers=[header])
    await exchange(app, headers=[header], given={"delegate_header": name})
    assert seen == [b"host", b"host", header[0]]


async def test_a_body_too_large_stays_refused_however_often_it_is_asked_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        from gateway.errors import TooLarge

        for _ in range(3):
            with pytest.raises(TooLarge):
                while True:
                    await receive()
        await receive()

    part: Message = {"type": "http.request", "body": b" " * (1 << 19), "more_body": True}
    headers = [(b"transfer-encoding", b"chunked"), (b"content-type", b"application/json")]
    start, *_ = await exchange(app, headers=headers, body=[part] * 20 + [{"type": "http.disconnect"}])
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]


async def test_a_streamed_chunk_costs_next_to_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        chunk: Message = {"type": "http.response.body", "body": b"data: x\n\n", "more_body": True}
        for _ in range(20_000):
            await send(chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def bare() -> float:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        begin = time.perf_counter()
        await app({}, _never, send)
        return time.perf_counter() - begin

    async def limited() -> float:
        begin = time.perf_counter()
        await exchange(app)
        return time.perf_counter() - begin

    extra = min([await limited() - await bare() for _ in range(5)]) / 20_000
    assert extra < 5e-6, f"{extra * 1e6:.2f} µs"  # 0.1 µs where it was written


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError
