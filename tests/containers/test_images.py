"""The images: what is in them and what is not. Built by the stack on an engine without a network."""

import json
import re
from typing import Any

import pytest

from tests.containers.engine import Engine
from tests.containers.stack import ROOT, VERSION, Stack

GATEWAY, WORKER = f"deskmate-gateway:{VERSION}", f"deskmate-worker:{VERSION}-cpu"
BASES = {GATEWAY: "python:3.11.14-slim-bookworm", WORKER: "python:3.11.14-bookworm"}
LOCKS = {GATEWAY: "gateway.txt", WORKER: "cpu.txt"}
LARGEST_GATEWAY_BYTES = 200_000_000
FIND = "from importlib.util import find_spec; found = lambda *names: [name for name in names if find_spec(name)]"
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(fault and str(fault))
"""

pytestmark = pytest.mark.usefixtures("stack")


def inspected(engine: Engine, image: str) -> dict[str, Any]:
    return json.loads(engine.docker("image", "inspect", image).stdout)[0]  # type: ignore[no-any-return]


def run(engine: Engine, image: str, *words: str, check: bool = True, **options: object) -> str:
    how = ("--interactive",) if "input" in options else ()  # an input that is none could end it early
    command = ("run", "--rm", *how, "--network", "none", "--entrypoint", words[0], image, *words[1:])
    return engine.docker(*command, check=check, **options).stdout


@pytest.fixture(scope="module")
def tools(engine: Engine, stack: Stack) -> str:
    """The build's own stage, in which the validator is."""
    recipe = ("--file", "deploy/gateway.Dockerfile", "--target", "tools", "--network", "none", ".")
    return engine.docker("build", "--quiet", *recipe, cwd=stack.checkout).stdout.strip()


def bill_of(engine: Engine, image: str) -> str:
    return run(engine, image, "cat", "/usr/share/deskmate/sbom.cdx.json")


def test_the_gateway_is_small(engine: Engine):
    added = inspected(engine, GATEWAY)["Size"] - inspected(engine, BASES[GATEWAY])["Size"]
    print(f"gateway: {added / 1e6:.0f} MB over its base")
    assert 0 < added <= LARGEST_GATEWAY_BYTES


@pytest.mark.parametrize("image", [GATEWAY, WORKER])
def test_an_image_says_what_it_is_and_runs_as_nobodys_root(engine: Engine, image: str):
    config = inspected(engine, image)["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.base.name"] == f"docker.io/library/{BASES[image]}"
    assert labels["org.opencontainers.image.title"].startswith("Deskmate ")
    assert int(config["User"].partition(":")[0]) > 10000
    assert not any("SECRET" in variable or "PASSWORD" in variable for variable in config["Env"])


@pytest.mark.parametrize("image", [GATEWAY, WORKER])
def test_nothing_that_installs_is_left_in_it(engine: Engine, image: str):
    """Of what the build mounted, the empty mount points."""
    assert run(engine, image, "sh", "-c", "command -v pip pip3 uv cyclonedx-py; true") == ""
    assert run(engine, image, "find", "/tools", "/wheels", "/locks", "-mindepth", "1") == ""
    for python in ("/opt/deskmate/bin/python", "/usr/local/bin/python"):
        assert run(engine, image, python, "-c", f"{FIND}; print(found('pip', 'uv', 'cyclonedx'))").strip() == "[]"


def test_the_gateway_holds_neither_engine_nor_compiler(engine: Engine):
    assert run(engine, GATEWAY, "sh", "-c", "command -v cc gcc g++ clang ld as make; true") == ""
    modules = f"{FIND}; print(found('torch', 'vllm', 'transformers', 'numpy', 'msgspec'))"
    assert run(engine, GATEWAY, "python", "-c", modules).strip() == "['msgspec']"
    assert run(engine, GATEWAY, "ls", "/app").split() == ["gateway"]


def test_the_bill_of_materials_is_valid_cyclonedx(engine: Engine, tools: str):
    """The gateway's; the worker's is made by the same words, and ten times as long to validate."""
    run(engine, tools, "/tools/bin/python", "-c", VALIDATE, input=bill_of(engine, GATEWAY))


@pytest.mark.parametrize("image", [GATEWAY, WORKER])
def test_the_bill_of_materials_names_every_locked_package_and_no_other(engine: Engine, image: str):
    locked = re.findall(r"^(\S+?)==(\S+)", (ROOT / "deploy" / "locks" / LOCKS[image]).read_text(), re.MULTILINE)
    listed = {(named(part["name"]), part["version"]) for part in json.loads(bill_of(engine, image))["components"]}
    assert listed == {(named(name), version) for name, version in locked}


def named(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
