"""Every call of the official JavaScript SDKs that applies, under Node, against a running stack; their table is true.

One Node process makes all of them (javascript/calls.mjs) and says how each went. The SDKs come from the npm registry,
by version and hash, into a folder that is kept. Where node, npm or the registry is not there these tests skip.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs import blocks
from tests.fake_worker import FakeWorker
from tests.flow import javascript_calls
from tests.flow.javascript_calls import CALLS, FOLDER, LOCK, REFUSED, WORKS
from tests.gateway_process import GatewayProcess
from tests.servers import missing

OLDEST_NODE = 20
WITHIN_SECONDS = 120  # five on a machine at rest
COMPLETE = "no call is left out"
# What npm says where its registry cannot be reached; whatever else goes wrong is a failure.
UNREACHABLE = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)\b")

How = Mapping[str, str | None]


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node") or missing("node (apt install nodejs)")
    version = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        missing(f"node {OLDEST_NODE} or newer (it is {version.strip()})")
    return found


@pytest.fixture(scope="module")
def installed(node: str) -> Path:
    """A folder with the SDKs of the lock and the calls."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "deskmate-javascript" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        install(folder)
    return folder


def install(folder: Path) -> None:
    """All or nothing: a folder of that name is whole."""
    npm = shutil.which("npm") or missing("npm (apt install npm)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as new:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / name, new)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(command, cwd=new, check=False, capture_output=True, text=True)
        if done.returncode and UNREACHABLE.search(done.stderr):
            missing(f"registry of npm: {done.stderr[:500]}")
        assert done.returncode == 0, done.stderr
        shutil.copytree(new, folder, symlinks=True)


@pytest.fixture(scope="module")
def how(node: str, installed: Path, shared_gateway: GatewayProcess, shared_worker: FakeWorker) -> How:
    """How each call went: None, or what went wrong."""
    key = asyncio.run(shared_gateway.key("javascript"))
    asyncio.run(shared_gateway.until_ready())
    calls = shutil.copy(CALLS, installed)
    command = [node, str(calls), shared_gateway.url, key, shared_worker.url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WITHIN_SECONDS)
    assert done.returncode == 0, done.stderr
    return {told["name"]: told["error"] for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", WORKS)
def test_a_call_of_an_official_javascript_sdk_works(how: How, name: str) -> None:
    assert how[name] is None, how[name]


def test_what_is_not_offered_is_refused_by_a_typed_error_there_too(how: How) -> None:
    assert {name: how[name] for name in REFUSED} == dict.fromkeys(REFUSED)


def test_no_call_of_the_javascript_sdks_is_left_out(how: How) -> None:
    assert how[COMPLETE] is None, how[COMPLETE]
    assert set(how) == {*WORKS, *REFUSED, COMPLETE}


def test_the_table_of_javascript_in_the_docs_is_the_list_of_calls() -> None:
    page = blocks.read(javascript_calls.PAGE, javascript_calls.BLOCK)
    assert page == javascript_calls.shown(), "run `python -m tests.flow.javascript_calls`"


def test_the_javascript_sdks_are_pinned_by_hash_and_without_addresses() -> None:
    packages = json.loads(LOCK.read_text())["packages"]
    assert packages.pop("")["dependencies"] == json.loads((FOLDER / "package.json").read_text())["dependencies"]
    assert all(package["version"] and package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
