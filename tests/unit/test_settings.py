"""Settings name what is wrong with them, and never show a value."""

from dataclasses import fields
from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsError, table, variable

REQUIRED = {"DESKMATE_REDIS_URL": "unix:///run/redis.sock?db=0", "DESKMATE_SECRET_FILE": "/run/secret"}


def test_what_is_set_is_read_with_its_type_and_the_rest_has_its_default() -> None:
    settings = Settings.from_environment(
        REQUIRED
        | {
            "DESKMATE_PORT": "9000",
            "DESKMATE_TEMPERATURE": "0.2",
            "DESKMATE_TLS_CERT": "/cert.pem",
            "DESKMATE_WORKER_URLS": "unix:/w.sock, http://h:1 ,",
            "DESKMATE_TOP_P": "",
            "PATH": "/bin",
        }
    )
    assert (settings.port, settings.temperature, settings.tls_cert) == (9000, 0.2, Path("/cert.pem"))
    assert settings.worker_urls == ("unix:/w.sock", "http://h:1")
    assert settings.top_p is None and settings.host == "127.0.0.1" and settings.body_limit_bytes == 1 << 20


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_variable_is_named(name: str) -> None:
    for environment in ({k: v for k, v in REQUIRED.items() if k != name}, REQUIRED | {name: ""}):
        with pytest.raises(SettingsError, match=f"^{name} is missing: "):
            Settings.from_environment(environment)


@pytest.mark.parametrize("name", ["DESKMATE_PRT", "DESKMATE_", "DESKMATE_port", "DESKMATE_FROM_ENVIRONMENT"])
def test_an_unknown_variable_is_named_but_those_of_others_are_not_ours(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is not a setting"):
        Settings.from_environment(REQUIRED | {name: "canary"})
    Settings.from_environment(REQUIRED | {"DESKMATE_HOME": "/home", "OTHER": "x"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("DESKMATE_PORT", "a whole number"), ("DESKMATE_SEATS", "a whole number"), ("DESKMATE_DRAIN_SECONDS", "a number")],
)
@pytest.mark.parametrize("value", ["canary", "1canary", "0x10canary", "1,5canary", "1 canary"])
def test_a_malformed_variable_is_named_and_its_value_is_not_shown(name: str, kind: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be {kind}$") as refused:
        Settings.from_environment(REQUIRED | {name: value})
    assert "canary" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_the_table_lists_every_setting_once() -> None:
    rows = table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [variable(f) for f in fields(Settings)]
    assert all(row.count(" | ") == 2 and row.rstrip("| ").endswith((".", ")", "`")) for row in rows)
