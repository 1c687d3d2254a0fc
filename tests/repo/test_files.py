"""What may stand in the repository: no place of this machine, no registry's name, no big file, nothing unpinned."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.settings import Settings

LARGEST_BYTES = 1 << 20
LARGER: frozenset[str] = frozenset()  # tracked files that may be larger, each for a reason
PINNED = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==[\w.!+-]+( *;[^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+")
PUBLIC_HOSTS = {"download.pytorch.org"}  # PyTorch's CPU wheels are nowhere else
SHARED_FOLDERS = {
    Path(name)
    for name in ("/", "/app", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/usr/local", "/var")
}


def texts(paths: list[Path]) -> list[tuple[Path, str]]:
    """Every file that is text."""
    found = []
    for path in paths:
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((path, data.decode("utf-8", "replace")))
    return found


def places_of_this_machine(root: Path) -> set[str]:
    """Folders in which the repository or its environment happens to stand, but for those that every machine has."""
    starts = {root, Path(sys.prefix)} - {Path(sys.base_prefix)}
    folders = {folder for start in starts for folder in (start, *start.parents)} - SHARED_FOLDERS
    return {str(folder) for folder in folders}


def configured_indexes() -> str:
    """What pip and npm are configured to use here, as they print it."""
    commands = [[sys.executable, "-m", "pip", "config", "list"], ["pip", "config", "list"]]
    commands.append(["npm", "config", "get", "registry"])
    runs = [subprocess.run(c, capture_output=True, text=True, check=False) for c in commands if shutil.which(c[0])]
    lines = [line for run in runs if run.returncode == 0 for line in run.stdout.splitlines()]
    return "\n".join(line for line in lines if not re.match(r"\S*cert", line))


def registry_hosts(listing: str) -> set[str]:
    urls = re.findall(r"https?://[^\s'\"]+", listing)
    return {urlsplit(url).hostname or "" for url in urls} - PUBLIC_HOSTS - {"", "localhost", "127.0.0.1"}


def wheel_folders(listing: str) -> set[str]:
    return set(re.findall(r"(?:file://|(?<=')|(?<= ))(/[\w./-]{4,})", listing)) - set(map(str, SHARED_FOLDERS))


def test_no_file_names_a_place_of_this_machine(root, tracked):
    places = places_of_this_machine(root) | wheel_folders(configured_indexes())
    named = re.compile("|".join(rf"(?<![\w.~-]){re.escape(place)}(?![\w-])" for place in sorted(places)))
    assert [
        f"{path.relative_to(root)}: {found[0]}" for path, text in texts(tracked) if (found := named.search(text))
    ] == []


def test_no_file_names_the_host_of_a_package_registry(root, tracked):
    hosts = registry_hosts(configured_indexes())
    assert [
        (str(path.relative_to(root)), host) for path, text in texts(tracked) for host in hosts if host in text
    ] == []


def test_hosts_and_folders_are_found_in_what_pip_and_npm_print():
    listing = (
        "global.index-url='https://me:pw@one.example/simple'\n:env:.find-links='/data/wheels file:///more/of-them'"
    )
    listing += "\nhttps://two.example/\nglobal.extra-index-url='https://download.pytorch.org/whl/cpu'"
    assert registry_hosts(listing) == {"one.example", "two.example"}
    assert wheel_folders(listing.splitlines()[1]) == {"/data/wheels", "/more/of-them"}


def test_no_tracked_file_is_large(root, tracked):
    large = {str(path.relative_to(root)) for path in tracked if path.stat().st_size >= LARGEST_BYTES}
    assert large - LARGER == set()


def test_every_module_begins_by_saying_what_it_is_for(root, tracked):
    silent = []
    for path in tracked:
        if path.suffix == ".py":
            module = ast.parse(path.read_text())
            if module.body and not ast.get_docstring(module):
                silent.append(str(path.relative_to(root)))
    assert silent == []


def test_the_locks_pin_every_requirement_with_hashes_and_name_no_address(root):
    locks = sorted((root / "deploy" / "locks").glob("*.txt"))
    assert locks
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text and " @ " not in text, lock.name
        wanted = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)).split("\n")
        for requirement in filter(None, map(str.strip, wanted)):
            assert PINNED.fullmatch(requirement), f"{lock.name}: {requirement[:80]}"


def read_settings(source: str) -> set[str]:
    """Attributes that are read of anything called settings, also under a name it was given there."""
    tree = ast.parse(source)

    def is_settings(node: ast.AST) -> bool:
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return name in aliases or name.endswith("settings")

    aliases: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_settings(node.value):
            aliases |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_settings(node.value)}


@pytest.fixture(scope="module")
def settings_read(root) -> set[str]:
    sources = [path for path in (root / "gateway").rglob("*.py") if path.name != "settings.py"]
    return set().union(*(read_settings(path.read_text()) for path in sources))


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_a_setting_is_used_by_something(settings_read, name):
    assert name in settings_read
