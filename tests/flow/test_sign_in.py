"""Signing in by link and by password, what a cookie is worth, and what a key is."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

import pytest

from gateway.auth.keys import new_key
from gateway.auth.principal import Role, Scope
from gateway.errors import Busy
from gateway.redis_client import RedisClient
from tests.flow.people_app import ORIGIN, Desk, open_desk
from tests.servers import RedisServer

pytestmark = pytest.mark.parametrize("redis_binary", ["redis"], indirect=True)  # the store has its contract test

GOOD = "three unrelated words, 三"


@pytest.fixture
async def desk(redis_client: RedisClient) -> AsyncIterator[Desk]:
    async with open_desk(redis_client) as desk:
        yield desk


async def test_a_link_signs_in_once(desk: Desk) -> None:
    ann = await desk.people.create("ann", Role.ADMINISTRATOR)
    token = await desk.token(ann)
    browser = desk.browser()
    answer = await browser.post("/auth/link", json={"token": token})
    user = {"id": ann.id, "name": "ann", "role": "administrator", "department": None, "has_password": False}
    assert answer.json() == {"user": user}
    assert (await browser.get("/auth/me")).json() == {"user": user}
    again = await desk.browser().post("/auth/link", json={"token": token})
    assert again.status_code == 401 and again.json()["error"]["code"] == "invalid_link"


async def test_of_fifty_who_open_one_link_at_once_exactly_one_is_signed_in(desk: Desk) -> None:
    token = await desk.token(await desk.people.create("admin", Role.ADMINISTRATOR))
    answers = await asyncio.gather(*(desk.browser().post("/auth/link", json={"token": token}) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 49
    assert sum("set-cookie" in answer.headers for answer in answers) == 1


async def test_a_links_token_stands_in_the_fragment_and_in_redis_as_a_digest_for_a_day(
    desk: Desk, redis_server: RedisServer
) -> None:
    ann = await desk.people.create("ann")
    link = await desk.links.create(ann.id)
    assert link.url.startswith("http://127.0.0.1:8000/#link=")
    names = [name.decode() for name in redis_server.admin("KEYS", "dm:link:*")]
    assert len(names) == 1 and link.url.partition("=")[2] not in names[0]
    assert 86_390 < redis_server.admin("TTL", names[0]) <= 86_400


async def test_a_disabled_persons_link_signs_in_nobody(desk: Desk) -> None:
    ann = await desk.people.create("ann")
    token = await desk.token(ann)
    await desk.people.disable(ann.id)
    assert (await desk.browser().post("/auth/link", json={"token": token})).status_code == 401


@pytest.mark.parametrize(
    ("given", "name", "secure"),
    [
        ({}, "deskmate_sid", False),
        ({"public_url": "https://desk.example.org"}, "__Host-sid", True),
        ({"tls_cert": "/cert.pem"}, "__Host-sid", True),
    ],
)
async def test_the_cookies_flags_fit_how_people_come(
    redis_client: RedisClient, given: dict[str, str], name: str, secure: bool
) -> None:
    async with open_desk(redis_client, **given) as desk:
        token = await desk.token(await desk.people.create("ann"))
        cookie = (await desk.browser().post("/auth/link", json={"token": token})).headers["set-cookie"]
    value, *flags = cookie.split("; ")
    assert value.startswith(f"{name}=") and len(value) == len(name) + 1 + 43
    assert {"Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=2592000"} <= set(flags)
    assert ("Secure" in flags) is secure
    assert not any(flag.startswith("Domain") for flag in flags)


async def test_strict_transport_security_is_sent_where_people_come_by_https(redis_client: RedisClient) -> None:
    async with open_desk(redis_client, public_url="https://desk.example.org") as desk:
        answer = await desk.browser().get("/auth/me")
    assert answer.headers["strict-transport-security"] == "max-age=63072000"


async def test_signing_in_again_makes_a_new_session_and_ends_the_old(desk: Desk) -> None:
    browser, ann = await desk.signed_in("ann")
    old = browser.cookies["deskmate_sid"]
    await browser.post("/auth/link", json={"token": await desk.token(ann)})
    assert browser.cookies["deskmate_sid"] != old
    assert (await browser.get("/auth/me")).status_code == 200
    assert (await desk.browser().get("/auth/me", headers={"cookie": f"deskmate_sid={old}"})).status_code == 401


async def test_a_session_chosen_by_somebody_else_is_never_taken_over(desk: Desk) -> None:
    browser = desk.browser()
    browser.cookies["deskmate_sid"] = "chosen"
    await browser.post("/auth/link", json={"token": await desk.token(await desk.people.create("ann"))})
    assert (await desk.browser().get("/auth/me", headers={"cookie": "deskmate_sid=chosen"})).status_code == 401


async def test_logging_out_ends_the_session_on_the_server_and_clears_the_browser(desk: Desk) -> None:
    browser, _ = await desk.signed_in("ann")
    token = browser.cookies["deskmate_sid"]
    answer = await browser.post("/auth/logout")
    assert answer.status_code == 200
    assert "Max-Age=0" in answer.headers["set-cookie"] and "storage" in answer.headers["clear-site-data"]
    assert (await desk.browser().get("/auth/me", headers={"cookie": f"deskmate_sid={token}"})).status_code == 401


CSRF = [
    # method, headers of the request, may it
    ("GET", {}, True),
    ("GET", {"sec-fetch-site": "cross-site", "origin": "http://evil.example"}, True),
    ("POST", {"sec-fetch-site": "same-origin"}, True),
    ("POST", {"sec-fetch-site": "none"}, True),
    ("POST", {"sec-fetch-site": "same-site"}, False),
    ("POST", {"sec-fetch-site": "cross-site"}, False),
    ("POST", {"sec-fetch-site": "cross-site", "origin": ORIGIN}, False),
    ("POST", {"sec-fetch-site": "nonsense", "origin": ORIGIN}, False),
    ("POST", {"origin": ORIGIN}, True),
    ("POST", {"origin": "http://localhost:9000"}, False),
    ("POST", {"origin": "https://localhost:8000"}, False),
    ("POST", {"origin": "http://localhost:8000.evil.example"}, False),
    ("POST", {"origin": "null"}, False),
    ("POST", {"origin": ""}, False),
    ("POST", {}, False),
    ("DELETE", {}, False),
    ("DELETE", {"origin": ORIGIN}, True),
    ("DELETE", {"sec-fetch-site": "cross-site"}, False),
]


@pytest.mark.parametrize(("method", "headers", "may"), CSRF)
async def test_a_cookie_counts_only_on_a_request_of_our_own_page(
    desk: Desk, method: str, headers: dict[str, str], may: bool
) -> None:
    signed_in, _ = await desk.signed_in("ann")
    cookie = f"deskmate_sid={signed_in.cookies['deskmate_sid']}"
    browser = desk.browser(cookie=cookie, **headers)
    answer = await browser.request(method, "/v1/whoami")
    assert answer.status_code == (200 if may else 403), answer.text
    if not may:
        assert answer.json()["error"]["code"] == "cross_site_request"


async def test_a_body_that_a_form_could_send_is_refused(desk: Desk) -> None:
    browser, _ = await desk.signed_in("ann")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = await browser.post("/v1/whoami", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415


@pytest.mark.parametrize("path", ["/auth/link", "/auth/login"])
async def test_another_page_can_sign_nobody_in(desk: Desk, path: str) -> None:
    ann = await desk.people.create("ann")
    token = await desk.token(ann)
    body = {"token": token} if path == "/auth/link" else {"name": "ann", "password": GOOD}
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}):
        answer = await desk.browser(**headers).post(path, json=body)
        assert answer.status_code == 403 and "set-cookie" not in answer.headers
    program = await desk.browser(accept="*/*").post("/auth/link", json={"token": token})
    assert program.status_code == 200, "the link was not spent, and a program needs no browser's headers"


async def test_a_key_needs_no_origin_and_wins_over_a_cookie(desk: Desk) -> None:
    browser, _ = await desk.signed_in("ann")
    id, key = await desk.key("bob")
    answer = await browser.post(
        "/v1/whoami", headers={"authorization": f"Bearer {key}", "sec-fetch-site": "cross-site"}
    )
    assert answer.json()["key"] == id and answer.json()["name"] == "bob"
    bad = await browser.get("/v1/whoami", headers={"authorization": f"Bearer {new_key()}"})
    assert bad.status_code == 401, "a wrong key is not made good by a cookie"


async def test_anthropics_header_is_taken_on_its_routes_only(desk: Desk) -> None:
    _, key = await desk.key("ann")
    client = desk.browser(**{"x-api-key": key})
    assert (await client.post("/v1/messages/whoami")).json()["name"] == "ann"
    assert (await client.post("/v1/whoami")).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", "Basic YTpi", "Bearer ' OR 1=1 --", 'Bearer "', "Bearer \x7f", f"Token {new_key()}"),
        *(f"Bearer {new_key()}", f"Bearer {new_key()[:-1]}", f"Bearer {new_key()} {new_key()}", "Bearer dm_live_*"),
        *("Bearer " + "a" * 1_000_000, "Bearer é", "Bearer ../../etc/passwd", "Bearer %00"),
    ],
    ids=lambda header: f"{len(header)}-{header[:8]}",  # the keys are others in each process of the tests
)
async def test_no_hostile_key_is_anything_but_unauthenticated(desk: Desk, header: str) -> None:
    await desk.key("ann")
    client = desk.browser()
    answer = await client.get("/v1/whoami", headers=[(b"authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["type"] == "authentication_error" and len(error["message"]) < 200
    assert header[7:27] not in error["message"] or not header[7:27].strip()


async def test_two_authorization_headers_are_refused(desk: Desk) -> None:
    _, key = await desk.key("ann")
    headers = [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")]
    assert (await desk.browser().get("/v1/whoami", headers=headers)).status_code == 401


async def test_keys_with_a_common_beginning_are_different_people(desk: Desk) -> None:
    _, ann = await desk.key("ann")
    _, bob = await desk.key("bob")
    client = desk.browser()
    for _ in range(3):
        for key, name in ((ann, "ann"), (bob, "bob")):
            answer = await client.get("/v1/whoami", headers={"authorization": f"Bearer {key}"})
            assert answer.json()["name"] == name


async def test_a_keys_scopes_are_all_it_opens(desk: Desk) -> None:
    _, metrics = await desk.key("ann", Scope.METRICS)
    answer = await desk.browser().get("/v1/whoami", headers={"authorization": f"Bearer {metrics}"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "insufficient_scope"


async def test_a_front_ends_key_speaks_for_the_people_it_names(redis_client: RedisClient) -> None:
    async with open_desk(redis_client, delegate_header="X-OpenWebUI-User-Id") as desk:
        _, delegate = await desk.key("webui", Scope.CHAT, Scope.DELEGATE)
        _, plain = await desk.key("webui")

        async def who(key: str, **headers: str) -> str:
            headers["authorization"] = f"Bearer {key}"
            return (await desk.browser().get("/v1/whoami", headers=headers)).json()["name"]

        assert await who(delegate, **{"x-openwebui-user-id": "ann"}) == "webui/ann"
        assert await who(delegate, **{"x-openwebui-user-id": "bob"}) == "webui/bob"
        assert await who(plain, **{"x-openwebui-user-id": "ann"}) == "webui"
        ann = await desk.people.named("webui/ann")
        assert ann is not None
        await desk.people.disable(ann.id)
        desk.authenticator.forget()
        headers = {"authorization": f"Bearer {delegate}", "x-openwebui-user-id": "ann"}
        assert (await desk.browser().get("/v1/whoami", headers=headers)).status_code == 401


async def test_a_front_ends_key_never_speaks_for_its_owner(desk: Desk) -> None:
    _, key = await desk.key("webui", Scope.CHAT, Scope.DELEGATE)
    headers = {"authorization": f"Bearer {key}", "x-openwebui-user-id": "ann"}
    answer = await desk.browser().get("/v1/whoami", headers=headers)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "no_person_named"
    assert "DESKMATE_DELEGATE_HEADER" in answer.json()["error"]["message"]


async def test_a_password_signs_in_after_it_was_set(desk: Desk) -> None:
    browser, ann = await desk.signed_in("ann")
    answer = await browser.post("/auth/password", json={"new": GOOD})
    assert answer.json()["user"]["has_password"] is True
    other = await desk.browser().post("/auth/login", json={"name": "ANN", "password": GOOD})
    assert other.json()["user"]["id"] == ann.id
    stored = (await desk.people.named("ann")).password_hash  # type: ignore[union-attr]
    assert stored and stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_changing_a_password_asks_for_the_current_one_and_ends_other_sessions(desk: Desk) -> None:
    browser, _ = await desk.signed_in("ann")
    await browser.post("/auth/password", json={"new": GOOD})
    elsewhere = desk.browser()
    await elsewhere.post("/auth/login", json={"name": "ann", "password": GOOD})
    missing = await browser.post("/auth/password", json={"new": GOOD + "!"})
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "current"
    wrong = await browser.post("/auth/password", json={"new": GOOD + "!", "current": "wrong"})
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "wrong_password"
    assert (await browser.post("/auth/password", json={"new": GOOD + "!", "current": GOOD})).status_code == 200
    assert (await browser.get("/auth/me")).status_code == 200
    assert (await elsewhere.get("/auth/me")).status_code == 401
    assert (await elsewhere.post("/auth/login", json={"name": "ann", "password": GOOD})).status_code == 401


async def test_a_key_cannot_change_its_persons_password(desk: Desk) -> None:
    _, key = await desk.key("ann")
    answer = await desk.browser(authorization=f"Bearer {key}").post("/auth/password", json={"new": GOOD})
    assert answer.status_code == 403


async def test_a_wrong_name_and_a_wrong_password_get_the_same_answer_for_the_same_work(desk: Desk) -> None:
    browser, _ = await desk.signed_in("ann")
    await browser.post("/auth/password", json={"new": GOOD})
    seconds: dict[str, list[float]] = {"ann": [], "nobody": []}
    answers = set()
    for _ in range(4):
        for name, taken in seconds.items():
            begin = time.perf_counter()
            answer = await desk.browser().post("/auth/login", json={"name": name, "password": "wrong password"})
            taken.append(time.perf_counter() - begin)
            answers.add((answer.status_code, answer.text))
    assert len(answers) == 1
    known, unknown = (statistics.median(taken) for taken in seconds.values())
    assert unknown > known / 3, "an unknown name costs a hash too"


async def test_empty_odd_and_endless_passwords_are_refused_without_a_fault(desk: Desk) -> None:
    await desk.people.create("ann")  # has no password at all
    for password in ("", " ", "x" * 129, "x" * 500_000):
        answer = await desk.browser().post("/auth/login", json={"name": "ann", "password": password})
        assert answer.status_code == 401


async def test_a_burst_of_guesses_gets_no_more_than_its_due_and_locks_nobody_out(desk: Desk) -> None:
    browser, ann = await desk.signed_in("ann")
    await browser.post("/auth/password", json={"new": GOOD})
    guesses = await asyncio.gather(
        *(desk.browser().post("/auth/login", json={"name": "ann", "password": f"guess {n}"}) for n in range(20))
    )
    assert sorted(answer.status_code for answer in guesses) == [401] * 5 + [429] * 15
    refused = next(answer for answer in guesses if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "too_many_attempts" and int(refused.headers["retry-after"]) > 800
    bob, _ = await desk.signed_in("bob")
    await bob.post("/auth/password", json={"new": GOOD})
    other = await desk.browser().post("/auth/login", json={"name": "bob", "password": GOOD})
    assert other.status_code == 200, "somebody else behind the same address"
    by_link = await desk.browser().post("/auth/link", json={"token": await desk.token(ann)})
    assert by_link.status_code == 200, "and the person attacked has the link"


async def test_more_than_the_queue_holds_are_told_to_come_back(desk: Desk) -> None:
    results = await asyncio.gather(*(desk.passwords.hash(GOOD) for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(result, Busy) for result in results) == 8
    assert sum(isinstance(result, str) for result in results) == 22


async def test_without_redis_nobody_is_let_in_and_the_answer_says_why(
    mortal_redis_server: RedisServer,
) -> None:
    client = RedisClient(mortal_redis_server.url, mortal_redis_server.password)
    async with open_desk(client) as desk:
        _, key = await desk.key("ann")
        mortal_redis_server.kill()
        answer = await desk.browser().get("/v1/whoami", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "storage_down"
    await client.aclose()


async def test_the_page_and_its_files_are_served_to_anybody_and_asked_for_again(desk: Desk) -> None:
    browser = desk.browser()
    page = await browser.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache"
    again = await browser.get("/", headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    script = await browser.get("/web/app.js", headers={"range": "bytes=0-3"})
    assert script.status_code == 200 and script.headers["content-type"] == "text/javascript; charset=utf-8"
    head = await browser.head("/web/app.js")
    assert head.status_code == 200 and head.content == b""


@pytest.mark.parametrize(
    "path", ["../settings.py", "..%2fsettings.py", "%2e%2e/settings.py", "/etc/passwd", "", "%00", "app"]
)
async def test_no_path_leads_out_of_the_pages_folder(desk: Desk, path: str) -> None:
    answer = await desk.browser().get("/web/" + path)
    assert answer.status_code == 404 and b"SettingsError" not in answer.content
