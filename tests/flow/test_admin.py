"""The administrator's doors: who may, what takes effect when, and the command line that does the same."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from gateway.auth.principal import Role, Scope
from gateway.redis_client import RedisClient
from tests.flow.people_app import Desk, open_desk
from tests.servers import RedisServer

pytestmark = pytest.mark.parametrize("redis_binary", ["redis"], indirect=True)  # the store has its contract test

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def desk(redis_client: RedisClient) -> AsyncIterator[Desk]:
    async with open_desk(redis_client) as desk:
        yield desk


@pytest.fixture
async def admin(desk: Desk) -> httpx2.AsyncClient:
    browser, _ = await desk.signed_in("admin", Role.ADMINISTRATOR)
    return browser


ROUTES = [
    ("GET", "/admin/users", None),
    ("POST", "/admin/users", {"name": "new"}),
    ("GET", "/admin/users/{user}/speaks_for", None),
    ("POST", "/admin/users/{user}/disable", None),
    ("POST", "/admin/users/{user}/enable", None),
    ("POST", "/admin/users/{user}/link", None),
    ("GET", "/admin/users/{user}/limits", None),
    ("POST", "/admin/users/{user}/limits", {"tokens_per_day": 5}),
    ("GET", "/admin/users/{user}/weight", None),
    ("POST", "/admin/users/{user}/weight", {"weight": 10}),
    ("GET", "/admin/keys/{key}/limits", None),
    ("POST", "/admin/keys/{key}/limits", {"tokens_per_day": 5}),
    ("GET", "/admin/keys", None),
    ("POST", "/admin/keys", {"user": "victim", "scopes": ["admin"]}),
    ("DELETE", "/admin/keys/{key}", None),
]


def test_the_table_of_routes_is_whole(desk: Desk) -> None:
    from fastapi.routing import APIRoute

    from gateway.api import admin

    routes = [
        route
        for route in admin.router(desk.authenticator, desk.links, desk.quotas, desk.ended.append).routes
        if isinstance(route, APIRoute)
    ]
    found = {(method, route.path.replace("users/{id}", "users/{user}").replace("keys/{id}", "keys/{key}"))
             for route in routes for method in route.methods}  # fmt: skip
    assert found == {(method, path) for method, path, _ in ROUTES}


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
@pytest.mark.parametrize("who", ["nobody", "a member", "a member's key", "an administrator's key", "a metrics key"])
async def test_nobody_else_reaches_an_administrators_door(
    desk: Desk, who: str, method: str, path: str, body: dict[str, object] | None
) -> None:
    victim_key, _ = await desk.key("victim")
    victim = await desk.people.named("victim")
    assert victim is not None
    client, expected = await _client(desk, who)
    answer = await client.request(method, path.format(user=victim.id, key=victim_key), json=body)
    assert answer.status_code == expected
    assert (await desk.people.get(victim.id)).disabled is False  # type: ignore[union-attr]
    assert [key.id for key in await desk.authenticator.keys.all() if key.user == victim.id] == [victim_key]
    assert await desk.people.named("new") is None


async def _client(desk: Desk, who: str) -> tuple[httpx2.AsyncClient, int]:
    match who:
        case "nobody":
            return desk.browser(), 401
        case "a member":
            return (await desk.signed_in("member"))[0], 403
        case "an administrator's key":
            await desk.people.create("admin", Role.ADMINISTRATOR)
            return desk.browser(authorization=f"Bearer {(await desk.key('admin'))[1]}"), 403
        case "a metrics key":
            return desk.browser(authorization=f"Bearer {(await desk.key('member', Scope.METRICS))[1]}"), 403
    return desk.browser(authorization=f"Bearer {(await desk.key('member'))[1]}"), 403


async def test_people_are_made_listed_and_linked(desk: Desk, admin: httpx2.AsyncClient) -> None:
    made = (await admin.post("/admin/users", json={"name": "Ann", "role": "member", "department": "Sales"})).json()
    assert (made["name"], made["department"], made["disabled"], made["keys"]) == ("Ann", "Sales", False, 0)
    listed = (await admin.get("/admin/users")).json()["data"]
    assert [person["name"] for person in listed] == ["admin", "Ann"]
    assert set(listed[0]) == {"id", "name", "role", "department", "disabled", "created_at", "keys", "speaks_for"}
    link = (await admin.post(f"/admin/users/{made['id']}/link")).json()
    token = link["url"].partition("#link=")[2]
    assert (await desk.browser().post("/auth/link", json={"token": token})).json()["user"]["name"] == "Ann"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": "a", "role": "owner"}, "role"),
        ({"name": "a", "admin": True}, "admin"),
        ({"name": "ADMIN"}, "name"),
        ({"name": "a" * 129}, "name"),
    ],
)
async def test_a_wrong_person_is_refused_by_field(
    admin: httpx2.AsyncClient, body: dict[str, object], param: str
) -> None:
    answer = await admin.post("/admin/users", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_a_key_is_shown_once_and_works_until_revoked(desk: Desk, admin: httpx2.AsyncClient) -> None:
    made = (await admin.post("/admin/keys", json={"user": "ann", "name": "laptop", "expires_in_days": 7})).json()
    client = desk.browser(authorization=f"Bearer {made['key']}")
    assert (await client.get("/v1/whoami")).json() == {"name": "ann", "user": made["user"], "key": made["id"]}
    listed = (await admin.get("/admin/keys")).json()
    assert made["key"] not in json.dumps(listed)
    (row,) = listed["data"]
    assert (row["user_name"], row["name"], row["scopes"]) == ("ann", "laptop", ["chat"])
    assert row["expires_at"] - row["created_at"] == 7 * 86_400 and row["last_used"]
    assert (await admin.delete(f"/admin/keys/{made['id']}")).json() == {"id": made["id"], "deleted": True}
    assert (await client.get("/v1/whoami")).status_code == 401, "at once"
    assert (await admin.delete(f"/admin/keys/{made['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"user": "ann", "scopes": ["root"]}, "scopes"),
        ({"user": "ann", "scopes": []}, "scopes"),
        ({"user": "ann", "scopes": [["chat"]]}, "scopes"),
        ({"user": "ann", "expires_in_days": 0}, "expires_in_days"),
        ({"user": "ann", "expires_in_days": 2**62}, "expires_in_days"),
        ({"user": "ann", "name": "a\nb"}, "name"),
        ({"user": ""}, "name"),
        ({}, "user"),
    ],
)
async def test_a_wrong_key_is_refused_by_field(
    desk: Desk, admin: httpx2.AsyncClient, body: dict[str, object], param: str
) -> None:
    answer = await admin.post("/admin/keys", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert await desk.authenticator.keys.all() == []


async def test_disabling_a_person_takes_effect_at_once_and_enabling_gives_no_session_back(
    desk: Desk, admin: httpx2.AsyncClient
) -> None:
    browser, ann = await desk.signed_in("ann")
    _, key = await desk.key("ann")
    client = desk.browser(authorization=f"Bearer {key}")
    assert (await browser.get("/v1/whoami")).status_code == (await client.get("/v1/whoami")).status_code == 200
    assert (await admin.post(f"/admin/users/{ann.id}/disable")).json()["disabled"] is True
    assert desk.ended == [ann.id]
    assert (await browser.get("/v1/whoami")).status_code == (await client.get("/v1/whoami")).status_code == 401
    assert (await admin.post(f"/admin/users/{ann.id}/link")).json()["error"]["code"] == "account_disabled"
    await admin.post(f"/admin/users/{ann.id}/enable")
    assert (await client.get("/v1/whoami")).status_code == 200
    assert (await browser.get("/v1/whoami")).status_code == 401


async def test_an_administrator_cannot_shut_themselves_out(desk: Desk, admin: httpx2.AsyncClient) -> None:
    me = (await admin.get("/auth/me")).json()["user"]["id"]
    assert (await admin.post(f"/admin/users/{me}/disable")).json()["error"]["code"] == "own_account"


async def test_an_unknown_person_is_not_found(admin: httpx2.AsyncClient) -> None:
    for verb in ("disable", "enable", "link"):
        assert (await admin.post(f"/admin/users/user_none/{verb}")).status_code == 404


async def test_a_key_with_the_scope_admin_administers(desk: Desk) -> None:
    _, key = await desk.key("automation", Scope.ADMIN)
    client = desk.browser(authorization=f"Bearer {key}")
    assert (await client.post("/admin/users", json={"name": "ann"})).status_code == 200


async def test_what_another_process_revokes_is_refused_within_a_second(desk: Desk, redis_client: RedisClient) -> None:
    id, key = await desk.key("ann")
    client = desk.browser(authorization=f"Bearer {key}")
    assert (await client.get("/v1/whoami")).status_code == 200
    async with open_desk(redis_client) as elsewhere:
        assert await elsewhere.authenticator.keys.revoke(id)
    await asyncio.sleep(1)
    assert (await client.get("/v1/whoami")).status_code == 401


@pytest.fixture
def cli(redis_server: RedisServer, tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"s" * 32)
    (tmp_path / "password").write_text(redis_server.password + "\n")
    environment = {
        "PATH": os.environ["PATH"],
        "DESKMATE_REDIS_URL": redis_server.url,
        "DESKMATE_REDIS_PASSWORD_FILE": str(tmp_path / "password"),
        "DESKMATE_SECRET_FILE": str(tmp_path / "secret"),
        "DESKMATE_HOME": str(tmp_path),
    }

    def run(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", *arguments]
        return subprocess.run(command, cwd=ROOT, env={**environment, **changed}, capture_output=True, text=True)

    return run


async def test_the_command_line_makes_an_administrator_even_one_who_was_disabled(cli, desk: Desk) -> None:
    for _ in range(2):
        done = cli("user", "link", "--administrator")
        assert done.returncode == 0, done.stderr
        token = done.stdout.strip().partition("#link=")[2]
        answer = await desk.browser().post("/auth/link", json={"token": token})
        assert answer.json()["user"]["role"] == "administrator" and answer.json()["user"]["name"] == "admin"
        assert cli("user", "disable", "admin").returncode == 0
    assert len(await desk.people.all()) == 1


async def test_the_command_line_makes_lists_and_revokes_keys(cli, desk: Desk) -> None:
    made = json.loads(cli("key", "create", "--user", "ann", "--scope", "chat", "--scope", "metrics", "--json").stdout)
    assert made["user_name"] == "ann" and made["scopes"] == ["chat", "metrics"]
    client = desk.browser(authorization=f"Bearer {made['key']}")
    assert (await client.get("/v1/whoami")).json()["key"] == made["id"]
    plain = cli("key", "create", "--user", "ann")
    assert plain.stdout.strip().startswith("dm_live_")
    listed = cli("key", "list")
    assert made["id"] in listed.stdout and "dm_live_" not in listed.stdout
    assert cli("key", "revoke", made["id"]).returncode == 0
    assert [key["user_name"] for key in json.loads(cli("key", "list", "--json").stdout)] == ["ann"]
    gone = cli("key", "revoke", made["id"])
    assert gone.returncode == 1 and gone.stderr.count("\n") == 1 and made["id"] in gone.stderr


async def test_the_command_line_makes_and_lists_people(cli) -> None:
    assert "user link" in cli("user", "create", "Zoë", "--department", "Sales").stdout
    assert [person["name"] for person in json.loads(cli("user", "list", "--json").stdout)] == ["Zoë"]
    twice = cli("user", "create", "zoë")
    assert twice.returncode == 1 and "already a person named" in twice.stderr
    assert cli("user", "disable", "nobody").returncode == 1
    assert "disabled" not in cli("user", "list").stdout


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"DESKMATE_SECRET_FILE": ""}, "DESKMATE_SECRET_FILE is missing"),
        ({"DESKMATE_SECRET_FILE": "/nowhere"}, "DESKMATE_SECRET_FILE: /nowhere: No such file"),
        ({"DESKMATE_REDIS_PASSWORD_FILE": "/nowhere"}, "DESKMATE_REDIS_PASSWORD_FILE: /nowhere: No such file"),
        ({"DESKMATE_REDIS_URL": "http://x"}, "DESKMATE_REDIS_URL must begin with"),
        ({"DESKMATE_PRT": "8000"}, "DESKMATE_PRT is not a setting"),
    ],
)
async def test_wrong_settings_end_the_command_with_78_and_one_line(cli, changed: dict[str, str], says: str) -> None:
    done = cli("user", "list", **changed)
    assert done.returncode == 78 and says in done.stderr and done.stderr.count("\n") == 1


async def test_a_redis_that_is_not_there_ends_the_command_with_1_and_one_line(cli) -> None:
    done = cli("user", "list", DESKMATE_REDIS_URL="unix:///nowhere/redis.sock")
    assert done.returncode == 1 and "Redis cannot be reached" in done.stderr and done.stderr.count("\n") == 1


async def test_wrong_usage_ends_with_2(cli) -> None:
    for arguments in (
        [],
        ["user"],
        ["user", "link"],
        ["key", "create"],
        ["key", "create", "--user", "a", "--scope", "x"],
    ):
        assert cli(*arguments).returncode == 2


async def test_the_settings_are_listed_without_any_being_set(cli) -> None:
    done = cli("settings", DESKMATE_SECRET_FILE="")
    assert done.returncode == 0 and "| `DESKMATE_SECRET_FILE` | required |" in done.stdout
