"""A bundle written and unpacked, and everything that is refused: small made-up ones in a real tar. Installs nothing."""

import hashlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import bundle, checkout, space, unbundle
from deploy.bundle import MANIFEST, SUMS, Member
from deploy.errors import BadConfiguration, Refusal, UsageError
from deploy.home import Home, read_json
from deploy.install import accelerator
from tests.docs.commands import commands, shell

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_700_000_000
WHEEL = "wheels/thing-1.0-py3-none-any.whl"
MODEL = "models/Tiny/config.json"
THIS_PYTHON = ".".join(platform.python_version_tuple()[:2])


def manifest(**changes: object) -> bundle.Manifest:
    kind = accelerator()
    usual = bundle.Manifest(
        format=1,
        version="0.1.0",
        accelerator=kind,
        python=THIS_PYTHON,
        machine=platform.machine(),
        locks=bundle.lock_digests(kind),
        model="Tiny",
        commit=None,
        changed=False,
        made_at="2026-01-01T00:00:00Z",
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def members(said: bundle.Manifest | bytes | None = None) -> list[Member]:
    text = said if isinstance(said, bytes) else (said or manifest()).as_bytes()
    return [
        Member(MANIFEST, text),
        Member("deskmate/deskmate", b"#!/bin/sh\necho started\n", executable=True),
        Member(MODEL, b"{}"),
        Member(WHEEL, b"wheel" * 1000),
    ]


def written(file: Path, said: bundle.Manifest | bytes | None = None) -> Path:
    bundle.write(file, members(said), NOW, lambda text: None)
    return file


class Place:
    """A data folder, a bundle, and what was said while it was unpacked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.home = Home(folder / "var")
        self.file = folder / "deskmate.tar"
        self.said: list[str] = []

    def bring(self, digest: str | None = None, installed: bool = False, file: Path | None = None) -> None:
        unbundle.bring(file or self.file, digest, self.home, installed, self.said.append)

    def is_empty(self) -> bool:
        kept = {"bundle", "bundle.part", "bundle.json"} & {entry.name for entry in self.home.folder.glob("*")}
        return not kept and unbundle.model(self.home) is None and unbundle.wheels(self.home) is None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "ein Ordner, für alle")


def members_of(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def rewrite(file: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


# -- what works -------------------------------------------------------------------------------------------------


def test_wheels_and_model_reach_the_data_folder_and_the_model_is_remembered(place: Place):
    digest, _ = bundle.write(place.file, members(), NOW, place.said.append)
    place.bring(digest.upper())
    assert unbundle.wheels(place.home) == place.home.folder / "bundle" / "wheels"
    assert (place.home.folder / "bundle" / WHEEL).read_bytes() == b"wheel" * 1000
    assert any(digest in line for line in place.said)

    unbundle.tidy(place.home, place.said.append)
    assert not (place.home.folder / "bundle").exists()
    model = unbundle.model(place.home)
    assert model is not None
    assert (model.name, (model / "config.json").read_bytes()) == ("Tiny", b"{}")
    assert place.home.folder.stat().st_mode & 0o777 == 0o700


def test_an_unpacked_folder_serves_as_well_and_what_else_lies_there_is_left_alone(place: Place, tmp_path: Path):
    folder = tmp_path / "unpacked"
    with tarfile.open(written(place.file)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "deskmate" / "var").mkdir()
    (folder / "deskmate" / "var" / "link").symlink_to("/etc/passwd")
    place.bring(file=folder)
    assert (place.home.folder / "bundle" / WHEEL).is_file()


def test_a_bundle_without_a_model_takes_back_the_model_of_the_one_before(place: Place):
    written(place.file)
    place.bring()
    others = [member for member in members(manifest(model=None)) if member.name != MODEL]
    bundle.write(place.file, others, NOW, place.said.append)
    place.bring()
    assert unbundle.model(place.home) is None
    assert not (place.home.folder / "models" / "from-bundle").exists()


def test_a_bundle_that_is_installed_already_is_not_unpacked_again(place: Place):
    written(place.file)
    place.bring()
    unbundle.tidy(place.home, place.said.append)
    place.said.clear()
    place.bring(installed=True)
    assert [line for line in place.said if "unpacking" in line] == []
    assert not (place.home.folder / "bundle").exists()


@pytest.mark.parametrize("lost", ["model", "environment"])
def test_a_bundle_of_which_something_was_lost_is_unpacked_again(place: Place, lost: str):
    written(place.file)
    place.bring()
    unbundle.tidy(place.home, place.said.append)
    if lost == "model":
        shutil.rmtree(place.home.folder / "models" / "from-bundle")
    place.bring(installed=lost == "model")
    assert (place.home.folder / "bundle" / WHEEL).is_file()
    assert unbundle.is_adopted(unbundle.digest_of(place.home.folder / "bundle" / SUMS), place.home)


def test_whatever_step_a_killed_call_ended_after_the_next_one_goes_on(place: Place):
    written(place.file)
    half = place.home.folder / "bundle.part" / "wheels"
    half.mkdir(parents=True)
    (half / "half-1.0-py3-none-any.whl").write_bytes(b"ha")
    place.bring()
    assert [wheel.name for wheel in (place.home.folder / "bundle" / "wheels").iterdir()] == [WHEEL.partition("/")[2]]

    shutil.rmtree(place.home.folder / "models" / "from-bundle")  # as if killed between unpacking and placing the model
    (place.home.folder / "bundle" / "models" / "Tiny").mkdir(parents=True)
    (place.home.folder / "bundle.json").unlink()
    place.said.clear()
    place.bring()
    assert [line for line in place.said if "unpacking" in line] == []
    assert unbundle.is_adopted(unbundle.digest_of(place.home.folder / "bundle" / SUMS), place.home)


def test_wheels_of_other_locks_are_not_offered_to_a_later_call(place: Place):
    written(place.file)
    place.bring()
    left = place.home.folder / "bundle" / MANIFEST
    left.write_text(json.dumps({**read_json(left), "locks": {}}))
    assert unbundle.wheels(place.home) is None


# -- what is refused --------------------------------------------------------------------------------------------


def broken_wheel(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data.replace(b"wheelwheel", b"wheelWheel", 1))


def cut_in_a_file(file: Path) -> None:
    entries = members_of(file)
    os.truncate(file, entries[-1][0].offset_data + 100)


def cut_between_files(file: Path) -> None:
    os.truncate(file, members_of(file)[-1][0].offset)


def with_a_link(file: Path) -> None:
    rewrite(file, [*members_of(file)[:2], entry(WHEEL, kind=tarfile.SYMTYPE, link="/etc/passwd")])


def with_a_hard_link(file: Path) -> None:
    rewrite(file, [*members_of(file)[:2], entry(WHEEL, kind=tarfile.LNKTYPE, link=MANIFEST)])


def with_a_stranger(file: Path) -> None:
    rewrite(file, [*members_of(file), entry("wheels/other-1.0-py3-none-any.whl", b"more")])


def with_a_file_twice(file: Path) -> None:
    entries = members_of(file)
    rewrite(file, [*entries, entries[-1]])


def in_another_order(file: Path) -> None:
    rewrite(file, members_of(file)[::-1])


def compressed(file: Path) -> None:
    entries = members_of(file)
    with tarfile.open(file, "w:gz") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))


def no_tar_at_all(file: Path) -> None:
    file.write_bytes(os.urandom(5000))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (broken_wheel, "is broken"),
        (cut_in_a_file, "no whole tar"),
        (cut_between_files, "no whole tar|ends too early"),
        (with_a_link, "plain files only"),
        (with_a_hard_link, "plain files only"),
        (with_a_stranger, "not in its list of hashes"),
        (with_a_file_twice, "not in its list of hashes, or is there twice"),
        (in_another_order, "does not begin with SHA256SUMS"),
        (compressed, "no whole tar"),
        (no_tar_at_all, "no whole tar"),
        (empty, "no whole tar"),
        (gone, "is not there"),
    ],
)
def test_a_harmed_bundle_is_refused_and_leaves_nothing(place: Place, harm: Callable[[Path], None], words: str):
    harm(written(place.file))
    with pytest.raises(BadConfiguration, match=words) as refusal:
        place.bring()
    assert str(place.file) in str(refusal.value)
    assert refusal.value.exit_code == 78
    assert place.is_empty()


@pytest.mark.parametrize(
    "name",
    [
        *("../escaped", "/etc/escaped", "wheels/../../escaped.whl", "deskmate/../../escaped", "wheels//x.whl"),
        *("wheels/deep/x.whl", "models/escaped", "escaped", "wheels/not-a-wheel", "./manifest.json"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(place: Place, name: str, tmp_path: Path):
    bundle.write(place.file, [*members(), Member(name, b"evil")], NOW, place.said.append)
    with pytest.raises(BadConfiguration, match="leads where nothing of a bundle belongs"):
        place.bring()
    assert place.is_empty()
    assert list(tmp_path.rglob("*escaped*")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machine": "riscv64"}, "is for riscv64 and this machine is"),
        ({"python": "3.9"}, "is for Python 3.9 and this is .*install python3.9"),
        ({"accelerator": {"cpu": "cuda", "cuda": "cpu"}[accelerator()]}, "make one with `./deskmate bundle --"),
        ({"locks": {"cpu.txt": "0" * 64}}, "use the checkout inside the bundle: tar -xf .* deskmate"),
        ({"accelerator": "abacus"}, "not those of this checkout"),
        ({"format": 2}, "format 2 and this Deskmate reads 1"),
        ({"model": "../../Tiny"}, "not in its list"),
    ],
)
def test_a_bundle_for_somewhere_else_is_refused(place: Place, changes: dict[str, str], words: str):
    kind = changes.get("accelerator", accelerator())
    locks = {"locks": bundle.lock_digests(kind)} if kind in ("cpu", "cuda") else {}
    written(place.file, manifest(**{**locks, **changes}))
    with pytest.raises(BadConfiguration, match=words):
        place.bring()
    assert place.is_empty()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"format": "1"}'])
def test_a_manifest_that_says_nothing_is_refused(place: Place, text: bytes):
    written(place.file, text)
    with pytest.raises(BadConfiguration, match=r"manifest\.json says nothing|format"):
        place.bring()
    assert place.is_empty()


def test_another_digest_than_the_one_told_is_refused_before_anything_is_unpacked(place: Place):
    written(place.file)
    with pytest.raises(BadConfiguration, match="not what was signed off"):
        place.bring("0" * 64)
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        place.bring("abc")
    assert place.is_empty()


def test_a_folder_with_a_link_in_it_or_without_its_list_is_refused(place: Place, tmp_path: Path):
    folder = tmp_path / "unpacked"
    with tarfile.open(written(place.file)) as tar:
        tar.extractall(folder, filter="data")
    (folder / WHEEL).rename(tmp_path / "elsewhere.whl")
    (folder / WHEEL).symlink_to(tmp_path / "elsewhere.whl")
    with pytest.raises(BadConfiguration, match="plain files only"):
        place.bring(file=folder)
    (folder / WHEEL).unlink()
    with pytest.raises(BadConfiguration, match="ends too early"):
        place.bring(file=folder)
    (folder / SUMS).unlink()
    with pytest.raises(BadConfiguration, match="no SHA256SUMS"):
        place.bring(file=folder)
    assert place.is_empty()


def test_without_room_nothing_is_begun(place: Place, monkeypatch: pytest.MonkeyPatch):
    written(place.file)
    usage = shutil.disk_usage(place.file)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Refusal, match=r"needs .* and 0\.0 MB are free; make room"):
        place.bring()
    with pytest.raises(Refusal, match="make room"):
        bundle.write(place.file.with_name("another.tar"), members(), NOW, place.said.append)
    assert place.is_empty()
    assert not place.file.with_name("another.tar").exists()


def test_the_command_line_tells_the_refusal_with_its_exit_code(place: Place):
    broken_wheel(written(place.file))
    environment = {**os.environ, "DESKMATE_HOME": str(place.home.folder), "DESKMATE_PORT": str(free_port())}

    def up(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "deskmate"), "up", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = up("--bundle", str(place.file), "--detach")
    assert done.returncode == 78
    assert done.stderr.startswith("deskmate: the bundle ")
    assert "copy the bundle again" in done.stderr
    assert up("--bundle-digest", "0" * 64).returncode == 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# -- writing ----------------------------------------------------------------------------------------------------


def test_the_same_files_make_the_same_bytes_and_common_tools_read_them(place: Place, tmp_path: Path):
    one, other = written(place.file), written(tmp_path / "other.tar")
    assert one.read_bytes() == other.read_bytes()
    names = [info.name for info, _ in members_of(one)]
    assert names == [SUMS, *(member.name for member in members())]

    subprocess.run(["tar", "-xf", one, "deskmate"], cwd=tmp_path, check=True)
    assert {entry.name for entry in tmp_path.iterdir()} >= {"deskmate"}
    assert not (tmp_path / "wheels").exists()
    assert subprocess.run([tmp_path / "deskmate/deskmate"], capture_output=True, check=True).stdout == b"started\n"
    subprocess.run(["tar", "-xf", one], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True, capture_output=True)


def test_a_file_that_changes_meanwhile_leaves_the_old_bundle_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch):
    before = written(place.file).read_bytes()
    growing = place.file.with_name("growing")
    growing.write_bytes(b"before")
    member = Member("deskmate/growing", growing)
    monkeypatch.setattr(Member, "digest", lambda self: growing.write_bytes(b"aftter") and "0" * 64)
    with pytest.raises(Refusal, match="changed while the bundle was made"):
        bundle.write(place.file, [member], NOW, place.said.append)
    assert place.file.read_bytes() == before
    assert sorted(entry.name for entry in place.file.parent.iterdir()) == ["deskmate.tar", "growing"]


def test_what_a_killed_call_left_is_written_over_and_a_running_one_is_not(place: Place):
    part = place.file.with_name(".deskmate.tar.part")
    part.write_bytes(b"left over" * 10_000)
    written(place.file)
    assert not part.exists()
    place.bring()

    with bundle.replacing(place.file), pytest.raises(Refusal, match="another call is writing"):
        written(place.file)


def test_an_output_that_cannot_be_is_refused_before_anything_is_fetched(place: Place, tmp_path: Path):
    def make(output: Path, model: Path | None = None) -> None:
        bundle.make(ROOT, place.home, "cpu", model, output, place.said.append)

    with pytest.raises(BadConfiguration, match="mkdir -p"):
        make(tmp_path / "missing" / "deskmate.tar")
    with pytest.raises(UsageError, match="is a folder"):
        make(tmp_path)
    with pytest.raises(BadConfiguration, match="is not a model directory"):
        make(place.file, tmp_path)
    assert not place.home.folder.exists()


def test_a_models_links_become_files_and_hidden_ones_stay_out(tmp_path: Path):
    model = tmp_path / "Tiny"
    (model / ".cache").mkdir(parents=True)
    (model / ".cache" / "lock").touch()
    (model / "more").mkdir()
    for name in ("config.json", "more/vocabulary.txt"):
        (model / name).write_text("{}")
    (tmp_path / "blob").write_bytes(b"weights")
    (model / "model.safetensors").symlink_to("../blob")
    found = {member.name: member for member in bundle.model_members(model)}
    assert sorted(found) == [
        f"models/Tiny/{name}" for name in ("config.json", "model.safetensors", "more/vocabulary.txt")
    ]
    assert found["models/Tiny/model.safetensors"].digest() == hashlib.sha256(b"weights").hexdigest()
    (model / "od\nd").touch()
    with pytest.raises(BadConfiguration, match="rename the file"):
        bundle.model_members(model)


def test_the_list_of_hashes_can_be_signed_and_a_changed_one_does_not_verify(tmp_path: Path):
    def typed(text: str) -> str:
        done = shell(text, tmp_path, {}, 60)
        return done.stdout if done.returncode == 0 else ""

    digest, _ = bundle.write(tmp_path / "deskmate.tar", members(), NOW, lambda text: None)
    assert typed(commands("bundle-digest")).split()[0] == digest
    typed(commands("bundle-sign"))
    assert typed(commands("bundle-verify")) == "Verified OK\n"
    written(tmp_path / "deskmate.tar", manifest(version="0.1.1"))
    assert typed(commands("bundle-digest")).split()[0] != digest
    assert typed(commands("bundle-verify")) == ""


# -- the checkout -----------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Our own .gitignore, and something for each of its lines, at the root and deeper."""
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    root = tmp_path / "repository"
    root.mkdir()
    shutil.copy(ROOT / ".gitignore", root)
    lines = [line for line in (root / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    for line in (*lines, "kept", "folder/", "variable/"):
        inside = "file" if line.endswith("/") else ""
        name = line.strip("/").replace("*", "x")
        for file in (root / name / inside, root / "deep" / "er" / name / inside, root / f"{name}.d" / name):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_text(name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    return root


def test_without_git_the_same_files_are_found_as_git_tracks(repository: Path, tmp_path: Path):
    with_git = [file.relative_to(repository) for file in checkout.files_of(repository, ())]
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns(".git"))
    without = [file.relative_to(copy) for file in checkout.files_of(copy, ())]
    assert without == with_git
    assert Path("kept") in with_git
    assert Path("deep/er/var/file") in with_git
    assert Path("var/file") not in with_git


def test_the_data_folder_and_the_bundle_stay_out_wherever_they_are(repository: Path):
    (repository / "data").mkdir()
    for name in ("data/secret", "bundle.tar"):
        (repository / name).touch()
    shutil.rmtree(repository / ".git")
    found = {str(file.relative_to(repository)) for file in checkout.files_of(repository, [repository / "data"])}
    assert "bundle.tar" in found
    assert "data/secret" not in found
    assert repository / "bundle.tar" not in checkout.files_of(repository, [repository / "bundle.tar"])
