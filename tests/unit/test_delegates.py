"""Whom a front end's header names, and where it may come from."""

import pytest
from starlette.requests import Request

from gateway.auth.delegates import Delegates
from gateway.errors import BadRequest, Forbidden, Refusal
from gateway.settings import Settings, SettingsError

HEADER = "X-OpenWebUI-User-Id"


def settings(**given: str) -> Settings:
    environment = {"DESKMATE_REDIS_URL": "unix:///unused", "DESKMATE_SECRET_FILE": "/unused"}
    given = {"delegate_header": HEADER} | given
    return Settings.from_environment(environment | {f"DESKMATE_{name.upper()}": text for name, text in given.items()})


def named(*values: bytes, host: str | None = "127.0.0.1", forwarded: bool = False, **given: str) -> str | None:
    headers = [(HEADER.lower().encode(), value) for value in values]
    client = (host, 1234) if host else None
    scope = {"type": "http", "headers": headers, "client": client, "state": {"forwarded": forwarded}}
    return Delegates(settings(**given)).named(Request(scope))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"0c7b3f3e-9d5c-4c67-8b3b-0c6f0f0b3a55", "0c7b3f3e-9d5c-4c67-8b3b-0c6f0f0b3a55"),
        (b"ann@example.org", "ann@example.org"),
        (b"a b", "a b"),
        ("Zoë".encode(), "Zoë"),
        ("Zoe\u0308".encode(), "Zoë"),
        (b"Zo%C3%AB", "Zo%C3%AB"),
        (b"x" * 128, "x" * 128),
    ],
)
def test_a_name_is_taken_to_the_letter(value: bytes, name: str) -> None:
    assert named(value) == name


@pytest.mark.parametrize(
    "values",
    [(), (b"",), (b"  ",), (b"{{LIBRECHAT_USER_ID}}",), (b"u-{{USER_ID}}",), (b"${USER}",)],
)
def test_no_header_an_empty_one_and_a_placeholder_name_nobody(values: tuple[bytes, ...]) -> None:
    assert named(*values) is None


@pytest.mark.parametrize(
    "values",
    [
        (b"Zo\xeb",), (b"ann", b"ann"), (b"ann", b"bob"), (b"", b"ann"), (b"x" * 129,), (b"a\tb",), (b"a\0b",),
        ("\u00a0ann".encode(), ), ("\u202ebob".encode(),), (b" ann",),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(values: tuple[bytes, ...]) -> None:
    with pytest.raises(BadRequest) as refused:
        named(*values)
    assert (refused.value.code, refused.value.param) == ("invalid_person", HEADER)


@pytest.mark.parametrize(
    ("host", "allowed", "taken"),
    [
        ("127.0.0.1", "", True),
        ("127.9.9.9", "", True),
        ("::1", "", True),
        ("::ffff:127.0.0.1", "", True),
        ("10.0.0.5", "", False),
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.6", "10.0.0.5", False),
        ("10.0.0.6", "192.168.0.0/16, 10.0.0.0/24", True),
        ("10.0.0.6", "10.0.0.5/24", True),
        ("::ffff:10.0.0.6", "10.0.0.0/24", True),
        ("2001:db8::7", "2001:db8::/64", True),
        ("2001:db8:0:1::7", "2001:db8::/64", False),
        ("127.0.0.1", "10.0.0.5", False),
        ("unknown", "0.0.0.0/0", False),
        (None, "0.0.0.0/0", False),
    ],
)
def test_a_person_is_named_from_allowed_addresses_only(host: str | None, allowed: str, taken: bool) -> None:
    try:
        assert named(b"ann", host=host, delegate_addresses=allowed) == "ann"
        assert taken
    except Forbidden as refusal:
        assert not taken and refusal.code == "address_not_allowed"
        assert host is None or host in refusal.message, "so that an administrator sees what to allow"


def test_behind_a_proxy_that_is_not_believed_nobody_is_named_for_nobodys_address_is_known() -> None:
    with pytest.raises(Forbidden, match="DESKMATE_TRUSTED_PROXIES"):
        named(b"ann", forwarded=True)
    assert named(b"ann", forwarded=True, trusted_proxies="10.0.0.1") == "ann", "the server has put the address right"


def test_why_nobody_is_named_is_said_with_what_to_do() -> None:
    def said(**given: str) -> Refusal:
        return Delegates(settings(**given)).nobody()

    assert said().code == said(delegate_header="").code == "no_person_named"
    assert HEADER in said().message and "DESKMATE_DELEGATE_HEADER" in said(delegate_header="").message


@pytest.mark.parametrize("text", ["300.0.0.1", "front.example.org", "10.0.0.0/33"])
def test_what_is_no_address_stops_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="DESKMATE_DELEGATE_ADDRESSES") as refused:
        Delegates(settings(delegate_addresses=text))
    assert text not in str(refused.value)
