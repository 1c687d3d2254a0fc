"""`./deskmate bundle`: one file that installs Deskmate where there is no network. Knows its format, not its unpacking.

A plain tar. SHA256SUMS, over every other member, comes first, so that a reader checks each member as it comes; then
manifest.json, deskmate/ (this checkout), models/NAME/ and wheels/. The digest of SHA256SUMS stands for the whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from deploy.checkout import Commit, commit_of, files_of
from deploy.errors import BadConfiguration, Refusal, UsageError
from deploy.home import Home
from deploy.install import LOCKS, accelerator
from deploy.space import Progress, refuse_full_disk, size_in_words
from deploy.wheels import PYTHON, bundle_locks, digest_of, downloader, fetch

FORMAT = 1
SUMS, MANIFEST = "SHA256SUMS", "manifest.json"
CHECKOUT, MODELS, WHEELS = "deskmate", "models", "wheels"
TAR_BLOCK_BYTES = 512
Say = Callable[[str], None]


@dataclass(frozen=True)
class Manifest:
    """What a bundle is for. `locks` are digests of the lists its wheels follow: a checkout must have the same."""

    format: int
    version: str
    accelerator: str
    python: str
    machine: str
    locks: Mapping[str, str]
    model: str | None
    commit: str | None
    changed: bool
    made_at: str

    def as_bytes(self) -> bytes:
        return (json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Member:
    """One file of the tar: where it comes from, or what it says."""

    name: str
    source: Path | bytes
    executable: bool = False

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def digest(self) -> str:
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else digest_of(self.source)

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def make(root: Path, home: Home, kind: str | None, model: Path | None, output: Path, say: Say) -> None:
    """Writes the bundle for this kind of accelerator (default: this machine's) and tells its digest."""
    kind = kind or accelerator()
    refuse_bad_output(output)
    weights = model_members(model) if model else []
    refuse_full_disk(output.parent, sum(member.size for member in weights), "the model in the bundle")
    home.create()
    with downloader(home, say) as python:
        wheels = fetch(bundle_locks(kind), home.cache / "wheels", python, say, PYTHON)
    commit, now = commit_of(root), moment()
    tell_differences(commit, say)
    manifest = manifest_of(root, kind, model_name(model), commit, now)
    members = [
        Member(MANIFEST, manifest.as_bytes()),
        *checkout_members(root, (home.folder, output.absolute())),
        *weights,
        *(Member(f"{WHEELS}/{wheel.name}", wheel) for wheel in wheels),
    ]
    digest, size = write(output, members, now, say)
    say(f"Bundle: {output} ({size_in_words(size)}, {kind}, Python {PYTHON}, {platform.machine()})")
    say(f"Digest: {digest}")
    say("Tell the digest by another way than the file; then on the machine without a network:")
    say(f"  tar -xf {output.name} {CHECKOUT}")
    say(f"  ./{CHECKOUT}/deskmate up --bundle {output.name} --bundle-digest {digest}")


def refuse_bad_output(output: Path) -> None:
    folder = output.absolute().parent
    if not folder.is_dir():
        raise BadConfiguration(f"the folder {folder} for the bundle is not there; make it: mkdir -p {folder}")
    if output.is_dir():
        raise UsageError(f"-o {output} is a folder; name the file to write, for example {output / 'deskmate.tar'}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadConfiguration(f"the folder {folder} cannot be written to; choose another with -o")


def tell_differences(commit: Commit, say: Say) -> None:
    if commit.changed:
        say("Note: this checkout differs from its last commit; the bundle has its files as they are now.")
    if commit.untracked:
        say(f"Note: git does not track {', '.join(commit.untracked[:3])} ({len(commit.untracked)} in all); left out.")


def moment() -> int:
    """Seconds since 1970; SOURCE_DATE_EPOCH makes the same bytes of the same files."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


# -- what goes in -----------------------------------------------------------------------------------------------


def manifest_of(root: Path, kind: str, model: str | None, commit: Commit, now: int) -> Manifest:
    return Manifest(
        format=FORMAT,
        version=version_of(root),
        accelerator=kind,
        python=PYTHON,
        machine=platform.machine(),
        locks=lock_digests(kind),
        model=model,
        commit=commit.name,
        changed=commit.changed,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
    )


def version_of(root: Path) -> str:
    """The version in pyproject.toml."""
    lines = (root / "pyproject.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version = "))


def lock_digests(kind: str, folder: Path = LOCKS) -> dict[str, str]:
    return {lock.name: digest_of(folder / lock.name) for lock in bundle_locks(kind)}


def checkout_members(root: Path, without: Iterable[Path]) -> list[Member]:
    return [
        Member(f"{CHECKOUT}/{file.relative_to(root)}", file, os.access(file, os.X_OK))
        for file in files_of(root, without)
    ]


def model_name(model: Path | None) -> str | None:
    return Path(os.path.normpath(model.absolute())).name if model else None


def model_members(model: Path) -> list[Member]:
    """The files of a model directory; links (a download cache has them) become what they point to."""
    name = model_name(model)
    if not model.is_dir() or not (model / "config.json").is_file() or not any(model.glob("*.safetensors")):
        raise BadConfiguration(f"--model {model} is not a model directory: give one with config.json and safetensors")
    found = [Member(f"{MODELS}/{name}/{file.relative_to(model)}", file) for file in plain_files(model)]
    if odd := next((member.name for member in found if not member.name.isprintable() or "\\" in member.name), None):
        raise BadConfiguration(f"{odd!r} has a character that no bundle can hold; rename the file")
    return found


def plain_files(folder: Path) -> Iterator[Path]:
    """Hidden ones (a version control's, a download's) stay out."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            if entry.is_dir():
                yield from plain_files(entry)
            else:
                yield entry


# -- writing ----------------------------------------------------------------------------------------------------


def write(output: Path, members: Sequence[Member], now: int, say: Say) -> tuple[str, int]:
    """The tar, whole or not at all: the digest of its SHA256SUMS, and its size."""
    total = sum(member.size + 2 * TAR_BLOCK_BYTES for member in members)
    refuse_full_disk(output.parent, total, f"the bundle {output}")
    say(f"Hashing and writing {len(members)} files, {size_in_words(total)}")
    digests = hashed(members, Progress("Hashed", total, say))
    sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()
    with replacing(output) as stream:
        progress = Progress("Written", total, say)
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            add(tar, Member(SUMS, sums), hashlib.sha256(sums).hexdigest(), now, progress)
            for member in members:
                add(tar, member, digests[member.name], now, progress)
    return hashlib.sha256(sums).hexdigest(), output.stat().st_size


def hashed(members: Sequence[Member], progress: Progress) -> dict[str, str]:
    digests = {}
    for member in members:
        digests[member.name] = member.digest()
        progress.add(member.size)
    return digests


def add(tar: tarfile.TarFile, member: Member, digest: str, now: int, progress: Progress) -> None:
    info = tarfile.TarInfo(member.name)
    info.size, info.mtime, info.mode = member.size, now, 0o755 if member.executable else 0o644
    with member.open() as source:
        reader = Hashed(source)
        tar.addfile(info, reader)
    if reader.digest != digest:
        raise Refusal(f"{member.source!s} changed while the bundle was made; run the same command again")
    progress.add(member.size)


class Hashed(io.RawIOBase):
    """Passes on what it reads and knows the digest of it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._hash = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        return data

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def replacing(output: Path) -> Iterator[IO[bytes]]:
    """A file beside the wanted one that takes its name when it is whole. A killed call's is written over."""
    part = output.with_name(f".{output.name}.part")
    with part.open("ab") as stream:
        if not claimed(stream, part):
            raise Refusal(f"another call is writing {output} just now; wait for it or choose another file")
        try:
            stream.truncate(0)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            part.replace(output)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise Refusal(f"the disk of {output} is full; make room and run the same command again") from None
            raise
        finally:
            part.unlink(missing_ok=True)


def claimed(stream: IO[bytes], part: Path) -> bool:
    """False where another call holds the file, or has just given it its final name."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return part.stat().st_ino == os.fstat(stream.fileno()).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
