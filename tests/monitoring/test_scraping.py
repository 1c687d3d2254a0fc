"""Who may read the metrics, and what is in them when Redis tells little or nothing."""

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deploy.acl import GATEWAY_USER
from gateway.auth.principal import Scope
from gateway.auth.secret import SecretError, read_secret
from gateway.metrics import Metrics
from tests.gateway_process import ROOT, SECRET, GatewayProcess

PATHS = ("/metrics", "/metrics/worker")


def status(gateway: GatewayProcess, path: str, authorization: str | None = None, **headers: str) -> int:
    """Asked as if through a proxy, unless told otherwise: then loopback counts for nothing."""
    headers = headers or {"x-real-ip": "192.0.2.1"}
    if authorization is not None:
        headers["authorization"] = authorization
    request = urllib.request.Request(f"{gateway.url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:  # else its socket is left to the garbage collector
            return error.code


@pytest.mark.parametrize("path", PATHS)
async def test_the_token_reads_the_metrics_from_another_machine(gateway, path, token):
    await gateway.until_ready()
    assert status(gateway, path, f"Bearer {token}") == 200
    assert status(gateway, path, f"bearer  {token}") == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "shown", [None, "Bearer", "Bearer {short}", "Bearer {token}x", "Basic {token}", "{token}", "Bearer \u00e9" * 9]
)
async def test_nothing_but_the_token_does(gateway, path, shown, token):
    assert status(gateway, path, shown and shown.format(token=token, short=token[:-1])) == 401


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_does_so_only_with_the_scope(gateway, path):
    await gateway.until_ready()
    assert status(gateway, path, f"Bearer {await gateway.key('prometheus', frozenset({Scope.METRICS}))}") == 200
    assert status(gateway, path, f"Bearer {await gateway.key('ann')}") == 403


@pytest.mark.parametrize("path", PATHS)
async def test_a_scraper_on_the_same_machine_shows_nothing_and_may_show_anything(gateway, path):
    await gateway.until_ready()
    assert status(gateway, path, accept="text/plain") == 200
    assert status(gateway, path, "Bearer something-else", accept="text/plain") == 200


async def test_the_token_opens_nothing_else(gateway, token):
    for path in ("/v1/models", "/v1/conversations/none", "/admin/users"):
        assert status(gateway, path, f"Bearer {token}") == 401


def test_a_token_that_is_none_stops_the_start_and_is_named(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "token").write_text("too-short-for-a-token\n")
    environment = {
        "DESKMATE_REDIS_URL": "unix:///nowhere/s",
        "DESKMATE_SECRET_FILE": str(tmp_path / "secret"),
        "DESKMATE_METRICS_TOKEN_FILE": str(tmp_path / "token"),
    }
    command = [sys.executable, "-m", "gateway", "serve"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20)
    reason = "the secret has 21 bytes, at least 32 are needed"
    assert done.returncode == 78
    assert done.stderr == f"gateway: DESKMATE_METRICS_TOKEN_FILE: {tmp_path / 'token'}: {reason}\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "the secret has 0 bytes, at least 32 are needed"),
        (b" \n" * 40, "the secret has 0 bytes, at least 32 are needed"),
        (b"x" * 31, "the secret has 31 bytes, at least 32 are needed"),
    ],
    ids=["missing", "empty", "blank", "short"],
)
def test_a_file_that_holds_no_secret_is_refused_by_name(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SecretError) as refused:
        read_secret("DESKMATE_METRICS_TOKEN_FILE", file)
    assert str(refused.value) == f"DESKMATE_METRICS_TOKEN_FILE: {file}: {reason}"


# what Redis tells ----------------------------------------------------------------------------------------------------


def scraped(gateway: GatewayProcess) -> dict[str, float]:
    """The metrics without labels, and those of Redis' part."""
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {name: float(value) for name, value in re.findall(r'^(deskmate_\w+(?:{part="redis"})?) (\S+)$', text, re.M)}


def of_redis(metrics: dict[str, float]) -> set[str]:
    return {name for name in metrics if name.startswith("deskmate_redis_")}


def scraped_with_redis(gateway: GatewayProcess) -> dict[str, float]:
    """The first scrape in which Redis answered in time; a busy machine may need a second one."""
    deadline = time.monotonic() + 15
    while not of_redis(shown := scraped(gateway)):
        assert time.monotonic() < deadline, "Redis told nothing for 15 s"
    return shown


def listed() -> set[str]:
    return set(re.findall(r"`(deskmate_redis_\w+)`", Metrics("0").table()))


async def test_what_redis_tells_of_itself_is_shown(gateway, redis):
    await gateway.until_ready()
    redis.admin("CONFIG", "SET", "maxmemory", 100 << 20)
    shown = scraped_with_redis(gateway)
    assert of_redis(shown) == listed()
    assert shown["deskmate_redis_memory_limit_bytes"] == 100 << 20
    assert 0 < shown["deskmate_redis_memory_used_bytes"] < 100 << 20
    assert shown["deskmate_redis_connected_clients"] >= 1
    assert shown["deskmate_redis_aof_enabled"] == shown["deskmate_redis_aof_last_write_ok"] == 1
    assert 0 < shown["deskmate_redis_answer_seconds"] < 1
    assert scraped_with_redis(gateway)["deskmate_redis_commands_total"] > shown["deskmate_redis_commands_total"]


async def test_the_gateways_few_rights_are_enough_and_without_info_it_is_up_and_tells_nothing(gateway, redis):
    await gateway.until_ready()
    assert of_redis(scraped_with_redis(gateway)) == listed()
    redis.admin("ACL", "SETUSER", GATEWAY_USER, "-info")
    try:
        shown = scraped(gateway)
        assert of_redis(shown) == set() and shown['deskmate_up{part="redis"}'] == 1
    finally:
        redis.admin("ACL", "SETUSER", GATEWAY_USER, "+info")


async def test_a_redis_that_does_not_answer_holds_no_scrape_up_and_leaves_no_old_numbers(gateway, redis):
    await gateway.until_ready()
    scraped_with_redis(gateway)
    redis.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        shown = scraped(gateway)
        assert time.monotonic() - began < 4
        assert of_redis(shown) == set() and shown['deskmate_up{part="redis"}'] == 0
    finally:
        redis.process.send_signal(signal.SIGCONT)
    assert of_redis(scraped_with_redis(gateway)) == listed()


def refusals(gateway: GatewayProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=10) as response:
        found = re.findall(r'^deskmate_refusals_total{code="(\w+)"} (\S+)', response.read().decode(), re.M)
    return {code: float(count) for code, count in found}


async def test_a_scrape_of_a_worker_that_is_away_is_no_refusal_that_people_saw(gateway, worker):
    await gateway.until_ready()
    before = refusals(gateway)
    worker.stop()
    try:
        assert status(gateway, "/metrics/worker", accept="text/plain") == 503
    finally:
        worker.start()
    assert refusals(gateway)["engine_lost"] == before["engine_lost"]
    assert status(gateway, "/metrics", "Bearer not-the-token") == 401
    assert refusals(gateway)["invalid_api_key"] == before.get("invalid_api_key", 0) + 1


def test_what_alerts_and_panels_wait_for_is_there_before_it_happens():
    """A counter that appears with its first event has not grown, to Prometheus: the event would be missed."""
    fresh = Metrics("0").render().decode()
    files = [*(ROOT / "monitoring" / "rules").glob("*.yml"), *(ROOT / "monitoring/grafana/dashboards").glob("*.json")]
    named = set(re.findall(r'(code|outcome)=\\?"(\w+)', "".join(file.read_text() for file in files)))
    assert {("code", "storage_full"), ("outcome", "failed")} <= named
    for label, value in named:
        assert re.search(rf'^deskmate_(requests|refusals)_total{{.*{label}="{value}".*}} 0\.0$', fresh, re.M), value
    assert 'deskmate_first_token_seconds_count{route="responses"} 0.0' in fresh
