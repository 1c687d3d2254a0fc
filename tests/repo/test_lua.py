"""Every Lua script says what it takes and gives, is loaded, and is run by its name somewhere."""

import re

import pytest

from gateway.redis_client import LUA, load_scripts

SCRIPTS = sorted(LUA.glob("*.lua"))
PARTS = sorted((LUA / "parts").glob("*.lua"))


def header_of(text: str) -> list[str]:
    """The comment lines before the first line of code."""
    lines = text.splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    end = next((n for n, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return [line.removeprefix("--").removeprefix(" ") for line in lines[:end]]  # what goes on is indented further


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_its_reason_its_keys_its_arguments_and_its_result_in_this_order(script):
    first, *rest = header_of(script.read_text())
    assert re.match(r"[A-Z].*", first) and not re.match(r"(KEYS|ARGV|result)\b", first, re.IGNORECASE)
    said = [found[0].lower() for line in rest if (found := re.match(r"KEYS|ARGV|[Rr]esult", line))]
    assert said == ["keys", "argv", "result"]


@pytest.mark.parametrize("part", PARTS, ids=lambda path: path.stem)
def test_a_part_says_that_it_is_one_and_some_script_includes_it(part):
    assert any("Part of other scripts" in line for line in header_of(part.read_text()))
    assert any(f"-- include {part.stem}\n" in script.read_text() for script in SCRIPTS)


def test_every_script_is_loaded_whole_and_run_by_its_name_and_no_other_name_is_run(root):
    loaded = load_scripts(LUA)
    assert set(loaded) == {path.stem for path in SCRIPTS}
    assert not [name for name, script in loaded.items() if re.search("^-- include ", script.source, re.MULTILINE)]
    sources = "\n".join(path.read_text() for path in (root / "gateway").rglob("*.py"))
    assert [name for name in loaded if f'"{name}"' not in sources] == []
    run = set(re.findall(r"\.run\(\s*\"(\w+)\"", sources))
    assert run and run <= set(loaded)
