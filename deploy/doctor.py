"""`./deskmate doctor`: what is there, what is missing, what to do. Changes nothing and asks no network."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from deploy import redis
from deploy.checks import missing_packages
from deploy.control import running
from deploy.home import Home
from deploy.install import Environment, accelerator, runtime_lock
from deploy.narrator import REAL_MODEL
from deploy.processes import listener, port_is_free
from deploy.wishes import port_of

GIB = 1 << 30
LEAST_MEMORY_BYTES = 4 * GIB
LEAST_DISK_BYTES = {"cpu": 5 * GIB, "cuda": 16 * GIB}


@dataclass(frozen=True)
class Finding:
    """`fine`: nothing to do. Otherwise `text` says what to do, and `needed` whether `up` fails without it."""

    fine: bool
    text: str
    needed: bool = True


def examine(home: Home) -> Iterator[Finding]:
    kind = accelerator()
    yield python()
    yield Finding(True, f"accelerator: {'NVIDIA card' if kind == 'cuda' else 'none, the engine runs on the CPU'}")
    yield environment(home)
    yield from memory_and_disk(home, kind)
    yield redis_server(home)
    yield port(home)
    yield tests()


def python() -> Finding:
    version = platform.python_version()
    if platform.python_version_tuple()[:2] == ("3", "11"):
        return Finding(True, f"Python {version}")
    return Finding(True, f"Python {version}: works as far as known, 3.11 is what is tested")


def environment(home: Home) -> Finding:
    if Environment(home, print).holds(runtime_lock()):
        return Finding(True, f"environment: {home.env}")
    state = "out of date or incomplete" if home.env.exists() else "not made yet"
    return Finding(False, f"environment: {state}; `./deskmate up` makes it", needed=False)


def memory_and_disk(home: Home, kind: str) -> Iterator[Finding]:
    memory = redis.total_memory_bytes()
    yield Finding(memory >= LEAST_MEMORY_BYTES, f"memory: {memory / GIB:.0f} GiB (the demo model needs 4)")
    above = next(folder for folder in (home.folder, *home.folder.parents) if folder.exists())
    free, needed = shutil.disk_usage(above).free, LEAST_DISK_BYTES[kind]
    enough = free >= needed or home.env.exists()
    yield Finding(enough, f"disk: {free / GIB:.0f} GiB free at {above} (a first start takes {needed // GIB})")
    yield Finding(os.access(above, os.W_OK), f"data folder: {home.folder}")


def redis_server(home: Home) -> Finding:
    server = redis.installed_server() or redis.embedded_server(home.env)
    return Finding(True, f"Redis: {server or 'the embedded Valkey that comes with the environment'}")


def port(home: Home) -> Finding:
    number = port_of(os.environ)
    if status := running(home):
        return Finding(True, f"running at {status.address}, {'ready' if status.ready else 'not ready'}")
    if port_is_free("127.0.0.1", number):
        return Finding(True, f"port {number}: free")
    who = listener(number)
    return Finding(
        False, f"port {number}: in use by {f'{who.name} (pid {who.pid})' if who else 'another program'}; use --port"
    )


def tests() -> Finding:
    missing = missing_packages()
    if not missing:
        return Finding(True, "`./deskmate test`: everything is there")
    return Finding(False, f"`./deskmate test` also needs: apt-get install {' '.join(missing)}", needed=False)


def doctor(home: Home) -> int:
    findings = list(examine(home))
    for finding in findings:
        print(f"{'ok     ' if finding.fine else 'MISSING' if finding.needed else 'note   '} {finding.text}")
    print(f"\nWithout --model the demo model SmolLM2-135M-Instruct is served. {REAL_MODEL}")
    return 1 if any(not finding.fine and finding.needed for finding in findings) else 0
