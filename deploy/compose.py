"""`./deskmate compose-init`: prepares docker-compose.yml for this machine: secrets, folders, wheels, a model, .env.

Starts nothing and asks no container engine. Run again, it keeps secrets, data and what a person wrote into .env.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from deploy import acl, unbundle
from deploy.bundle import MODELS, WHEELS, Manifest, version_of
from deploy.errors import BadConfiguration, Refusal, UsageError
from deploy.home import Home, secret, write_private
from deploy.install import LOCKS, Environment, runtime_lock
from deploy.redis import memory_limit_bytes, total_memory_bytes
from deploy.wheels import PYTHON, downloader, fetch

# Each service is a person of its own: what one can read, no other can. Without root all of them are whoever calls.
SERVICES = {"gateway": 10001, "worker": 10002, "redis": 10003, "prometheus": 10004, "grafana": 10005,
            "node_exporter": 10006}  # fmt: skip
STORES = ("redis", "prometheus", "grafana", "worker")  # those that keep something
READ_BY_SERVICES = ("deploy/compose", "monitoring")  # mounted into containers as they are
PROFILES = {"cpu": "cpu", "cuda": "gpu"}
MEBIBYTE = 1 << 20
OTHERS_BYTES = 3 << 30  # gateway, Prometheus, Grafana and the machine itself
OPEN_TO_ALL = 0o444
READ_MODEL = "import sys, pathlib, worker.model; worker.model.read_model(pathlib.Path(sys.argv[1]))"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    accelerator: str  # cpu or cuda
    public_url: str
    model: Path | None
    bundle: Path | None
    digest: str | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Wishes:
        """Refuses what cannot work, before anything is made."""
        model = options.model.absolute() if options.model else None
        wishes = cls(options.accelerator, options.public_url, model, options.bundle, options.bundle_digest)
        refuse_nonsense(wishes)
        return wishes


@dataclass(frozen=True)
class Account:
    """Who a service runs as."""

    user: int
    group: int

    def __str__(self) -> str:
        return f"{self.user}:{self.group}"

    def owns(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.user, self.group)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kind = parser.add_mutually_exclusive_group(required=True)
    for name, value in (("cpu", "cpu"), ("gpu", "cuda")):
        kind.add_argument(
            f"--{name}", dest="accelerator", action="store_const", const=value, help=f"serve on the {name}"
        )
    add("--public-url", metavar="URL", required=True, help="address that people type, e.g. https://chat.example.org")
    add("--model", type=Path, metavar="DIR", help="serve this model directory instead of the demo model")
    add("--bundle", type=Path, metavar="FILE", help="take wheels and model from this bundle; no network is asked")
    add("--bundle-digest", metavar="DIGEST", help="refuse a bundle with another digest than `bundle` told")


def refuse_nonsense(wishes: Wishes) -> None:
    try:
        url = urlsplit(wishes.public_url)
        usable = url.scheme in ("http", "https") and url.hostname
    except ValueError:
        usable = None
    if not usable:
        raise UsageError(f"--public-url {wishes.public_url} is no address; give one like https://chat.example.org")
    if wishes.digest and not wishes.bundle:
        raise UsageError("--bundle-digest says what --bundle must be; give --bundle too")
    if wishes.bundle and not wishes.bundle.is_file():
        raise BadConfiguration(f"--bundle {wishes.bundle} is not a file; `./deskmate bundle` makes one")


def prepare(root: Path, home: Home, wishes: Wishes, say: Say) -> None:
    place, accounts = root / "compose", accounts_of(os.geteuid(), os.getegid())
    try:
        bundled = unpacked(wishes, place / "bundle", say) if wishes.bundle else None
        named = wishes.model or model_in(bundled) or model_served(root / ".env")
        if named:
            refuse_bad_model(root, named)
        bring_wheels(place / "wheels", home, wishes.accelerator, bundled, say)
        model = named or demo_model(root, home, bundled, say)
        open_to_services(root)
        make_stores(place / "data", accounts)
        make_secrets(place / "secrets", accounts)
        write_settings(root / ".env", settings_of(root, wishes, model, accounts))
    except PermissionError as error:
        raise Refusal(f"cannot change {error.filename}: it belongs to another user; run this as before") from None
    tell(root, model, wishes, say)


def accounts_of(user: int, group: int) -> dict[str, Account]:
    return {name: Account(own, own) if user == 0 else Account(user, group) for name, own in SERVICES.items()}


# -- wheels and model ----------------------------------------------------------------------------------------------


def unpacked(wishes: Wishes, folder: Path, say: Say) -> Path:
    """The bundle's wheels and model, every hash compared."""
    assert wishes.bundle
    folder.parent.mkdir(exist_ok=True)
    with unbundle.opened(wishes.bundle) as source:
        unbundle.refuse_digest(source, wishes.digest)
        unbundle.unpack(source, folder, partial(refuse_other_bundle, wishes.accelerator), say)
    return folder


def refuse_other_bundle(accelerator: str, path: Path, manifest: Manifest) -> None:
    """The images bring their own Python: this machine's does not matter."""
    unbundle.refuse_other_locks(path, manifest)
    if manifest.accelerator != accelerator:
        unbundle.refuse(path, f"it is for {unbundle.MACHINES[manifest.accelerator]}, and this is about another")


def bring_wheels(folder: Path, home: Home, accelerator: str, bundled: Path | None, say: Say) -> None:
    """One folder an image, so that building one does not read the other's gigabytes. A bundle has all of them."""
    with nullcontext(Path(sys.executable)) if bundled else downloader(home, say) as python:
        stock = bundled / WHEELS if bundled else home.cache / "wheels"
        for image, lock in (("gateway", "gateway"), ("worker", accelerator)):
            wheels = fetch([LOCKS / f"{name}.txt" for name in (lock, "image")], stock, python, say, PYTHON)
            fill(folder / image, wheels)


def fill(folder: Path, wheels: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for wheel in wheels:
        try:
            os.link(wheel, folder / wheel.name)
        except OSError:  # another disk
            shutil.copyfile(wheel, folder / wheel.name)


def model_in(bundled: Path | None) -> Path | None:
    return next((bundled / MODELS).glob("*"), None) if bundled else None


def model_served(settings: Path) -> Path | None:
    """The one of the last call: preparing again does not change what is served."""
    lines = settings.read_text().splitlines() if settings.exists() else []
    return next((Path(line.split("'")[1]) for line in lines if line.startswith("DESKMATE_MODEL_DIR='")), None)


def demo_model(root: Path, home: Home, bundled: Path | None, say: Say) -> Path:
    """Converted by the worker's own code, which needs the whole environment on this machine once."""
    folder = root / "compose" / "models" / home.demo_model.name
    Environment(home, say, wheels=bundled / WHEELS if bundled else None).ensure(runtime_lock())
    say(f"Converting the demo model into {folder}")
    done = run_python(home.python, root, "-m", "worker.demo", str(folder))
    if done.returncode:
        raise Refusal(f"cannot convert the demo model: {done.stderr.strip()}")
    return folder


def refuse_bad_model(root: Path, model: Path) -> None:
    """What the worker would refuse, or could not read, is refused here: in a container it would be tried for ever."""
    done = run_python(Path(sys.executable), root, "-c", READ_MODEL, str(model))
    if done.returncode:
        raise BadConfiguration(done.stderr.strip().splitlines()[-1].partition(": ")[2])
    if os.geteuid() == 0:
        refuse_closed(model)


def run_python(python: Path, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *words], cwd=root, capture_output=True, text=True, check=False)


def refuse_closed(model: Path) -> None:
    """The worker runs as a user of its own: what is closed to others is closed to it."""
    for path in (model, *model.rglob("*")):
        if not path.stat().st_mode & 0o004:
            raise BadConfiguration(f"the worker's user cannot read {path}: chmod -R o+rX {shlex.quote(str(model))}")


# -- files ---------------------------------------------------------------------------------------------------------


def open_to_services(root: Path) -> None:
    """A checkout under a strict umask is closed to the services' users; none of these files is secret."""
    for top in READ_BY_SERVICES:
        for path in (root / top, *(root / top).rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | OPEN_TO_ALL | (0o111 if path.is_dir() else 0))


def make_stores(folder: Path, accounts: dict[str, Account]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in STORES:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
        (folder / name).chmod(0o700)
        accounts[name].owns(folder / name)


def make_secrets(folder: Path, accounts: dict[str, Account]) -> None:
    """Each is made once. What two services need is there twice, since each file has one owner."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("gateway_secret", "redis_password", "gateway_metrics_token", "grafana_admin_password"):
        secret(folder / name)
    write_private(folder / "redis_users", acl.users(secret(folder / "redis_password")))
    write_private(folder / "prometheus_metrics_token", secret(folder / "gateway_metrics_token"))
    for file in folder.iterdir():
        if owner := accounts.get("gateway" if file.name == "redis_password" else file.name.partition("_")[0]):
            owner.owns(file)


# -- .env ----------------------------------------------------------------------------------------------------------


def settings_of(root: Path, wishes: Wishes, model: Path, accounts: dict[str, Account]) -> dict[str, str]:
    """What docker-compose.yml asks for. The first ones are this machine's, a person may change them and they stay."""
    return {
        **memory_limits(total_memory_bytes()),
        "COMPOSE_PROFILES": PROFILES[wishes.accelerator],
        "DESKMATE_VERSION": version_of(root),
        "DESKMATE_PUBLIC_URL": wishes.public_url,
        "DESKMATE_MODEL_DIR": str(model),
        "DESKMATE_MODEL_NAME": model.name,
        **{f"DESKMATE_{name.upper()}_USER": str(account) for name, account in accounts.items()},
    }


def memory_limits(total_bytes: int) -> dict[str, str]:
    """Redis may hold an eighth, and as much again while it rewrites its file; the worker gets what the others leave."""
    stored = memory_limit_bytes(total_bytes)
    redis = 2 * stored + 128 * MEBIBYTE
    worker = max(total_bytes // 2, total_bytes - redis - OTHERS_BYTES)
    sizes = {"REDIS_MAXMEMORY": stored, "REDIS_MEMORY": redis, "WORKER_MEMORY": worker}
    return {f"DESKMATE_{name}": f"{size // MEBIBYTE}mb" for name, size in sizes.items()}


KEPT = ("DESKMATE_REDIS_MAXMEMORY", "DESKMATE_REDIS_MEMORY", "DESKMATE_WORKER_MEMORY")


def write_settings(file: Path, settings: dict[str, str]) -> None:
    """Replaces what the command decides; every other line stays as it is, comments too."""
    lines = file.read_text().splitlines() if file.exists() else [
        "# Read by docker-compose.yml. `./deskmate compose-init` sets these; memory limits and lines of yours stay."
    ]  # fmt: skip
    there = {line.partition("=")[0] for line in lines}
    decided = {name: value for name, value in settings.items() if not (name in KEPT and name in there)}
    stay = [line for line in lines if line.partition("=")[0] not in decided]
    write_private(file, "\n".join([*stay, *(f"{name}={quoted(value)}" for name, value in decided.items())]) + "\n")


def quoted(value: str) -> str:
    """In single quotes nothing is special; Compose has no way to write one between them."""
    if "'" in value or "\n" in value:
        raise BadConfiguration(f"{value!r} has a quote or a line break, which .env cannot hold; choose another name")
    return f"'{value}'"


def tell(root: Path, model: Path, wishes: Wishes, say: Say) -> None:
    say(f"Prepared {root / 'docker-compose.yml'} for the {PROFILES[wishes.accelerator]}; it serves {model}")
    say("  .env               settings; memory limits and lines of yours stay when this runs again")
    say("  compose/secrets/   made once, each readable by one service; keep them with the data")
    say("  compose/data/      what people have, and the metrics")
    say("  compose/wheels/    what the images are built from")
    say("Next:")
    say("  docker compose up --wait")
    say("  docker compose exec gateway python -m gateway user link --administrator")
    say(f"Then {wishes.public_url} answers; Grafana asks for `admin` and compose/secrets/grafana_admin_password.")
