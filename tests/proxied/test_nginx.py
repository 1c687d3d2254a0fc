"""The example configuration on Debian's nginx, before a real gateway with a scripted worker and a real Redis."""

import asyncio
import json
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from gateway.settings import Settings
from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.proxied.proxied import Nginx, certificate, directive, nginx_binary, trust
from tests.servers import RedisServer, missing, some_redis

PROXY, BROWSER, OTHER_BROWSER, STRANGER = "127.0.0.1", "127.0.0.3", "127.0.0.4", "127.0.0.5"
SECURITY = ("strict-transport-security", "content-security-policy", "x-content-type-options", "x-frame-options")
QUESTION = [{"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def binary() -> None:
    if nginx_binary() is None:
        missing("nginx")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with some_redis() as server:
        yield server


@pytest.fixture(scope="module")
def worker() -> Iterator[FakeWorker]:
    with FakeWorker(seats=4) as worker:
        yield worker


@pytest.fixture(scope="module")
def gateway(binary: None, redis: RedisServer, worker: FakeWorker) -> Iterator[GatewayProcess]:
    settings = {"DESKMATE_TRUSTED_PROXIES": PROXY, "DESKMATE_PUBLIC_URL": "https://localhost"}
    with GatewayProcess(redis, worker.url, settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def nginx(gateway: GatewayProcess) -> Iterator[Nginx]:
    with Nginx(gateway.port) as nginx:
        yield nginx


@pytest.fixture
async def scripted(gateway: GatewayProcess, worker: FakeWorker) -> FakeWorker:
    worker.script(pace_ms=0, prefill_ms=0)
    worker.engine.records.clear()
    await gateway.until_ready()
    return worker


@pytest.fixture
async def client(nginx: Nginx, gateway: GatewayProcess, scripted: FakeWorker) -> AsyncIterator[openai.AsyncOpenAI]:
    async with await client_of(nginx, gateway) as client:
        yield client


async def client_of(nginx: Nginx, gateway: GatewayProcess) -> openai.AsyncOpenAI:
    """The official client, which comes by HTTPS and believes this nginx's certificate only."""
    http = openai.DefaultAsyncHttpxClient(verify=trust())
    return openai.AsyncOpenAI(
        base_url=f"{nginx.url}/v1", api_key=await gateway.key("ann"), http_client=http, max_retries=0, timeout=30.0
    )


def browser(nginx: Nginx, address: str = BROWSER, **headers: str) -> httpx2.AsyncClient:
    """Somebody at another address of this machine."""
    transport = httpx2.AsyncHTTPTransport(verify=trust(), local_address=address)
    return httpx2.AsyncClient(transport=transport, base_url=f"https://127.0.0.1:{nginx.port}", headers=headers)


def past_nginx(gateway: GatewayProcess, address: str, **headers: str) -> httpx2.AsyncClient:
    """Somebody who reaches the gateway itself."""
    transport = httpx2.AsyncHTTPTransport(local_address=address)
    return httpx2.AsyncClient(transport=transport, base_url=gateway.url, headers=headers)


# the file itself -----------------------------------------------------------------------------------------------------


def test_nginx_takes_the_example_without_a_warning(nginx: Nginx):
    assert "[warn]" not in nginx.tested and "test is successful" in nginx.tested


def test_the_example_sets_the_gateways_own_limit_on_bodies():
    assert directive("client_max_body_size") == "1m"
    assert Settings.__dataclass_fields__["body_limit_bytes"].default == 1 << 20


# HTTPS ---------------------------------------------------------------------------------------------------------------


async def test_the_openai_client_streams_an_answer_to_its_end_over_https(client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(model="fake", messages=QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    answered = await client.responses.create(input="Hello?")
    assert answered.status == "completed" and answered.output_text


async def test_http_is_led_to_https_and_nothing_older_than_tls_1_2_is_spoken(nginx: Nginx):
    async with httpx2.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{nginx.http_port}/chat?a=b")
    assert (answer.status_code, answer.headers["location"]) == (301, "https://localhost/chat?a=b")
    old = ssl.create_default_context(cafile=certificate()[0])
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", nginx.port)) as connection, pytest.raises(ssl.SSLError):
        old.wrap_socket(connection, server_hostname="localhost")


async def test_security_headers_come_once_and_the_request_id_is_the_gateways(nginx: Nginx, scripted: FakeWorker):
    async with browser(nginx, **{"x-request-id": "req_mine"}) as ann:
        for path in ("/", "/v1/models", "/nowhere"):
            answer = await ann.get(path)
            assert [len(answer.headers.get_list(name)) for name in SECURITY] == [1, 1, 1, 1], path
            (name,) = answer.headers.get_list("x-request-id")
            assert name != "req_mine"
            await nginx.until_logged(name)
            assert "nginx/" not in answer.headers["server"]


async def test_a_session_cookie_made_behind_https_is_secure(nginx: Nginx, gateway: GatewayProcess):
    link = json.loads(gateway.command("user", "link", "--administrator", "--first", "--json"))
    address = link if isinstance(link, str) else next(v for v in link.values() if "#link=" in str(v))
    assert address.startswith("https://localhost/")
    async with browser(nginx) as ann:
        answer = await ann.post("/auth/link", json={"token": address.partition("#link=")[2]})
        name, *flags = answer.headers["set-cookie"].split("; ")
        assert name.startswith("__Host-sid=") and {"Secure", "HttpOnly", "SameSite=Strict"} <= set(flags)
        assert (await ann.get("/auth/me")).json()["user"]["name"]
        mine = {"origin": "https://localhost"}  # of a browser that sends no Sec-Fetch-Site
        assert (await ann.post("/auth/logout", headers={"origin": "https://evil.example"})).status_code == 403
        assert (await ann.post("/auth/logout", headers=mine)).status_code == 200


# streams -------------------------------------------------------------------------------------------------------------


async def test_words_arrive_one_by_one_while_the_answer_is_still_being_written(
    client: openai.AsyncOpenAI, scripted: FakeWorker
):
    scripted.script(pace_ms=40)
    stream = await client.chat.completions.create(model="fake", messages=QUESTION, stream=True)
    behind = [scripted.generations[0].tokens_sent - seen async for seen in counted(stream)]
    assert len(behind) > 20 and sorted(behind)[len(behind) // 2] <= 5, behind
    scripted.script(pace_ms=500)
    async with client.responses.stream(input="Hello?", model="fake") as responses:
        async for event in responses:
            if event.type == "response.output_text.delta":
                assert scripted.generations[1].state == "running"
                break


async def counted(stream: Any) -> AsyncIterator[int]:
    """How many words have come, at each that comes."""
    seen = 0
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            seen += 1
            yield seen


async def test_over_http_2_too_words_arrive_as_they_are_written_and_leaving_ends_the_answer(
    nginx: Nginx, gateway: GatewayProcess, scripted: FakeWorker
):
    """As browsers come."""
    scripted.script(pace_ms=50)
    body = json.dumps({"model": "fake", "messages": QUESTION, "stream": True})
    command = ["curl", "--http2", "--no-buffer", "--silent", "--include", "--cacert", str(certificate()[0])]
    headers = [f"authorization: Bearer {await gateway.key('bea')}", "content-type: application/json"]
    command += [part for header in headers for part in ("--header", header)]
    curl = await asyncio.create_subprocess_exec(
        *command, "--data", body, f"{nginx.url}/v1/chat/completions", stdout=subprocess.PIPE
    )
    assert curl.stdout
    assert (await curl.stdout.readline()).startswith(b"HTTP/2 200")
    seen = 0
    while seen < 10:
        line = await asyncio.wait_for(curl.stdout.readline(), 5)
        assert line, "the stream ended"
        seen += b'"content":"' in line
    assert scripted.generations[0].tokens_sent - seen <= 6
    curl.terminate()
    await curl.wait()
    await scripted.until(lambda worker: worker.generations[0].state == "aborted", 1.0)


async def test_a_stream_that_is_silent_for_longer_than_the_read_timeout_is_kept_by_the_heartbeat(
    gateway: GatewayProcess, scripted: FakeWorker
):
    """The heartbeat comes every 10 s; nginx waits for 11 here, and the first word comes after 13."""
    scripted.script(prefill_ms=13_000)
    shorter = {"proxy_read_timeout 60s;": "proxy_read_timeout 11s;", "proxy_read_timeout 15m;": ""}
    with Nginx(gateway.port, shorter) as nginx:
        async with await client_of(nginx, gateway) as client:

            async def chat() -> str | None:
                stream = await client.chat.completions.create(model="fake", messages=QUESTION, stream=True)
                return [chunk async for chunk in stream][-1].choices[0].finish_reason

            async def respond() -> str:
                return [event async for event in await client.responses.create(input="Hello?", stream=True)][-1].type

            began = time.monotonic()
            assert await asyncio.gather(chat(), respond()) == ["stop", "response.completed"]
            assert time.monotonic() - began > 12
            assert "timed out" not in nginx.log


async def test_an_answer_that_is_not_streamed_may_take_longer_than_a_page(
    gateway: GatewayProcess, scripted: FakeWorker
):
    scripted.script(prefill_ms=1_500)
    with Nginx(gateway.port, {"proxy_read_timeout 60s;": "proxy_read_timeout 1s;"}) as nginx:
        async with await client_of(nginx, gateway) as client:
            answer = await client.chat.completions.create(model="fake", messages=QUESTION)
    assert answer.choices[0].finish_reason == "stop"


async def test_who_leaves_through_nginx_frees_the_seat_within_a_second(
    client: openai.AsyncOpenAI, scripted: FakeWorker
):
    scripted.script(pace_ms=500)
    stream = await client.chat.completions.create(model="fake", messages=QUESTION, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await scripted.until(lambda worker: worker.generations[0].state == "aborted", 1.0)


async def test_who_leaves_before_the_first_word_frees_the_seat_too(client: openai.AsyncOpenAI, scripted: FakeWorker):
    scripted.script(prefill_ms=10_000)
    question = asyncio.create_task(client.chat.completions.create(model="fake", messages=QUESTION))
    await scripted.until(lambda worker: worker.generations)
    question.cancel()
    await asyncio.wait([question])
    await scripted.until(lambda worker: worker.generations[0].state == "aborted", 1.0)


# WebSocket -----------------------------------------------------------------------------------------------------------


async def test_the_official_client_speaks_over_a_websocket(client: openai.AsyncOpenAI):
    async with client.responses.connect(websocket_connection_options={"ssl": trust()}) as connection:
        await connection.response.create(input="Hello?", store=False)
        async for event in connection:
            if event.type == "response.completed":
                assert event.response.output_text
                break


async def test_a_page_elsewhere_speaks_over_no_websocket(nginx: Nginx, gateway: GatewayProcess):
    """The cookie itself is not looked at before where the page comes from."""
    address = nginx.url.replace("https:", "wss:")
    for origin, refused in (("https://evil.example", "cross_site_request"), ("https://localhost", "session_ended")):
        headers = {"Cookie": "__Host-sid=old", "Origin": origin}
        with pytest.raises(InvalidStatus) as answer:
            async with connect(f"{address}/v1/responses", ssl=trust(), additional_headers=headers):
                pass
        assert json.loads(answer.value.response.body or b"")["error"]["code"] == refused


async def test_what_a_websocket_says_of_itself_does_not_reach_the_gateway():
    """What does is told by a WebSocket server that stands behind the same configuration."""
    seen: list[dict[str, str]] = []

    async def echo(connection: ServerConnection) -> None:
        assert connection.request
        seen.append(dict(connection.request.headers.raw_items()))
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        with Nginx(server.sockets[0].getsockname()[1]) as nginx:
            address = nginx.url.replace("https:", "wss:")
            spoofed = {"X-Forwarded-For": "10.1.2.3", "X-Real-IP": "10.1.2.3"}
            async with connect(f"{address}/v1/socket", ssl=trust(), additional_headers=spoofed) as socket:
                await socket.send("Hello?")
                assert await socket.recv() == "Hello?"
    assert seen[0]["X-Forwarded-For"] == "127.0.0.1" and "X-Real-IP" not in seen[0]


async def test_what_a_client_says_of_itself_does_not_reach_the_gateway():
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        with Nginx(server.sockets[0].getsockname()[1]) as nginx:
            said = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Real-IP", "Upgrade")
            async with browser(nginx, **dict.fromkeys(said, "mine"), **{"X-Request-Id": "mine"}) as ann:
                assert (await ann.get("/")).status_code == 204
    head = (await got).decode().lower()
    assert "mine" not in head and head.startswith("get / http/1.1\r\n") and "upgrade" not in head
    for line in ("x-forwarded-for: 127.0.0.3", "x-forwarded-proto: https", "x-forwarded-host: 127.0.0.1"):
        assert f"{line}\r\n" in head


# who is calling ------------------------------------------------------------------------------------------------------


async def wrong_passwords(http: httpx2.AsyncClient, name: str, addresses: list[str]) -> list[int]:
    """The answers to one wrong password after another, each claiming to come from somewhere else."""
    body = {"name": name, "password": "a wrong one"}
    return [
        (await http.post("/auth/login", json=body, headers={"x-forwarded-for": address})).status_code
        for address in addresses
    ]


INVENTED = [f"10.0.0.{number}" for number in range(6)]
LOCKED_OUT = [401] * 5 + [429]


async def test_the_login_throttle_counts_the_clients_own_address_whatever_it_claims(nginx: Nginx, scripted: FakeWorker):
    async with browser(nginx, BROWSER) as ann, browser(nginx, OTHER_BROWSER) as bea:
        assert await wrong_passwords(ann, "ann-of-the-throttle", INVENTED) == LOCKED_OUT
        assert await wrong_passwords(bea, "ann-of-the-throttle", [BROWSER]) == [401]


async def test_only_the_configured_proxy_is_believed(gateway: GatewayProcess, scripted: FakeWorker):
    async with past_nginx(gateway, STRANGER) as stranger, past_nginx(gateway, PROXY) as proxy:
        assert await wrong_passwords(stranger, "bea-of-the-throttle", INVENTED) == LOCKED_OUT
        assert await wrong_passwords(proxy, "cem-of-the-throttle", INVENTED) == [401] * 6


@pytest.mark.parametrize("path", ["/metrics", "/metrics/worker", "//metrics", "/x/../metrics", "/%6detrics"])
async def test_metrics_are_not_passed_to_the_outside(nginx: Nginx, scripted: FakeWorker, path: str):
    plain = socket.create_connection(("127.0.0.1", nginx.port))
    with trust().wrap_socket(plain, server_hostname="localhost") as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ") and b"deskmate_" not in answer


async def test_a_proxy_that_forgets_to_keep_metrics_back_makes_nobody_local(
    gateway: GatewayProcess, scripted: FakeWorker
):
    open_door = {"location /metrics {\n        return 404;": "location /metrics {\n        proxy_pass http://deskmate;"}
    with Nginx(gateway.port, open_door) as careless:
        async with browser(careless, PROXY) as ann, past_nginx(gateway, PROXY) as prometheus:
            assert (await ann.get("/metrics")).status_code == 401
            assert (await prometheus.get("/metrics")).status_code == 200


async def test_a_host_that_is_not_ours_is_refused_behind_the_proxy_as_before_it(nginx: Nginx, scripted: FakeWorker):
    async with browser(nginx) as ann:
        answer = await ann.get("/v1/models", headers={"host": "evil.example", "x-forwarded-host": "localhost"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_host")
        assert (await ann.get("/healthz", headers={"host": "localhost"})).status_code == 200


# limits and trouble --------------------------------------------------------------------------------------------------


async def test_a_body_above_the_limit_is_refused_with_413_and_one_at_the_limit_reaches_the_gateway(
    nginx: Nginx, client: openai.AsyncOpenAI
):
    with pytest.raises(openai.APIStatusError) as refused:
        await client.responses.create(input="x" * (1 << 20))
    assert refused.value.status_code == 413 and refused.value.code == "request_too_large"
    async with browser(nginx, authorization=f"Bearer {client.api_key}") as ann:
        json_type = {"content-type": "application/json"}
        at_limit = await ann.post("/v1/responses", content=b" " * (1 << 20), headers=json_type)
        assert at_limit.status_code == 400 and at_limit.headers["x-request-id"].startswith("req_")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(17):
                yield b" " * 65_536

        assert (await ann.post("/v1/responses", content=chunks(), headers=json_type)).status_code == 413
    assert "temporary file" not in nginx.log, "what people write was put on the disk"


async def test_a_stopped_gateway_gives_a_clear_503_at_once_and_a_started_one_answers_again(
    gateway: GatewayProcess, client: openai.AsyncOpenAI
):
    assert (await client.models.list()).data
    assert gateway.stop() == 0
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError, match="Deskmate does not answer") as refused:
        await client.responses.create(input="Hello?")
    assert time.monotonic() - began < 4
    assert refused.value.status_code == 503 and refused.value.code == "gateway_unreachable"
    assert refused.value.response.headers["retry-after"] == "5"
    gateway.start()
    await gateway.until_ready()
    assert (await client.models.list()).data
