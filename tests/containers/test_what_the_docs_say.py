"""What docs/administrator.md says of containers, typed as it stands. The last file of this folder: it ends the stack.

A card is replaced by processors, the address by the test's own.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping

import pytest
from openai import OpenAI

from tests.containers.engine import Engine
from tests.containers.stack import Stack
from tests.docs.commands import commands


def follows(stack: Stack, name: str, changes: Mapping[str, object] | None = None) -> str:
    """What the commands of that name print."""
    done = stack.types(commands(name, changes))
    assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"
    return done.stdout


def conversations(stack: Stack, key: str) -> list[str]:
    with stack.client(key) as client:
        return [one["id"] for one in client.get("/conversations", cast_to=object)["data"]]  # type: ignore[index]


def test_started_again_nothing_is_lost(stack: Stack, key: str):
    before = conversations(stack, key)
    assert "gateway" in follows(stack, "compose-up")
    assert conversations(stack, key) == before


def test_logs_links_and_keys_come_from_the_gateway(stack: Stack):
    assert "gateway" in follows(stack, "compose-logs")
    link, key = follows(stack, "compose-people").split()
    assert link.startswith(f"{stack.url}/#link=")
    with stack.client(key) as client:
        assert client.models.list().data


def test_a_backup_comes_back_on_a_machine_that_had_made_a_secret_of_its_own(stack: Stack, key: str, client: OpenAI):
    conversation = client.conversations.create(metadata={"topic": "soup"}).id
    follows(stack, "compose-backup")
    assert (stack.checkout / "deskmate.backup").stat().st_mode & 0o777 == 0o600
    client.conversations.delete(conversation)
    file = stack.checkout / "compose" / "secrets" / "gateway_secret"
    owner, secret = file.stat(), file.read_text()
    file.write_text(secrets.token_urlsafe(48))

    follows(stack, "compose-restore")
    assert file.read_text().strip() == secret.strip()
    assert (file.stat().st_uid, file.stat().st_mode) == (owner.st_uid, owner.st_mode)
    assert conversation in conversations(stack, key)
    assert not (stack.checkout / "secret.restored").exists()


def test_an_upgrade_builds_and_starts_what_changed(stack: Stack, key: str, client: OpenAI):
    conversation = client.conversations.create().id
    page = stack.checkout / "gateway" / "web" / "index.html"
    page.write_text(page.read_text() + "<!-- the next release -->\n")
    follows(stack, "compose-upgrade", stack.differences)
    assert "the next release" in stack.execute("gateway", "cat", "/app/gateway/web/index.html").stdout
    assert conversation in conversations(stack, key)


@pytest.fixture
def kept(stack: Stack, engine: Engine) -> Iterator[list[str]]:
    """The images under second names, so that what the next run builds on stays."""
    found = re.findall(r"^deskmate-\S+$", stack.compose("config", "--images").stdout, re.MULTILINE)
    for image in found:
        engine.docker("tag", image, f"{image}-kept")
    yield found
    for image in found:
        engine.docker("tag", f"{image}-kept", image)
        engine.docker("image", "rm", f"{image}-kept")


def test_removed_it_leaves_neither_container_nor_image_nor_data(stack: Stack, engine: Engine, kept: list[str]):
    follows(stack, "compose-remove")
    listed = engine.docker("ps", "--all", "--format", "{{json .Labels}}").stdout.splitlines()
    assert not [line for line in listed if stack.project in json.loads(line)]
    assert all(engine.docker("image", "inspect", image, check=False).returncode for image in kept)
    assert not (stack.checkout / "compose").exists()
