"""The container engine that the tests find: its images, its network. Knows nothing of Deskmate."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

STANDINS = Path(__file__).with_name("standins")
# Debian packages of the two bases, and which upstream tags are made of them.
BASES = {
    "deskmate-standin-python": ("ca-certificates", "python3-venv", "libnuma1", "busybox"),
    "deskmate-standin-services": ("redis-server", "prometheus", "prometheus-node-exporter", "busybox"),
}
UPSTREAM = {
    "python": ("python:3.11.14-slim-bookworm", "python:3.11.14-bookworm"),
    "services": ("redis:8.2.1-bookworm", "prom/prometheus:v3.5.0", "prom/node-exporter:v1.9.1"),
    "grafana": ("grafana/grafana:12.1.1",),
}
MARK = "deskmate.standin"  # label of what is not the upstream image
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def required() -> bool:
    """Set where the engine is the tests' own: then a skip is a failure, and stand-ins may bear upstream names."""
    return os.environ.get("DESKMATE_CONTAINERS") == "required"


def unable(reason: str) -> NoReturn:
    (pytest.fail if required() else pytest.skip)(f"no containers: {reason}")


class Engine:
    """What `docker` speaks to. A published port exists in its network namespace, which need not be ours."""

    def __init__(self) -> None:
        if shutil.which("docker") is None:
            unable("`docker` is not installed")
        for words in (("info",), ("compose", "version")):
            done = self.docker(*words, check=False)
            if done.returncode or "ERROR:" in done.stderr:
                unable(f"`docker {' '.join(words)}` failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
        self._namespace = namespace_of(os.environ.get("DOCKER_HOST", ""))

    def docker(self, *words: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done

    @property
    def has_own_network(self) -> bool:
        return self._namespace is not None

    @contextmanager
    def network(self) -> Iterator[None]:
        """What this thread opens meanwhile is opened where the engine's ports are."""
        with inside(self._namespace or Path("/proc/thread-self/ns/net")):
            yield

    def bring_images(self) -> None:
        """The upstream images: those that are there, else stand-ins made of Debian packages."""
        wanted = digest_of_standins()
        for name, tags in UPSTREAM.items():
            if not all(self._usable(tag, wanted) for tag in tags):
                self._make_standin(name, tags, wanted)

    def _usable(self, tag: str, wanted: str) -> bool:
        """The upstream image itself, or our stand-in of today."""
        done = self.docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{MARK}"}}}}', tag, check=False)
        return done.returncode == 0 and done.stdout.strip() in ("", wanted)

    def _make_standin(self, name: str, tags: tuple[str, ...], wanted: str) -> None:
        if not required():
            unable(f"the image {tags[0]} is not there; `docker pull` it")
        if (base := f"deskmate-standin-{name}") in BASES:
            self._make_base(base)
        names = [word for tag in tags for word in ("--tag", tag)]
        file = STANDINS / f"{name}.Dockerfile"
        self.docker("build", "--quiet", "--label", f"{MARK}={wanted}", *names, "--file", str(file), str(STANDINS))

    def _make_base(self, name: str) -> None:
        packages = ",".join(BASES[name])
        made_of = self.docker("image", "inspect", "--format", '{{index .Config.Labels "packages"}}', name, check=False)
        if made_of.stdout.strip() == packages:
            return
        if shutil.which("mmdebstrap") is None:
            unable("`mmdebstrap`, which makes stand-ins for upstream images, is not installed")
        clean = 'rm -rf "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man'
        make = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={packages}", f"--customize-hook={clean}"]
        with subprocess.Popen([*make, "bookworm", "-", mirror()], stdout=subprocess.PIPE) as packing:
            self.docker("import", "--change", f'LABEL packages="{packages}"', "-", name, stdin=packing.stdout)
        assert packing.returncode == 0, "mmdebstrap failed; see above"


def mirror() -> str:
    """The archive that this machine's own Debian uses."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"], capture_output=True, text=True, check=True
    )
    return next(line.split()[0] for line in listing.stdout.splitlines() if line.endswith(" bookworm"))


def digest_of_standins() -> str:
    digest = hashlib.sha256(repr((BASES, UPSTREAM)).encode())
    for file in sorted(STANDINS.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def namespace_of(host: str) -> Path | None:
    """The network of the engine behind a Unix socket, told by the pid file beside it; None where it is our own."""
    pid = Path(host.removeprefix("unix://")).with_name("pid") if host.startswith("unix://") else None
    if pid is None or not pid.is_file():
        return None
    found = Path(f"/proc/{pid.read_text().strip()}/ns/net")
    return found if found.readlink() != Path("/proc/self/ns/net").readlink() else None


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread in another network namespace, and back."""
    with Path("/proc/thread-self/ns/net").open() as own, namespace.open() as other:
        enter(other.fileno())
        try:
            yield
        finally:
            enter(own.fileno())


def enter(descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
