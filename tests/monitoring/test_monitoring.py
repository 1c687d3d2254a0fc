"""Rules, alerts and dashboards against promtool and a real Prometheus, which scrapes a gateway that has work to do."""

import asyncio
import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import openai
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard
from grafana_foundation_sdk.models.dashboard import Panel as GrafanaPanel
from grafana_foundation_sdk.models.dashboard import RowPanel

from monitoring.grafana import build
from tests.docs.commands import commands, shell
from tests.gateway_process import GatewayProcess
from tests.servers import missing

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((MONITORING / "rules").glob("*.yml"))
RULE_TESTS = sorted((MONITORING / "rules" / "tests").glob("*.yml"))


def loaded(dashboard: Path) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(dashboard.read_text())
    return model


def panels_of(dashboard: Path) -> list[dict[str, Any]]:
    return [panel for panel in loaded(dashboard)["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    panels = (panel for dashboard in DASHBOARDS for panel in panels_of(dashboard))
    return sorted({target["expr"] for panel in panels for target in panel["targets"]})


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", (MONITORING / "rules" / "alerts.yml").read_text())


# the files themselves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", MONITORING / "prometheus.yml"),
        ("check", "rules", *RULES),
        ("test", "rules", *RULE_TESTS),
    ],
    ids=["config", "rules", "tests of the rules"],
)
def test_promtool_is_content_with(arguments):
    done = subprocess.run([needed("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_prometheus_is_given_every_file_of_rules():
    given = re.search(r"^rule_files:\s*\n\s+- (\S+)$", (MONITORING / "prometheus.yml").read_text(), re.MULTILINE)
    assert given is not None
    assert sorted(MONITORING.glob(given[1])) == RULES


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_is_explained_and_seen_to_fire(alert):
    rules = (MONITORING / "rules" / "alerts.yml").read_text()
    rule = re.search(rf"- alert: {alert}\n(.*?)(?=\n\n|\Z)", rules, re.DOTALL)
    assert rule is not None
    for needed in ("severity: ", "summary: ", "description: ", f"runbook: docs/alerts.md#{alert.lower()}"):
        assert needed in rule[1]
    assert f"\n## {alert}\n" in (ROOT / "docs" / "alerts.md").read_text()
    assert f'{{alertname="{alert}"}}' in (MONITORING / "rules" / "tests" / "alerts.yml").read_text()


def test_the_docs_explain_no_alert_that_does_not_exist():
    assert re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE) == alerts()


def test_the_dashboards_are_what_their_script_makes():
    made = {f"{board.file}.json": build.render(board) for board in build.DASHBOARDS}
    assert {path.name: path.read_text() for path in DASHBOARDS} == made, "run python -m monitoring.grafana.build"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_read_a_dashboard_without_losing_a_field(dashboard):
    register_default_plugins()  # the types of panels and queries
    model = GrafanaDashboard.from_json(loaded(dashboard))
    assert {type(panel) for panel in model.panels or ()} <= {GrafanaPanel, RowPanel}
    assert json.loads(json.dumps(model, cls=JSONEncoder)) == loaded(dashboard)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_read_by_somebody_new(dashboard):
    model = loaded(dashboard)
    for titled in (model, *model["panels"]):
        assert re.search(r"[A-Za-z].* · .*([\u4e00-\u9fff]|CPU)", titled["title"]), titled["title"]
    for described in (model, *panels_of(dashboard)):
        assert described["description"].endswith(".")
    for panel in panels_of(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        assert all(target["datasource"]["uid"] == "deskmate" for target in panel["targets"])


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side_and_not_over_each_other(dashboard):
    taken: set[tuple[int, int]] = set()
    for panel in loaded(dashboard)["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


# their queries on a real Prometheus ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def needed(binary: str) -> str:
    return shutil.which(binary) or missing(f"{binary} (apt install prometheus prometheus-node-exporter)")


class Prometheus:
    """Debian's Prometheus in a process of its own, with our configuration turned to a test's targets and pace."""

    def __init__(self, binary: str, folder: Path, gateway_port: int, exporter_port: int) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        shutil.copytree(MONITORING, folder, dirs_exist_ok=True)
        config = folder / "prometheus.yml"
        changed = re.sub(r"\b1[05]s\b", "1s", config.read_text())
        changed = changed.replace(":8000", f":{gateway_port}").replace(":9100", f":{exporter_port}")
        config.write_text(changed)
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.log.close()

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
        return answer["data"]

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "Prometheus has ended"
        try:
            with urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def shows_nothing(self, query: str) -> bool:
        """Whether a panel with this query would be blank; raises when the query is an error."""
        result = self.get("query", query=query)["result"]
        return all(math.isnan(float(series["value"][1])) for series in result)


@pytest.fixture(scope="module")
def exporter_port() -> Iterator[int]:
    """Debian's node exporter, as it comes."""
    binary, port = needed("prometheus-node-exporter"), free_port()
    command = [binary, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait(10)


@pytest.fixture(scope="module")
def prometheus(
    gateway: GatewayProcess, exporter_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    server = Prometheus(needed("prometheus"), tmp_path_factory.mktemp("prometheus"), gateway.port, exporter_port)
    try:
        until(lambda: server.is_ready() and gateway.readyz() == 200)
        yield server
    finally:
        server.close()


def until(true: Callable[[], bool], within_seconds: float = 15.0) -> None:
    deadline = time.monotonic() + within_seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {within_seconds} s"
        time.sleep(0.05)


async def some_work(client: openai.AsyncOpenAI) -> None:
    """A streamed chat, a turn, and a request that is refused."""
    asked = [{"role": "user", "content": "a question about the desk"}]
    stream = await client.chat.completions.create(model="fake", messages=asked, stream=True, max_tokens=32)  # type: ignore[call-overload]
    async for _ in stream:
        pass
    await client.responses.create(model="fake", input="another question", max_output_tokens=32)
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="fake", input="a third", extra_body={"unheard_of": 1})


async def test_every_panel_shows_something_of_a_gateway_at_work(gateway, prometheus):
    blank = queries()
    deadline = time.monotonic() + 25
    async with await gateway.client("reader") as client:
        while blank and time.monotonic() < deadline:
            await some_work(client)
            await asyncio.sleep(0.5)
            blank = [query for query in blank if await asyncio.to_thread(prometheus.shows_nothing, query)]
    assert blank == []


def test_all_rules_work_on_real_metrics_and_a_healthy_gateway_raises_no_alert(prometheus):
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert {rule["name"]: rule["lastError"] for rule in rules() if rule["health"] != "ok"} == {}
    assert len([rule for rule in rules() if rule["type"] == "alerting"]) == len(alerts())
    assert [alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]] == []


def test_the_panels_are_drawn_from_it_by_the_command_in_the_docs(prometheus, tmp_path: Path):
    drawn = shell(commands("plot", {"drawn": tmp_path, "http://127.0.0.1:9090": prometheus.url}), ROOT, {}, 60)
    assert drawn.stdout.split() == [str(tmp_path / f"dashboard-{file.stem}.html") for file in DASHBOARDS], drawn.stderr
