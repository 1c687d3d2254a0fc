"""The words `backup` and `restore`: files, secrets, what is told on the way. Knows no key and no format."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gateway import VERSION
from gateway.auth.secret import MINIMUM_BYTES
from gateway.backup import BackupError
from gateway.backup.dump import dump
from gateway.backup.file import Header, Reader, Secret, Writer
from gateway.backup.load import load, refuse_full, refuse_newer
from gateway.migrations import DATA_VERSION, bring_forward, data_version
from gateway.redis_client import RedisClient

STANDARD = "-"
TELL_SECONDS = 2.0

Say = Callable[[str], None]


async def backup(redis: RedisClient, secret_file: Path, file: str, say: Say) -> None:
    """Raises BackupError, UnusableData, Unavailable; what is wrong is found before the file appears."""
    started = time.monotonic()
    version = await data_version(redis) or DATA_VERSION
    if version != DATA_VERSION:
        raise BackupError(
            f"the data has version {version}; this release backs up {DATA_VERSION}. Make the backup with the release "
            "that wrote the data, or start this one once: it brings the data forward"
        )
    header = Header(DATA_VERSION, VERSION, int(time.time()))
    with _target(file) as stream:
        writer = Writer(stream, header, Secret(secret_file.read_bytes().strip()))
        await dump(redis, writer, _seldom(say))
    say(f"the backup is made: {writer.bytes / 1e6:.1f} MB in {time.monotonic() - started:.1f} s")


async def restore(redis: RedisClient, secret_file: Path, file: str, secret_out: str | None, say: Say) -> None:
    """Nothing is written before the whole backup has been read and found to be in order."""
    started = time.monotonic()
    with _source(file) as stream:
        reader = Reader(stream)
        refuse_newer(reader)
        await refuse_full(redis)
        if secret_out is None:
            _compare_secret(secret_file, reader.secret.value)
        elif secret_out != STANDARD:
            _place_secret(Path(secret_out), reader.secret.value)
        await load(redis, reader, _name_of(file), _seldom(say))
    await bring_forward(redis, say)
    if secret_out == STANDARD:
        sys.stdout.buffer.write(reader.secret.value + b"\n")
        sys.stdout.buffer.flush()
    seconds, made = (
        time.monotonic() - started,
        time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(reader.header.made_at)),
    )
    say(
        f"restored in {seconds:.1f} s: {reader.footer.people} people, {reader.footer.conversations} conversations, "
        f"as they were on {made}"
    )


def _compare_secret(secret_file: Path, secret: bytes) -> None:
    try:
        same = secret_file.read_bytes().strip() == secret
    except OSError as fault:
        raise BackupError(f"DESKMATE_SECRET_FILE: {secret_file}: {fault.strerror}") from None
    if not same:
        raise BackupError(
            f"the backup has another secret than {secret_file}, so its keys and links would open nothing; "
            "--secret-out FILE (or -) gives out the backup's own, to be put in its place"
        )


def _place_secret(file: Path, secret: bytes) -> None:
    """Write the secret where none is; one that is there belongs to data that only it opens."""
    if len(secret) < MINIMUM_BYTES:
        raise BackupError("the backup's secret is too short to be one")
    try:
        if file.exists() and file.read_bytes().strip() != secret:
            raise BackupError(
                f"{file} holds the secret of another installation; restore into an empty data folder, "
                "or move that file away if nothing needs it"
            )
        with _new_file(file, replace=True) as stream:
            stream.write(secret)
    except OSError as fault:
        raise BackupError(f"{file} cannot be written: {fault.strerror}") from None


@contextmanager
def _target(file: str) -> Iterator[IO[bytes]]:
    if file == STANDARD:
        if sys.stdout.isatty():
            raise BackupError("a backup is not for the screen; send it to a file: backup - > FILE")
        yield sys.stdout.buffer
        return
    path = Path(file)
    if path.exists():
        raise BackupError(f"{file} exists; a backup never overwrites one: choose another name or remove it")
    try:
        with _new_file(path, replace=False) as stream:
            yield stream
    except OSError as fault:
        raise BackupError(f"{file} cannot be written: {fault.strerror}") from None


@contextmanager
def _new_file(path: Path, *, replace: bool) -> Iterator[IO[bytes]]:
    """A file that only its owner may read and that appears whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if not replace and path.exists():
            raise BackupError(f"{path} has come into being meanwhile; choose another name")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    """The backup as a file that can be read twice: once to prove it, once to use it."""
    if file != STANDARD:
        try:
            with Path(file).open("rb") as stream:
                yield stream
        except (FileNotFoundError, IsADirectoryError, PermissionError) as fault:
            raise BackupError(f"{file} cannot be read: {fault.strerror}") from None
        return
    with tempfile.TemporaryFile() as stream:
        try:
            while piece := sys.stdin.buffer.read(1 << 20):
                stream.write(piece)
        except OSError as fault:
            raise BackupError(
                f"the backup does not fit into {tempfile.gettempdir()}: {fault.strerror}; give it as a file, not as -"
            ) from None
        yield stream


def _name_of(file: str) -> str:
    return "from standard input" if file == STANDARD else Path(file).name


def _seldom(say: Say) -> Say:
    """Passes on the first word, and then one every few seconds."""
    last = -TELL_SECONDS

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            say(text)

    return tell
