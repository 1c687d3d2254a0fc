"""What the docs list is what the code has: settings, metrics, commands, links."""

import ast
import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from gateway import settings
from gateway.metrics import Metrics
from tests.docs import tables
from tests.docs.commands import blocks
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


# the commands ---------------------------------------------------------------------------------------------------------

FEW = 8  # blocks that no test can run


def used_names(root: Path) -> set[str]:
    """The blocks that tests ask for, by name."""
    found = set()
    for file in (root / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(ast.Name("commands" | "follows") | ast.Attribute(attr="follows"), arguments):
                    found |= {one.value for one in arguments if isinstance(one, ast.Constant)}
    return found


def test_every_block_of_commands_is_run_by_a_test_or_says_why_not(root):
    assert [f"{block.page}: {block.text}" for block in blocks() if not block.mark] == []
    assert {block.word for block in blocks() if block.mark == "run"} == used_names(root)
    elsewhere = [block.word for block in blocks() if block.mark == "elsewhere"]
    assert len(elsewhere) <= FEW
    assert all(len(reason.split()) > 4 for reason in elsewhere)


def test_no_block_of_another_kind_hides_commands_from_that(root, tracked):
    kinds = {
        kind
        for path in tracked
        if path.suffix == ".md"
        for kind in re.findall(r"^```(\S*)\n.*?^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    }
    assert kinds <= {"sh", "", "python"}


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_of_the_handbook_is_what_the_code_makes(root, name):
    listed = block(tables.PAGE.read_text(), name)
    assert listed == tables.TABLES[name](), "run `python -m tests.docs.tables`"
    assert "|  |" not in listed, "an option says nothing of itself"


def test_the_images_to_carry_along_are_those_that_are_used(root):
    (text,) = [block.text for block in blocks() if "docker save" in block.text]
    carried = set(re.findall(r"[\w/-]+:v?\d[\w.-]+", text))
    files = [root / "docker-compose.yml", *(root / "deploy").glob("*.Dockerfile")]
    used = set(re.findall(r"^(?:\s+image: |FROM )(\S+:v?\d\S+)", "\n".join(map(Path.read_text, files)), re.MULTILINE))
    assert carried == used
    assert len(used) >= 6


def test_links_to_a_section_lead_to_one(root, tracked):
    pages = {path: path.read_text() for path in tracked if path.suffix == ".md"}
    broken = []
    for path, text in pages.items():
        for target in LINK.findall(text):
            file, _, section = target.partition("#")
            page = (path.parent / file).resolve() if file else path
            if section and page in pages and section not in sections(pages[page]):
                broken.append(f"{path.relative_to(root)} -> {target}")
    assert broken == []


def sections(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
