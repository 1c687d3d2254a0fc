"""What javascript/calls.mjs calls, read from its text, and the table of it: `python -m tests.flow.javascript_calls`.

Knows neither Node nor a gateway.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.docs import blocks

FOLDER = Path(__file__).parent / "javascript"
CALLS = FOLDER / "calls.mjs"
LOCK = FOLDER / "package-lock.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BLOCK = "javascript calls"

_TEXT = CALLS.read_text()
# Each call, and what is tested of it, or the status that it gets.
WORKS: Mapping[str, str] = dict(re.findall(r'^call\("([^"]+)", "([^"]+)", async', _TEXT, re.MULTILINE))
REFUSED: Mapping[str, str] = {
    name: status for status, name in re.findall(r'^refused\((\d+), "([^"]+)", ', _TEXT, re.MULTILINE)
}


def versions() -> Mapping[str, str]:
    wanted: Mapping[str, str] = json.loads(LOCK.read_text())["packages"][""]["dependencies"]
    return wanted


def shown() -> str:
    """The block of docs/api.md."""
    refused = [f"`{name}`" for name, status in REFUSED.items() if status == "404"]
    sdks = ", ".join(f"`{name}` {version}" for name, version in versions().items())
    return "\n".join(
        [
            f"{len(WORKS)} rows work, {len(REFUSED)} calls are refused by a typed error. {sdks}.",
            "",
            "| call | what is tested |",
            "|---|---|",
            *(f"| `{name}` | {told} |" for name, told in WORKS.items()),
            f"| {', '.join(refused)} | 404 `unsupported_endpoint` |",
            *(f"| `{name}` | {status} |" for name, status in REFUSED.items() if status != "404"),
        ]
    )


if __name__ == "__main__":
    blocks.put(PAGE, BLOCK, shown())
