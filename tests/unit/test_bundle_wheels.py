"""Wheels fetched with the real pip from the ordinary index, and installed from their folder alone. Knows no bundle."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import InstallFailed
from deploy.home import Home
from deploy.install import LOCKS, Environment, Lock
from deploy.lock import entries, name_of, names
from deploy.wheels import batches, bundle_locks, fetch, fits, wanted

SMALL, OTHER = "iniconfig", "pluggy"
NOWHERE = "http://127.0.0.1:9/simple"
MACHINE = platform.machine()


def entry(lock: str, package: str) -> str:
    return next(one for one in entries((LOCKS / lock).read_text()) if name_of(one) == package)


@pytest.fixture
def without_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Whoever asks an index is refused at once, whatever is configured here."""
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("PIP_RETRIES", "UV_HTTP_RETRIES"):
        monkeypatch.setenv(name, "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_INDEX", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return monkeypatch


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of two small packages and of uv, fetched once, in a folder with a comma and a blank."""
    folder = tmp_path_factory.mktemp("stock") / "Räder, alle"
    lock = folder.with_name("lock.txt")
    lock.write_text("# a remark\n" + entry("dev.txt", SMALL) + entry("dev.txt", OTHER))
    fetch([lock, LOCKS / "uv.txt"], folder, Path(sys.executable), print)
    return folder


def test_wheels_that_are_there_are_not_asked_for_again_and_a_broken_one_is(
    stock: Path, without_index: pytest.MonkeyPatch, tmp_path: Path
):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for wheel in stock.glob("*.whl"):
        (folder / wheel.name).write_bytes(wheel.read_bytes())
    left_over = folder / ".fetch-killed"
    left_over.mkdir()
    lock = stock.with_name("lock.txt")

    said: list[str] = []
    found = fetch([lock], folder, Path(sys.executable), said.append)
    assert [wheel.name.split("-")[0] for wheel in found] == [SMALL, OTHER]
    assert said == []
    assert not left_over.exists()

    found[0].write_bytes(b"half a wheel")
    with pytest.raises(InstallFailed, match=rf"(?s)cannot fetch the wheels of {SMALL}==.*index settings"):
        fetch([lock], folder, Path(sys.executable), said.append)
    assert found[1].exists()
    without_index.undo()
    fetch([lock], folder, Path(sys.executable), said.append)
    assert found[0].read_bytes() == (stock / found[0].name).read_bytes()


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_an_environment_is_made_from_the_folder_alone_and_what_it_lacks_is_named(
    stock: Path, without_index: pytest.MonkeyPatch, tmp_path: Path, installer: str
):
    uv_lock = LOCKS / "uv.txt"
    if installer == "pip":
        uv_lock = tmp_path / "uv.txt"
        uv_lock.write_text("uv==0.0.0 --hash=sha256:" + "0" * 64)
    home, lock = Home(tmp_path / "var, ü"), Lock("small", stock.with_name("lock.txt"))
    environment = Environment(home, print, uv_lock, wheels=stock)
    environment.ensure(lock)
    assert subprocess.run([home.python, "-c", f"import {SMALL}, {OTHER}"], check=False).returncode == 0
    assert (home.env / "bin" / "uv").exists() == (installer == "uv")

    missing = Lock("cpu", tmp_path / "cpu.txt")  # the lock for which PyTorch's own index is asked otherwise
    missing.file.write_text("no-such-package-of-ours==1.0 --hash=sha256:" + "0" * 64)
    with pytest.raises(InstallFailed, match=r"(?s)cpu\.txt from the bundle's wheels in .*no-such-package-of-ours"):
        environment.ensure(lock, missing)


@pytest.mark.parametrize(
    ("wheel", "fitting"),
    [
        ("a-1.0-py3-none-any.whl", True),
        ("a-1.0-py2.py3-none-any.whl", True),
        ("a-1.0-py37-none-any.whl", True),
        ("a-1.0-py312-none-any.whl", False),
        (f"a-1.0-1-cp311-cp311-manylinux_2_28_{MACHINE}.whl", True),
        (f"a-1.0-cp38-abi3-manylinux_2_17_{MACHINE}.manylinux2014_{MACHINE}.whl", True),
        (f"a-1.0-cp312-abi3-manylinux_2_28_{MACHINE}.whl", False),
        (f"a-1.0-cp310-cp310-manylinux_2_28_{MACHINE}.whl", False),
        ("a-1.0-cp311-cp311-manylinux_2_28_riscv64.whl", False),
        ("a-1.0-py2-none-any.whl", False),
    ],
)
def test_a_wheel_for_another_python_or_machine_does_not_pass_for_ours(wheel: str, fitting: bool):
    assert fits(wheel, "3.11") is fitting


def test_a_local_version_is_fetched_alone_because_only_pytorchs_own_index_may_have_it():
    parts = [batch for _, batch in batches(wanted([LOCKS / "cpu.txt"]))]
    alone = [batch[0].requirement for batch in parts if len(batch) == 1]
    assert any(requirement.startswith("torch==") and "+cpu" in requirement for requirement in alone)
    assert sum(map(len, parts)) == len(wanted([LOCKS / "cpu.txt"]))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_gateways_own_lock_has_the_pins_of_the_whole_and_what_python_before_3_11_3_needs(kind: str):
    whole = {package.requirement for package in wanted([LOCKS / f"{kind}.txt"])}
    own = {package.requirement for package in wanted([LOCKS / "gateway.txt"])}
    assert own <= whole
    assert "async-timeout" in names((LOCKS / "gateway.txt").read_text())
    assert {"uv", "cyclonedx-bom"} <= names((LOCKS / "image.txt").read_text())
    assert [lock.name for lock in bundle_locks(kind)] == [f"{kind}.txt", "gateway.txt", "uv.txt", "image.txt"]
