"""What a person asked of `up`, as one frozen object, and the environments that follow from it. Starts nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BadConfiguration
from deploy.home import Home

LOOPBACK = ("127.0.0.1", "::1", "localhost")
ANYWHERE = ("0.0.0.0", "::")
DEMO_TEMPERATURE = "0.2"
NOTHING_LEAVES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True)
class Wishes:
    """The options of `up`, defaults filled in. Without `model` the demo model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    model: Path | None = None
    seats: int | None = None
    gateways: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None
    redis_url: str | None = None
    durability: str = "always"
    worker_urls: tuple[str, ...] = ()
    public_url: str | None = None

    @property
    def demo(self) -> bool:
        return self.model is None and not self.worker_urls

    @property
    def gateway_names(self) -> tuple[str, ...]:
        return ("gateway",) if self.gateways == 1 else tuple(f"gateway-{n + 1}" for n in range(self.gateways))

    @property
    def address(self) -> str:
        """What a person types into the browser."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = own_address() if self.host in ANYWHERE else self.host
        return f"{'https' if self.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def is_open_without_tls(self) -> bool:
        return self.host not in LOOPBACK and not self.tls_cert


@dataclass(frozen=True)
class Sockets:
    """Where the parts of one run meet, in a private folder with a short path."""

    folder: Path

    @property
    def redis(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def worker(self) -> Path:
        return self.folder / "worker.sock"

    @property
    def orders(self) -> Path:
        return self.folder / "orders.sock"


def number_of(given: Mapping[str, str], name: str) -> int | None:
    """A whole number above 0 that a variable gives; None where it gives none."""
    text = given.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise BadConfiguration(f"{name} must be a whole number above 0")
    return int(text)


def port_of(given: Mapping[str, str]) -> int:
    return number_of(given, "DESKMATE_PORT") or 8000


def own_address() -> str:
    """The address other machines reach this one at: the source of a route outwards. No packet is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return socket.gethostname()


def gateway_settings(wishes: Wishes, home: Home, sockets: Sockets, given: Mapping[str, str]) -> dict[str, str]:
    """The gateway's DESKMATE_ variables: what the person set, and over it what this run decides."""
    own = {name: value for name, value in given.items() if name.startswith("DESKMATE_") and name != "DESKMATE_HOME"}
    decided = {
        "DESKMATE_HOST": wishes.host,
        "DESKMATE_PORT": str(wishes.port),
        "DESKMATE_SECRET_FILE": str(home.secrets / "installation-secret"),
        "DESKMATE_STATUS_FILE": str(home.status_file),
        "DESKMATE_REDIS_URL": wishes.redis_url or f"unix://{sockets.redis}?db=0",
        "DESKMATE_WORKER_URLS": ",".join(wishes.worker_urls) or f"unix:{sockets.worker}",
    }
    if wishes.tls_cert and wishes.tls_key:
        decided |= {"DESKMATE_TLS_CERT": str(wishes.tls_cert), "DESKMATE_TLS_KEY": str(wishes.tls_key)}
    if not wishes.redis_url:
        decided["DESKMATE_REDIS_PASSWORD_FILE"] = str(home.secrets / "redis-password")
    if not wishes.worker_urls:
        decided["DESKMATE_PLAN_FILE"] = str(home.plan_file)
    if not wishes.worker_urls and not wishes.model:
        own.setdefault("DESKMATE_TEMPERATURE", DEMO_TEMPERATURE)  # its plan says so too, but is not there at once
    if wishes.gateways > 1:
        decided["DESKMATE_METRICS_FOLDER"] = str(home.metrics)
    if wishes.seats is not None:
        decided["DESKMATE_SEATS"] = str(wishes.seats)
    if wishes.host in ANYWHERE:
        decided["DESKMATE_ALLOWED_HOSTS"] = ",".join(
            filter(None, (given.get("DESKMATE_ALLOWED_HOSTS"), own_address(), socket.gethostname()))
        )
    return own | decided


def child_environment(root: Path, home: Home, given: Mapping[str, str]) -> dict[str, str]:
    """What every part inherits: the person's environment, nothing of ours, caches in the data folder, no way out."""
    inherited = {name: value for name, value in given.items() if not name.startswith("DESKMATE_")}
    caches = {
        "XDG_CACHE_HOME": home.cache,
        "XDG_CONFIG_HOME": home.cache / "config",
        "HF_HOME": home.cache / "huggingface",
        "VLLM_CACHE_ROOT": home.cache / "vllm",
        "TORCHINDUCTOR_CACHE_DIR": home.cache / "torchinductor",
        "TRITON_CACHE_DIR": home.cache / "triton",
        "NUMBA_CACHE_DIR": home.cache / "numba",
    }
    return {
        **inherited,
        **{name: os.fspath(folder) for name, folder in caches.items()},
        **NOTHING_LEAVES,
        "PYTHONPATH": os.fspath(root),
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
    }
