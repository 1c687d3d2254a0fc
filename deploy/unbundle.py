"""`./deskmate up --bundle`: checks a bundle while it is unpacked into the data folder. Knows its format, no installer.

Nothing in a bundle is believed before its hash was compared, and a file takes its place only when all of them were.
The order makes an interrupted call repair itself: `bundle.part` is thrown away, `bundle` is whole and stays until the
environment is made, and `bundle.json` says which model a later `up` serves.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from deploy.bundle import CHECKOUT, FORMAT, MANIFEST, MODELS, SUMS, WHEELS, Manifest, lock_digests
from deploy.errors import BadConfiguration, Refusal, UsageError
from deploy.home import Home, read_json, remove_folder, write_json
from deploy.install import accelerator
from deploy.space import Progress, refuse_full_disk
from deploy.wheels import digest_of

CHUNK_BYTES = 1 << 20
LARGEST_LIST_BYTES = 64 << 20  # of SHA256SUMS and manifest.json, which are read whole
ENVIRONMENT_BYTES = {"cpu": 3e9, "cuda": 12e9}
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
MACHINES = {"cpu": "machines without an NVIDIA card", "cuda": "machines with an NVIDIA card"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """An opened bundle: its list of hashes as it stands there, and its other members one after the other."""

    path: Path
    sums: bytes
    members: Iterator[tuple[str, IO[bytes]]]
    size: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sums).hexdigest()


# -- what `up` asks for -----------------------------------------------------------------------------------------


def bring(path: Path, digest: str | None, home: Home, installed: bool, say: Say) -> None:
    """Checks the bundle and puts its wheels and its model into the data folder, unless they are there already."""
    refuse_odd_digest(digest)
    home.create()
    with alone(home, say), opened(path) as source:
        say(f"Bundle {path}, digest {source.digest}")
        refuse_digest(source, digest)
        if installed and is_adopted(source.digest, home):
            return
        if not (folder(home) / SUMS).exists() or digest_of(folder(home) / SUMS) != source.digest:
            needed = source.size + ENVIRONMENT_BYTES[accelerator()]
            refuse_full_disk(home.folder, needed, f"installing from {path}")
            unpack(source, folder(home), refuse_other_host, say)
        adopt(home)


def wheels(home: Home) -> Path | None:
    """The folder an installer is to take everything from; None where there is no bundle of this checkout's locks."""
    manifest = read_json(folder(home) / MANIFEST)
    if manifest is None or manifest["locks"] != lock_digests(manifest["accelerator"]):
        return None
    return folder(home) / WHEELS


def model(home: Home) -> Path | None:
    """The model of the bundle that was installed last, where it had one."""
    name = (read_json(note(home)) or {}).get("model")
    return models(home) / name if name else None


def tidy(home: Home, say: Say) -> None:
    """The environment is made: what it was made from may go. A name at a time, so that no half of it is believed."""
    if folder(home).exists() or part_of(folder(home)).exists():
        with alone(home, say):
            remove_folder(part_of(folder(home)))
            if folder(home).exists():
                folder(home).rename(part_of(folder(home)))
                remove_folder(part_of(folder(home)))


def is_adopted(digest: str, home: Home) -> bool:
    served = model(home)
    return (read_json(note(home)) or {}).get("digest") == digest and (served is None or served.is_dir())


def adopt(home: Home) -> None:
    """Puts the model where it stays and remembers it. Each step may be the last one of a killed call."""
    fresh, name = folder(home) / MODELS, read_json(folder(home) / MANIFEST)["model"]
    if fresh.exists() or name is None:
        remove_folder(models(home))
    if fresh.exists():
        fresh.rename(models(home))
    write_json(note(home), {"digest": digest_of(folder(home) / SUMS), "model": name})


def folder(home: Home) -> Path:
    return home.folder / "bundle"


def models(home: Home) -> Path:
    return home.folder / "models" / "from-bundle"


def note(home: Home) -> Path:
    return home.folder / "bundle.json"


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


@contextmanager
def alone(home: Home, say: Say) -> Iterator[None]:
    with (home.run / "bundle.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another call is unpacking a bundle; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- reading a bundle -------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A tar, or the folder that one was unpacked to."""
    if path.exists() and not os.access(path, os.R_OK):
        refuse(path, "it may not be read by this account; change its owner or its mode")
    if path.is_dir():
        yield opened_folder(path)
    elif path.is_file():
        try:
            with tarfile.open(path, "r:") as tar:
                yield opened_tar(path, tar)
        except tarfile.TarError as error:
            refuse(path, f"it is no whole tar file ({error}); copy it again")
    else:
        raise BadConfiguration(f"--bundle {path} is not there; give the file that `./deskmate bundle` wrote")


def opened_tar(path: Path, tar: tarfile.TarFile) -> Source:
    members = tar_members(path, tar)
    name, stream = next(members, ("", None))
    if name != SUMS or stream is None:
        refuse(path, f"it does not begin with {SUMS}; give the file that `./deskmate bundle` wrote, as it was written")
    return Source(path, stream.read(LARGEST_LIST_BYTES), members, path.stat().st_size)


def tar_members(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in tar:
        stream = tar.extractfile(info) if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
        if stream is None:
            refuse(path, f"{info.name!r} in it is a link, a folder or a device; a bundle has plain files only")
        yield info.name, stream


def opened_folder(path: Path) -> Source:
    if not (path / SUMS).is_file():
        refuse(path, f"the folder has no {SUMS}; give the one that the whole bundle was unpacked to")
    sums = (path / SUMS).read_bytes()
    names = sorted(listed(path, sums), key=lambda name: (name != MANIFEST, name))
    size = sum((path / name).stat().st_size for name in names if (path / name).is_file())
    return Source(path, sums, folder_members(path, names), size)


def folder_members(path: Path, names: list[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """What the list names; whatever else lies there by now is left alone."""
    for name in names:
        file = path / name
        if any(one.is_symlink() for one in (file, *file.parents) if path in one.parents):
            refuse(path, f"{name!r} in it is a link; a bundle has plain files only")
        if file.is_file():
            with file.open("rb") as stream:
                yield name, stream


# -- checking and unpacking -------------------------------------------------------------------------------------


def unpack(source: Source, target: Path, judge: Callable[[Path, Manifest], None], say: Say) -> Manifest:
    """Writes all but the checkout to `target`, whole or not at all. `judge` refuses what is not for here."""
    part = part_of(target)
    remove_folder(part)
    try:
        part.mkdir(mode=0o700, parents=True)
        manifest = copy(source, part, judge, say)
        (part / MANIFEST).write_bytes(manifest.as_bytes())
        (part / SUMS).write_bytes(source.sums)
        remove_folder(target)
        part.rename(target)
        return manifest
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Refusal(f"the disk of {target} is full; make room and run the same command again") from None
    finally:
        remove_folder(part)


def copy(source: Source, part: Path, judge: Callable[[Path, Manifest], None], say: Say) -> Manifest:
    missing = listed(source.path, source.sums)
    manifest = first_member(source, missing)
    judge(source.path, manifest)
    say("Checking and unpacking")
    progress = Progress("Unpacked", source.size, say)
    for name, stream in source.members:
        if (wanted := missing.pop(name, None)) is None:
            refuse(source.path, f"{name!r} in it is not in its list of hashes, or is there twice")
        target = None if name.startswith(f"{CHECKOUT}/") else part / name
        if written(stream, target, progress) != wanted:
            refuse(source.path, f"{name!r} in it is broken: its hash is another than the list's; copy the bundle again")
    if missing:
        refuse(
            source.path, f"it ends too early: {len(missing)} files are missing, {min(missing)!r} first; copy it again"
        )
    return manifest


def listed(path: Path, sums: bytes) -> dict[str, str]:
    """Name → hash, of names that stay inside the folder they are unpacked to."""
    found: dict[str, str] = {}
    for line in sums.decode(errors="replace").removesuffix("\n").split("\n"):
        match = LINE.fullmatch(line)
        if not match:
            refuse(path, f"its {SUMS} has a line of another kind: {line[:80]!r}")
        if not is_a_place(match[2]):
            refuse(path, f"the name {match[2]!r} in it leads where nothing of a bundle belongs")
        found[match[2]] = match[1]
    return found


def is_a_place(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if name != "/".join(parts) or ".." in parts or "\0" in name:
        return False
    if name == MANIFEST or (parts[0] == WHEELS and len(parts) == 2 and name.endswith(".whl")):
        return True
    return (parts[0] == CHECKOUT and len(parts) >= 2) or (parts[0] == MODELS and len(parts) >= 3)


def first_member(source: Source, missing: dict[str, str]) -> Manifest:
    name, stream = next(source.members, ("", None))
    text = stream.read(LARGEST_LIST_BYTES) if stream else b""
    if name != MANIFEST or hashlib.sha256(text).hexdigest() != missing.pop(MANIFEST, None):
        refuse(source.path, f"its {MANIFEST} is missing or broken; copy the bundle again")
    manifest = understood(source.path, text)
    if manifest.model is not None and f"{MODELS}/{manifest.model}/config.json" not in missing:
        refuse(source.path, f"its model {manifest.model!r} is not in its list of hashes")
    return manifest


def understood(path: Path, text: bytes) -> Manifest:
    try:
        said: dict[str, Any] = dict(json.loads(text))
    except ValueError:
        refuse(path, f"its {MANIFEST} says nothing that can be read; copy the bundle again")
    if said.get("format") != FORMAT:
        refuse(path, f"it has format {said.get('format')} and this Deskmate reads {FORMAT}; {use_inside(path)}")
    values: dict[str, Any] = {field.name: said.get(field.name) for field in fields(Manifest)}
    return Manifest(**values)


def written(stream: IO[bytes], target: Path | None, progress: Progress) -> str:
    """Copies to the target, where there is one: the hash of what was there to copy."""
    digest = hashlib.sha256()
    if target:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (target or Path(os.devnull)).open("wb") as copied:
        while data := stream.read(CHUNK_BYTES):
            digest.update(data)
            copied.write(data)
            progress.add(len(data))
    return digest.hexdigest()


# -- refusals ---------------------------------------------------------------------------------------------------


def refuse_odd_digest(digest: str | None) -> None:
    if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest.strip()):
        raise UsageError("--bundle-digest is 64 hexadecimal digits, as `./deskmate bundle` told them")


def refuse_digest(source: Source, digest: str | None) -> None:
    if digest is not None and digest.strip().lower() != source.digest:
        refuse(
            source.path,
            f"its digest is {source.digest} and not the one of --bundle-digest; it is not what was signed off",
        )


def refuse_other_host(path: Path, manifest: Manifest) -> None:
    """What is made for another kind of machine, or follows other lists than this checkout."""
    refuse_other_locks(path, manifest)
    here = ".".join(platform.python_version_tuple()[:2])
    if manifest.python != here:
        refuse(path, f"it is for Python {manifest.python} and this is {here}; install python{manifest.python}")
    if manifest.accelerator != accelerator():
        other = {"cpu": "--gpu", "cuda": "--cpu"}[manifest.accelerator]
        refuse(path, f"it is for {MACHINES[manifest.accelerator]}; make one with `./deskmate bundle {other}`")


def refuse_other_locks(path: Path, manifest: Manifest) -> None:
    if manifest.machine != platform.machine():
        refuse(
            path, f"it is for {manifest.machine} and this machine is {platform.machine()}; make one on such a machine"
        )
    if manifest.accelerator not in MACHINES or manifest.locks != lock_digests(manifest.accelerator):
        refuse(path, f"its packages are not those of this checkout; {use_inside(path)}")


def use_inside(path: Path) -> str:
    return f"use the checkout inside the bundle: tar -xf {path} {CHECKOUT}"


def refuse(path: Path, why: str) -> NoReturn:
    raise BadConfiguration(f"the bundle {path} cannot be used: {why}")
