"""The marked blocks of a page: `<!-- name -->` … `<!-- /name -->`. Knows neither pages nor what stands in them."""

from pathlib import Path


def read(page: Path, name: str) -> str:
    _, block, _ = _parts(page, name)
    return block.strip("\n")


def put(page: Path, name: str, made: str) -> None:
    before, _, after = _parts(page, name)
    page.write_text(f"{before}{made}\n{after}")


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    before, begin, rest = page.read_text().partition(f"<!-- {name} -->\n")
    block, end, after = rest.partition(f"<!-- /{name} -->")
    assert end, f"{page} has no block {name}"
    return before + begin, block, end + after
