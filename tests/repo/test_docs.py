"""What the docs list is what the code has: settings, metrics, links."""

import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from gateway import settings
from gateway.metrics import Metrics
from tests.fake_worker import default_plan
from worker.endpoint import WorkerMetrics

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)")


def block(text: str, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found is not None, f"there is no block <!-- {name} --> … <!-- /{name} -->"
    return found[1].strip()


def test_the_settings_that_are_listed_are_the_settings_there_are(root):
    listed = block((root / "README.md").read_text(), "settings")
    assert listed == settings.table(), "put the output of `python -m gateway settings` into README.md"


def worker_table() -> str:
    """The worker's metrics as its plug-in gives them, in the form of the gateway's table."""
    rows = []
    for family in WorkerMetrics(default_plan("fake", 8192, 16)).collect():
        labels = ", ".join(f"`{label}`" for label in family._labelnames) or "–"
        rows.append(f"| `{family.name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


def test_the_metrics_that_are_listed_are_those_of_the_gateway(root):
    assert block((root / "docs/metrics.md").read_text(), "gateway") == Metrics("0").table()


def test_the_metrics_that_are_listed_are_those_the_worker_adds(root):
    assert block((root / "docs/metrics.md").read_text(), "worker") == worker_table()


def test_every_metric_of_vllm_that_is_listed_is_one_of_the_installed_vllm(root):
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("vLLM is not installed here")
    declared = "".join(path.read_text() for path in (Path(vllm.origin).parent / "v1" / "metrics").rglob("*.py"))
    names = re.findall(r"^\| `(vllm:\w+)`", block((root / "docs/metrics.md").read_text(), "vllm"), re.MULTILINE)
    assert len(names) >= 10
    missing = [name for name in names if f'"{name.removesuffix("_total")}"' not in declared]
    assert [name for name in missing if name not in declared] == []


def test_every_metric_that_prometheus_files_and_docs_name_is_listed(root, tracked):
    listed = (root / "docs/metrics.md").read_text()
    named = set()
    for path in tracked:
        if path.suffix in (".md", ".yml", ".yaml", ".json") and path.is_relative_to(root / "monitoring"):
            named |= set(re.findall(r"\b(?:vllm:|deskmate_(?:worker_)?)\w+(?=[\s{(\[)])", path.read_text()))
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert [name for name in sorted(bare) if f"`{name}`" not in listed] == []


def test_links_in_the_docs_lead_to_files_that_exist(root, tracked):
    broken = []
    for path in tracked:
        if path.suffix != ".md":
            continue
        for target in LINK.findall(path.read_text()):
            if re.match(r"[a-z]+:|#", target):
                continue
            file = unquote(target.partition("#")[0])
            found = root / file.lstrip("/") if file.startswith("/") else path.parent / file
            if not found.exists():
                broken.append(f"{path.relative_to(root)} -> {target}")
    assert broken == []
