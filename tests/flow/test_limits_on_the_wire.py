"""What hostile bytes on a real socket get, and what they cost; run as a program, this file is the server under test."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.errors import Refusal
from gateway.limits import Limits, render_plainly
from gateway.server import ListenError, inherited, listen, serve
from gateway.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 1 << 20


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, raw: bytes) -> bytes:
        """All bytes that come back until the server closes."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(raw)
            return read_all(connection)

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, str]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def start(**settings: str) -> Server:
    process = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LIMITS": json.dumps(settings)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"listening on https?://127.0.0.1:(\d+)", line):
            return Server(process, int(found[1]))
    raise AssertionError("the server did not start")


def stop(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert server.process.stderr
    server.process.stderr.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = start()
    yield server
    stop(server)


@pytest.fixture
def impatient_server() -> Iterator[Server]:
    server = start(header_seconds="0.5", body_seconds="0.5")
    yield server
    stop(server)


def request(head: str, body: bytes = b"", host: str = "localhost", close: bool = True) -> bytes:
    lines = [head + " HTTP/1.1", f"host: {host}"] + (["connection: close"] if close else [])
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


POST = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_an_ordinary_request_is_answered_with_an_id_and_the_security_headers(server: Server) -> None:
    answer = server.ask(request("POST /body", b'{"a": 1}'))
    head = answer.partition(b"\r\n\r\n")[0].decode().lower()
    assert status(answer) == 200 and answer.endswith(b"8")
    assert re.search(r"\r\nx-request-id: req_[0-9a-f]{24}(\r\n|$)", head)
    assert "\r\ncontent-security-policy: default-src 'none'; script-src 'self';" in head
    assert "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types chat dompurify\r\n" in head
    for line in (
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-opener-policy: same-origin",
        "cross-origin-resource-policy: same-origin",
        "x-dns-prefetch-control: off",
        "cache-control: no-store",
    ):
        assert f"\r\n{line}" in head
    assert "server:" not in head and "strict-transport-security" not in head


def test_what_only_a_proxy_may_say_does_not_get_in(server: Server) -> None:
    raw = request("GET /seen").replace(
        b"\r\n\r\n",
        b"\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6\r\nX-User: root\r\n"
        b"X-Request-Id: evil\r\nX-Mine: kept\r\n\r\n",
    )
    answer = server.ask(raw)
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert [name for name, _ in seen["headers"]] == ["host", "connection", "x-mine"]
    assert seen["forwarded"] is True and seen["client"] == "127.0.0.1"
    assert b"evil" not in answer and seen["request_id"].encode() in answer


def test_a_body_announced_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    with server.connect() as connection:
        begin = time.monotonic()
        connection.sendall(POST + b"content-length: 2097152\r\n\r\n")
        answer = connection.recv(65536)
        assert time.monotonic() - begin < 0.5  # 2 ms where it was written
        answer += read_all(connection)  # the rest of it, until the connection is closed
        assert status(answer) == 413
        refused = error(answer)
        assert refused["code"] == "request_too_large"
        assert "2,097,152 bytes" in refused["message"] and "1,048,576 bytes" in refused["message"]


def test_a_client_that_sends_a_large_body_first_still_gets_its_answer(server: Server) -> None:
    answer = server.ask(POST + b"content-length: 2097152\r\n\r\n" + b" " * 2 * MEBIBYTE)
    assert status(answer) == 413 and error(answer)["code"] == "request_too_large"
    assert b"\r\nconnection: close" in answer


def test_a_chunked_body_of_two_hundred_mebibytes_is_refused_and_costs_almost_no_memory(server: Server) -> None:
    server.ask(request("POST /body", b"{" + b" " * (MEBIBYTE - 2) + b"}"))
    before = server.rss_bytes()
    with server.connect() as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
            for _ in range(200):
                connection.sendall(b"100000\r\n" + b" " * MEBIBYTE + b"\r\n")
                sent += 1
        answer = read_all(connection)
    assert sent < 20, "the server stopped reading"
    assert status(answer) == 413 and "more than 1,048,576 bytes" in error(answer)["message"]
    assert server.rss_bytes() - before <= 4 * MEBIBYTE


def test_a_body_of_exactly_the_limit_is_read_in_either_framing(server: Server) -> None:
    body = b" " * MEBIBYTE
    assert server.ask(request("POST /body", body)).endswith(b"1048576")
    chunked = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n100000\r\n" + body + b"\r\n0\r\n\r\n"
    assert server.ask(chunked).endswith(b"1048576")
    one_more = chunked.replace(b"\r\n0\r\n\r\n", b"\r\n1\r\n \r\n0\r\n\r\n")
    assert status(server.ask(one_more)) == 413


def test_an_answer_before_the_body_is_read_closes_the_connection(server: Server) -> None:
    answer = server.ask(request("POST /unread", b"{" + b" " * 500_000 + b"}", close=False))
    assert status(answer) == 401 and b"\r\nconnection: close" in answer


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json; charset=utf-16"],
)
def test_a_body_that_is_not_sent_as_json_is_refused(server: Server, kind: str) -> None:
    raw = request("POST /body", b"{}").replace(b"application/json", kind.encode())
    answer = server.ask(raw)
    assert status(answer) == 415 and error(answer)["code"] == "unsupported_media_type"


def test_a_body_without_a_media_type_is_refused_and_no_body_needs_none(server: Server) -> None:
    assert status(server.ask(request("POST /body", b"{}").replace(b"content-type: application/json\r\n", b""))) == 415
    assert status(server.ask(request("POST /body"))) == 200
    assert status(server.ask(request("POST /body", b"{}").replace(b"/json", b"/JSON; charset=UTF-8"))) == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "desk.example.org", "localhost."]
)
def test_a_name_of_ours_is_answered(server: Server, host: str) -> None:
    assert status(server.ask(request("GET /seen", host=host))) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.1"),
        *("", "localhost:", "localhost:x", "local host", "localhost/x", "user@localhost", "localhost,evil", "[::1"),
        *("localhost\\@evil", "localhost?x", "localhost#x", "http://localhost", "..", "[::ffff:127.0.0.1%25x]"),
        *("\t", "a" * 300, "%6c", "é", "2130706433"),
    ],
)
def test_any_other_name_is_refused(server: Server, host: str) -> None:
    answer = server.ask(request("GET /seen", host=host))
    assert status(answer) == 400
    assert error(answer)["code"] in ("unknown_host", "invalid_host")


@pytest.mark.parametrize(
    "hosts", [b"", b"host: localhost\r\nhost: localhost\r\n", b"host: localhost\r\nHost: evil\r\n"]
)
def test_a_request_with_no_host_or_two_is_refused(server: Server, hosts: bytes) -> None:
    assert error(server.ask(b"GET /seen HTTP/1.1\r\n" + hosts + b"connection: close\r\n\r\n"))["code"] == "invalid_host"


SMUGGLED = {
    "both lengths": POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, turned": POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "length twice": POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "length list": POST + b"content-length: 2, 2\r\n\r\n{}",
    "signed length": POST + b"content-length: +2\r\n\r\n{}",
    "coding twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip before chunked": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding in HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "blank before colon": POST + b"content-length : 2\r\n\r\n{}",
    "folded header": POST + b"x: a\r\n content-length: 2\r\n\r\n{}",
    "bare line feed": POST.replace(b"\r\n", b"\n") + b"content-length: 2\n\n{}",
    "bare carriage return": POST + b"x: a\ry: b\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a header": POST + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "bare line feed in chunks": POST + b"transfer-encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "upgrade with a body": POST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}",
    "target that is no path": b"GET seen HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "target that is only a host": b"GET http://evil HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "not HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("raw", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_a_request_with_two_readings_is_refused_and_its_connection_closed(server: Server, raw: bytes) -> None:
    answer = server.ask(raw + b"GET /seen HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is not taken for a request"
    assert b"\r\nx-request-id: req_" in answer and b"\r\ncontent-security-policy: " in answer


def test_another_version_of_http_is_refused(server: Server) -> None:
    assert status(server.ask(b"GET /seen HTTP/2.0\r\nhost: localhost\r\n\r\n")) == 505


def test_a_trailer_does_not_become_a_header(server: Server) -> None:
    raw = POST.replace(b"/body", b"/seen") + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = server.ask(raw + b"2\r\n{}\r\n0\r\nauthorization: Bearer x\r\n\r\n")
    assert status(answer) == 200 and b"authorization" not in answer


def test_a_header_of_a_mebibyte_is_refused_and_not_kept(server: Server) -> None:
    before = server.rss_bytes()
    answer = server.ask(b"GET /seen HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * MEBIBYTE + b"\r\n\r\n")
    assert status(answer) == 431 and error(answer)["code"] == "headers_too_large"
    assert server.rss_bytes() - before <= 4 * MEBIBYTE


def test_a_header_that_never_ends_is_cut_off(server: Server) -> None:
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /seen HTTP/1.1\r\nx: ")
            for _ in range(200):
                connection.sendall(b"y" * MEBIBYTE)
        assert status(read_all(connection)) == 431


def test_ten_thousand_headers_are_refused(server: Server) -> None:
    many = b"".join(b"x-%d: y\r\n" % number for number in range(10_000))
    assert status(server.ask(b"GET /seen HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n")) == 431
    few = b"".join(b"x-%d: y\r\n" % number for number in range(98))
    assert status(server.ask(request("GET /seen").replace(b"\r\n\r\n", b"\r\n" + few + b"\r\n"))) == 200


def test_a_target_of_a_hundred_kibibytes_is_refused(server: Server) -> None:
    assert status(server.ask(request("GET /" + "a" * 100_000))) == 431


def test_requests_sent_ahead_are_answered_in_order_but_not_in_thousands(server: Server) -> None:
    few = server.ask(request("GET /seen", close=False) * 5 + request("GET /seen"))
    assert few.count(b"HTTP/1.1 200") == 6
    many = server.ask(request("GET /slow", close=False) * 10_000)
    assert many.count(b"HTTP/1.1 200") <= 1


def test_headers_that_trickle_are_cut_off(impatient_server: Server) -> None:
    _all_are_closed(impatient_server, b"GET /seen HTTP/1.1\r\nhost: local", 408)


def test_a_connection_that_says_nothing_is_closed(impatient_server: Server) -> None:
    _all_are_closed(impatient_server, b"", None)
    _all_are_closed(impatient_server, b"\r\n", None)


def test_a_body_that_trickles_is_cut_off(impatient_server: Server) -> None:
    _all_are_closed(impatient_server, POST + b"content-length: 100\r\n\r\n{", 408)
    _all_are_closed(impatient_server, POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", 408)


def test_a_second_request_on_a_connection_is_held_to_the_same_time(impatient_server: Server) -> None:
    _all_are_closed(impatient_server, request("GET /seen", close=False) + b"GET /seen HTTP/1.1\r\n", 200, clients=5)
    with impatient_server.connect() as connection:
        connection.sendall(request("GET /body", close=False))
        answer = b""
        while not answer.endswith(b"Allowed"):
            answer += connection.recv(65536)
        connection.sendall(b"\r\n")
        assert read_all(connection) == b""


def _all_are_closed(server: Server, raw: bytes, expected: int | None, clients: int = 100) -> None:
    connections = [server.connect() for _ in range(clients)]
    try:
        for connection in connections:
            connection.sendall(raw)
        answers = [read_all(connection) for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert {status(answer) if answer else None for answer in answers} == {expected}


def test_a_long_answer_is_no_slow_request(impatient_server: Server) -> None:
    answer = impatient_server.ask(request("GET /slow"))
    assert status(answer) == 200 and answer.endswith(b"0\r\n\r\n") and answer.count(b"tick") == 10


def test_a_body_read_while_the_answer_streams_is_within_its_own_time(impatient_server: Server) -> None:
    answer = impatient_server.ask(request("POST /slow", b"{}"))
    assert answer.count(b"tick") == 10


def test_an_ordered_stop_lets_a_running_answer_end_and_exits_with_zero() -> None:
    server = start()
    try:
        with server.connect() as connection:
            connection.sendall(request("GET /slow", close=False))
            first = connection.recv(65536)
            server.process.send_signal(signal.SIGTERM)
            answer = first + read_all(connection)
        assert answer.count(b"tick") == 10
        assert server.process.wait(5) == 0
    finally:
        stop(server)


def test_while_it_stops_what_comes_is_answered_as_the_last_and_the_idle_are_closed_after_a_moment() -> None:
    server = start(header_seconds="2")
    try:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        with server.connect() as silent, server.connect() as idle, server.connect() as busy, contextlib.closing(kept):
            idle.sendall(request("GET /seen", close=False))
            assert b"connection: close" not in idle.recv(65536)
            busy.sendall(request("GET /slow", close=False))
            first = busy.recv(65536)
            server.process.send_signal(signal.SIGTERM)
            answered = get(kept)
            while answered.getheader("connection") is None:
                answered = get(kept)
            assert (answered.status, answered.getheader("connection")) == (200, "close")
            assert select.select([silent], [], [], 0)[0] == []
            assert read_all(silent) == b"" and b"HTTP/1.1" not in read_all(idle)
            while not first.endswith(b"0\r\n\r\n"):
                first += busy.recv(65536)
            busy.sendall(request("GET /seen", close=False))
            answer = read_all(busy)
            assert first.count(b"tick") == 10 and status(answer) == 200 and answer.count(b"connection: close") == 1
        assert server.process.wait(5) == 0
    finally:
        stop(server)


def get(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    connection.request("GET", "/seen")
    answer = connection.getresponse()
    answer.read()
    return answer


def test_an_answer_that_does_not_end_is_cut_after_the_drain_time() -> None:
    server = start(drain_seconds="1")
    try:
        with server.connect() as connection:
            connection.sendall(request("GET /endless"))
            connection.recv(65536)
            begin = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            read_all(connection)
        assert 0.9 < time.monotonic() - begin < 5
        assert server.process.wait(5) == 0
    finally:
        stop(server)


def test_a_request_that_has_no_answer_at_the_end_of_the_drain_time_is_told_to_come_again() -> None:
    server = start(drain_seconds="0.3")
    try:
        with server.connect() as connection:
            connection.sendall(request("GET /never"))
            server.process.send_signal(signal.SIGTERM)
            answer = read_all(connection)
        assert status(answer) == 503 and error(answer)["code"] == "draining"
        assert b"\r\nretry-after: 2\r\n" in answer
        assert server.process.wait(5) == 0
    finally:
        stop(server)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and the certificate it signed itself, in one file."""
    file = tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    subprocess.run([*command.split(), "-keyout", file, "-out", tmp_path / "c"], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "c").read_text())
    return file


def test_with_a_certificate_https_is_spoken_and_nothing_older_than_tls_1_2(certificate: Path) -> None:
    server = start(tls_cert=str(certificate))
    try:
        context = ssl.create_default_context(cafile=certificate)
        with context.wrap_socket(server.connect(), server_hostname="localhost") as connection:
            assert connection.version() in ("TLSv1.2", "TLSv1.3")
            connection.sendall(request("GET /seen"))
            answer = read_all(connection)
        assert status(answer) == 200 and b"\r\nstrict-transport-security: max-age=63072000\r\n" in answer
        assert server.ask(request("GET /seen")) == b"", "plain HTTP gets nothing"
    finally:
        stop(server)


def test_a_certificate_that_cannot_be_used_stops_the_start_and_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    for path in (tmp_path / "cert.pem", tmp_path / "none.pem"):
        with pytest.raises(SettingsError, match="DESKMATE_TLS_CERT or DESKMATE_TLS_KEY cannot be used"):
            serve(_nothing, _settings(tls_cert=str(path)))


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1, port {port}: Address already in use"):
            listen("127.0.0.1", port)
    with pytest.raises(ListenError, match="cannot listen on host"):
        listen("host.invalid", 0)


def test_inherited_sockets_that_are_none_are_named() -> None:
    with socket.socket() as no_listener, socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(
            ListenError, match=f"DESKMATE_LISTEN_FD names {no_listener.fileno()}, which is no listening"
        ):
            inherited([no_listener.fileno()])
        with pytest.raises(ListenError, match="DESKMATE_LISTEN_FD names 9999, which is no listening"):
            inherited([9999])
        with inherited([os.dup(listener.fileno())])[0] as handed_on:
            assert handed_on.getsockname() == listener.getsockname()


async def _nothing(scope: object, receive: object, send: object) -> None: ...


def _settings(**given: str) -> Settings:
    required = {"REDIS_URL": "unix:///none", "SECRET_FILE": "/none", "PORT": "0", "ALLOWED_HOSTS": "desk.example.org"}
    named = required | {name.upper(): value for name, value in given.items()}
    return Settings.from_environment({f"DESKMATE_{name}": value for name, value in named.items()})


def main() -> None:
    async def body(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def seen(request: Request) -> Response:
        await request.body()
        headers = [(name, value) for name, value in request.headers.items()]
        state = {"request_id": request.state.request_id, "forwarded": request.state.forwarded}
        assert request.client
        return JSONResponse({"headers": headers, "client": request.client.host, **state})

    async def unread(request: Request) -> Response:
        return PlainTextResponse("no", 401)

    async def ticks(count: int):
        for _ in range(count):
            yield "tick"
            await asyncio.sleep(0.1)

    async def slow(request: Request) -> Response:
        await request.body()
        return StreamingResponse(ticks(10))

    async def endless(request: Request) -> Response:
        return StreamingResponse(ticks(10_000))

    async def never(request: Request) -> Response:
        await asyncio.sleep(600)
        return PlainTextResponse("late")

    async def refuse(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        return render_plainly(request.scope, refusal)

    routes = [
        Route("/body", body, methods=["POST"]),
        Route("/seen", seen, methods=["GET", "POST"]),
        Route("/unread", unread, methods=["POST"]),
        Route("/slow", slow, methods=["GET", "POST"]),
        Route("/endless", endless),
        Route("/never", never),
    ]
    settings = _settings(**json.loads(os.environ["LIMITS"]))
    serve(Limits(Starlette(routes=routes, exception_handlers={Refusal: refuse}), settings), settings)


if __name__ == "__main__":
    main()
