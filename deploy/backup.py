"""`./deskmate backup` and `restore`: bring the Redis they need, run the gateway's own words. Know no key of Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from deploy import redis
from deploy.control import gateway_command, gateway_environment, running
from deploy.errors import NotRunning, Refusal, UsageError
from deploy.home import Home, read_json, remove_folder, secret, socket_folder, write_json
from deploy.local import (
    REDIS_PATIENCE_SECONDS,
    Guard,
    already_running,
    claimed,
    end_left_over,
    redis_command,
    stack_file,
)
from deploy.logs import LogFile
from deploy.parts import Child, first_of, until
from deploy.processes import Record
from deploy.wishes import Sockets, child_environment

STANDARD = "-"


def backup(root: Path, home: Home, file: Path) -> int:
    """Of what runs, through its own settings; of what is stopped, with nothing but its Redis started for it."""
    words = ["backup", absolute(file)]
    if running(home) is not None or uses_another_redis(home):
        return asyncio.run(until_done(home, root, words, gateway_environment(home, root, os.environ)))
    if not home.python.exists() or not (home.redis / "written-by").exists():
        raise NotRunning(f"{home.folder} has no data of Deskmate; DESKMATE_HOME names another data folder")
    return asyncio.run(with_redis_alone(home, root, words, os.environ))


def restore(root: Path, home: Home, file: Path, prepare: Callable[[], None]) -> int:
    """Into an empty data folder, or one whose restore was cut off. The gateway refuses any other."""
    if running(home) is not None:
        raise already_running(home)
    if str(file) != STANDARD and not file.is_file():
        raise UsageError(f"{file} is not a file; give a backup that `./deskmate backup` made")
    prepare()
    words = ["restore", absolute(file), "--secret-out", str(home.secrets / "installation-secret")]
    return asyncio.run(with_redis_alone(home, root, words, os.environ))


def absolute(file: Path) -> str:
    return STANDARD if str(file) == STANDARD else str(file.absolute())


def uses_another_redis(home: Home) -> bool:
    """Whether the last start was told to use a Redis that is not its own."""
    settings = (read_json(stack_file(home)) or {}).get("settings", {})
    return bool(settings) and "DESKMATE_REDIS_PASSWORD_FILE" not in settings


async def with_redis_alone(home: Home, root: Path, words: list[str], given: Mapping[str, str]) -> int:
    async with redis_alone(home, root, given) as settings:
        return await until_done(home, root, words, {**child_environment(root, home, given), **settings})


async def until_done(home: Home, root: Path, words: list[str], environment: Mapping[str, str]) -> int:
    """The gateway's exit code. It says itself what is wrong."""
    process = await asyncio.create_subprocess_exec(*gateway_command(home, words), cwd=root, env=environment)
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    try:
        if await first_of(process.wait(), stop.wait()) == 1:
            raise KeyboardInterrupt
        return process.returncode or 0
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def redis_alone(home: Home, root: Path, given: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
    """The data folder's Redis without anything else, and the settings that lead to it. Nobody else may start one."""
    home.create()
    with claimed(home):
        end_left_over(home)
        sockets = Sockets(socket_folder(dict(given)))
        guard = Guard(sockets.folder)
        password = secret(home.secrets / "redis-password")
        server, command = redis_command(home, sockets, password, child_environment(root, home, given))
        child = Child("redis", command, LogFile(home.logs / "redis.log"), lambda line: None)
        try:
            remember(home, sockets, [child.record])
            guard.learn(child.record)
            if await first_of(until(lambda: redis.answers(sockets.redis, password)), child.ended()) == 1:
                raise Refusal(f"{server} does not start: {child.last_words()}\nLog: {home.logs / 'redis.log'}")
            yield {
                "DESKMATE_REDIS_URL": f"unix://{sockets.redis}?db=0",
                "DESKMATE_REDIS_PASSWORD_FILE": str(home.secrets / "redis-password"),
                "DESKMATE_SECRET_FILE": str(home.secrets / "installation-secret"),
            }
        finally:
            await child.end(REDIS_PATIENCE_SECONDS, asyncio.Event())
            guard.dismiss()
            remove_folder(sockets.folder)
            remember(home, sockets, [])


def remember(home: Home, sockets: Sockets, records: list[Record]) -> None:
    """So that whoever comes next ends what a kill of us and of the guard left; settings stay those of the last `up`."""
    stack = read_json(stack_file(home)) or {"settings": {}}
    write_json(
        stack_file(home),
        {**stack, "sockets": str(sockets.folder), "records": [asdict(record) for record in records]},
    )
