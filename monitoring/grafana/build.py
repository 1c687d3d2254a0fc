"""Makes the dashboards that Grafana loads, so that all panels look alike. Knows metrics and rules, no address.

python monitoring/grafana/build.py        writes dashboards/*.json
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "deskmate"}
COLUMNS = 24  # Grafana's grid
SIZES = {"stat": (6, 4), "timeseries": (12, 8)}
GREEN, YELLOW, RED = "green", "#EAB839", "red"
Steps = Sequence[tuple[float | None, str]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are pairs of PromQL and legend; `steps` are thresholds: from which value on which colour."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    steps: Steps = ((None, GREEN),)
    words: dict[str, str] | None = None
    stacked: bool = False
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    file: str
    title: str
    description: str
    panels: Sequence[Panel]


def stat(title: str, description: str, query: str, legend: str = "", **more: Any) -> Panel:
    return Panel(title, description, [(query, legend)], kind="stat", **more)


def quantiles(recorded: str) -> list[tuple[str, str]]:
    """The two percentiles that monitoring/rules/recording.yml makes of a histogram."""
    return [(f'{recorded}{{quantile="{q}"}}', name) for q, name in (("0.5", "p50"), ("0.95", "p95"))]


DOWN_UP = {"0": "down · 停止", "1": "up · 正常"}
UP_STEPS: Steps = ((None, RED), (1, GREEN))

SERVICE = Dashboard(
    "service",
    "Deskmate: Service · 服务",
    "What people notice: whether it answers, how long they wait, how fast it writes.",
    [
        stat(
            "Engine and Redis · 引擎与 Redis",
            "Whether the gateway can reach the parts it needs.",
            "deskmate_up",
            "{{part}}",
            steps=UP_STEPS,
            words=DOWN_UP,
        ),
        stat(
            "Waiting · 等待人数",
            "Requests in line for a seat now; a person has at most a few of them.",
            "sum(deskmate_requests_waiting)",
            steps=((None, GREEN), (1, YELLOW), (20, RED)),
        ),
        stat(
            "First token, p95 · 首字时间",
            "19 of 20 answers began within this time, the wait in line included.",
            'deskmate:first_token_seconds:quantile5m{quantile="0.95"}',
            unit="s",
            steps=((None, GREEN), (5, YELLOW), (30, RED)),
        ),
        stat(
            "Failed requests · 失败比例",
            "Part of the requests of the last 5 minutes that broke off; refusals and stopped answers do not count.",
            "deskmate:requests_failed:ratio5m",
            unit="percentunit",
            steps=((None, GREEN), (0.01, YELLOW), (0.05, RED)),
        ),
        Panel(
            "Running and waiting · 正在回答与等待",
            "When the running requests reach the seats, the next ones wait in line.",
            [
                ("sum(deskmate_requests_running)", "running · 正在回答"),
                ("sum(deskmate_requests_waiting)", "waiting · 等待"),
                ("max(deskmate_seats)", "seats · 座位"),
            ],
        ),
        Panel(
            "Tokens per second · 每秒 token 数",
            "Tokens read and written by requests that ended; a long answer shows at its end, as a step.",
            [
                ("deskmate:prompt_tokens:rate2m", "read · 输入"),
                ("deskmate:completion_tokens:rate2m", "written · 输出"),
            ],
        ),
        Panel(
            "Time to first token · 首字时间",
            "From question to the first word, the wait in line included; half are faster than p50, 19 of 20 than p95.",
            quantiles("deskmate:first_token_seconds:quantile5m"),
            unit="s",
            steps=((None, GREEN), (5, YELLOW), (30, RED)),
        ),
        Panel(
            "Time between tokens · token 间隔",
            "How fast an answer is written; above 0.2 s it is slower than people read.",
            quantiles("deskmate:inter_token_seconds:quantile5m"),
            unit="s",
            steps=((None, GREEN), (0.1, YELLOW), (0.2, RED)),
        ),
        Panel(
            "Wait in line · 排队时间",
            "Time from question to seat, of those that got one.",
            quantiles("deskmate:queue_seconds:quantile5m"),
            unit="s",
            steps=((None, GREEN), (10, YELLOW), (60, RED)),
        ),
        Panel(
            "Tokens from the cache · 缓存命中的输入",
            "Part of what was read that the engine still knew; long conversations live on it.",
            [("deskmate:cached_prompt_tokens:ratio5m", "cached · 命中")],
            unit="percentunit",
            maximum=1,
        ),
        Panel(
            "Requests by end · 请求结果",
            "Requests per second by how they ended; cancelled and left are people's own choice.",
            [("sum by (outcome) (rate(deskmate_requests_total[2m]))", "{{outcome}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Refusals by reason · 拒绝原因",
            "Requests per second that were refused, by the code the client got.",
            [("sum by (code) (rate(deskmate_refusals_total[2m]))", "{{code}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Requests by route · 各接口请求",
            "Requests per second by the API they came through; the page uses responses.",
            [("sum by (route) (rate(deskmate_requests_total[2m]))", "{{route}}")],
            unit="reqps",
            stacked=True,
        ),
    ],
)

ENGINE = Dashboard(
    "engine",
    "Deskmate: Engine and VRAM · 引擎与显存",
    "What the model server does with its memory and its time.",
    [
        stat(
            "Model · 模型",
            "What is served, and on what.",
            "deskmate_worker_info",
            "{{model}}, {{dtype}}, {{device_name}}",
            words={"1": "serving · 运行中"},
        ),
        stat(
            "Memory in use · 显存占用",
            "Of the card, or on CPU of the machine; a card is filled to its plan at the start and stays there.",
            "deskmate:worker_memory_used:ratio",
            unit="percentunit",
            steps=((None, GREEN), (0.95, YELLOW), (0.97, RED)),
        ),
        stat(
            "KV cache in use · KV 缓存占用",
            "Part of the cache that running answers hold; when it is full, some are put back.",
            "max(vllm:kv_cache_usage_perc)",
            unit="percentunit",
            steps=((None, GREEN), (0.8, YELLOW), (0.95, RED)),
        ),
        stat(
            "Worker starts in an hour · 一小时内重启",
            "How often the worker has started again; one is an upgrade, three are a fault.",
            'sum(changes(process_start_time_seconds{job="deskmate-worker"}[1h]))',
            steps=((None, GREEN), (1, YELLOW), (3, RED)),
        ),
        Panel(
            "Memory: used, total, planned · 显存：已用、总量、计划",
            "Planned are the weights and the KV cache; what is used beyond them is working space.",
            [
                ("deskmate_worker_memory_used_bytes", "used · 已用"),
                ("deskmate_worker_memory_total_bytes", "total · 总量"),
                ("deskmate_worker_weight_bytes + deskmate_worker_kv_bytes", "planned · 计划"),
            ],
            unit="bytes",
        ),
        Panel(
            "Memory by process · 各进程显存",
            "Who holds it; on a card a process that is not ours takes from what we planned with.",
            [("deskmate_worker_memory_process_bytes", "{{process}} {{pid}}")],
            unit="bytes",
            stacked=True,
        ),
        Panel(
            "KV cache in use · KV 缓存占用",
            "Near 100 % the engine puts answers back and reads their prompts again.",
            [("vllm:kv_cache_usage_perc", "in use · 占用")],
            unit="percentunit",
            maximum=1,
            steps=((None, GREEN), (0.8, YELLOW), (0.95, RED)),
        ),
        Panel(
            "Answers put back · 被抢占的请求",
            "Preemptions in 5 minutes: answers that had to give up their cache; anything above zero makes people wait.",
            [("sum(increase(vllm:num_preemptions_total[5m]))", "preemptions · 抢占")],
            steps=((None, GREEN), (1, YELLOW), (20, RED)),
        ),
        Panel(
            "Batch · 批大小",
            "Answers that are written at the same time; the engine's own line stays near zero, the gateway keeps it.",
            [
                ("vllm:num_requests_running", "running · 运行"),
                ("vllm:num_requests_waiting", "waiting · 等待"),
                ("deskmate_worker_seats", "seats · 座位"),
            ],
        ),
        Panel(
            "Prefix cache hits · 前缀缓存命中率",
            "Part of the tokens looked up that need not be read again.",
            [("deskmate:prefix_cache_hits:ratio5m", "hits · 命中")],
            unit="percentunit",
            maximum=1,
        ),
        Panel(
            "Step time · 步长时间",
            "Time between two tokens of one answer in the engine: a step writes one token of every running answer.",
            [
                (f"histogram_quantile({q}, sum by (le) (rate(vllm:inter_token_latency_seconds_bucket[5m])))", name)
                for q, name in (("0.5", "p50"), ("0.95", "p95"))
            ],
            unit="s",
        ),
        Panel(
            "Tokens per second in the engine · 引擎每秒 token 数",
            "Counted as they are read and written, not at the end of a request.",
            [
                ("sum(rate(vllm:prompt_tokens_total[2m]))", "read · 输入"),
                ("sum(rate(vllm:generation_tokens_total[2m]))", "written · 输出"),
            ],
        ),
        Panel(
            "Where the time goes · 时间分布",
            "Mean seconds of a request for waiting inside the engine, reading the prompt and writing the answer.",
            [
                (f"sum(rate({name}_sum[5m])) / (sum(rate({name}_count[5m])) > 0)", legend)
                for name, legend in (
                    ("vllm:request_queue_time_seconds", "wait · 等待"),
                    ("vllm:request_prefill_time_seconds", "read · 读入"),
                    ("vllm:request_decode_time_seconds", "write · 生成"),
                )
            ],
            unit="s",
            stacked=True,
        ),
        Panel(
            "Answers by end · 回答结束原因",
            "Per second: stop is a natural end, length the limit of tokens, abort somebody who left.",
            [("sum by (finished_reason) (rate(vllm:request_success_total[2m]))", "{{finished_reason}}")],
            unit="reqps",
            stacked=True,
        ),
    ],
)

REDIS = Dashboard(
    "redis",
    "Deskmate: Redis and host · Redis 与主机",
    "Storage as the gateway sees it, and what the gateway itself takes of its machine.",
    [
        stat(
            "Redis · 存储",
            "Whether the gateway can reach Redis, where people and conversations are.",
            'deskmate_up{part="redis"}',
            steps=UP_STEPS,
            words=DOWN_UP,
        ),
        stat(
            "Scraped · 采集状态",
            "Whether Prometheus gets the metrics; a worker that loads or is down has none.",
            'up{job=~"deskmate-.*"}',
            "{{job}}",
            steps=UP_STEPS,
            words=DOWN_UP,
        ),
        stat(
            "Gateway up for · 网关运行时间",
            "Time since the gateway's start.",
            'time() - process_start_time_seconds{job="deskmate-gateway"}',
            unit="s",
        ),
        stat(
            "Refused for storage · 存储拒绝",
            "Requests of the last 5 minutes that were refused because Redis was away or full.",
            'sum(increase(deskmate_refusals_total{code=~"storage_.*"}[5m])) or vector(0)',
            steps=((None, GREEN), (1, RED)),
        ),
        Panel(
            "Redis reachable · Redis 可达",
            "1 while the gateway reaches Redis; each dip is a time in which nobody could ask.",
            [('deskmate_up{part="redis"}', "Redis")],
            maximum=1,
        ),
        Panel(
            "Gateway: processor · 网关 CPU",
            "Cores in use; one gateway process can use one.",
            [('rate(process_cpu_seconds_total{job="deskmate-gateway"}[2m])', "cores · 核")],
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
        ),
        Panel(
            "Gateway: memory · 网关内存",
            "Resident memory of the gateway; it should not grow from day to day.",
            [('process_resident_memory_bytes{job="deskmate-gateway"}', "resident · 常驻")],
            unit="bytes",
        ),
        Panel(
            "Gateway: open files · 网关打开文件",
            "Part of the allowed files and connections in use; each person who watches an answer holds one.",
            [
                (
                    'process_open_fds{job="deskmate-gateway"} / process_max_fds{job="deskmate-gateway"}',
                    "in use · 占用",
                )
            ],
            unit="percentunit",
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
        ),
        Panel(
            "Worker: memory · 工作进程内存",
            "In use by the model server, against what the card, or on CPU the machine, has.",
            [
                ("deskmate_worker_memory_used_bytes", "used · 已用"),
                ("deskmate_worker_memory_total_bytes", "total · 总量"),
            ],
            unit="bytes",
        ),
        Panel(
            "Time to scrape · 采集耗时",
            "How long the parts take to give their metrics; seconds mean a machine that is overloaded.",
            [('scrape_duration_seconds{job=~"deskmate-.*"}', "{{job}}")],
            unit="s",
            steps=((None, GREEN), (1, YELLOW), (5, RED)),
        ),
    ],
)

DASHBOARDS = (SERVICE, ENGINE, REDIS)


def places(panels: Sequence[Panel]) -> Iterator[dict[str, int]]:
    """Where each panel stands: side by side, a new row when one does not fit."""
    x = y = row = 0
    for panel in panels:
        width, height = SIZES[panel.kind]
        if x + width > COLUMNS or (row and height != row):
            x, y = 0, y + row
        yield {"x": x, "y": y, "w": width, "h": height}
        x, row = x + width, height


def field_config(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in panel.steps]},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.words:
        options = {value: {"text": text, "index": index} for index, (value, text) in enumerate(panel.words.items())}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 2,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
        }
    return {"defaults": defaults, "overrides": []}


def options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        named = "value_and_name" if panel.queries[0][1] else "value"
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "textMode": named}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def render_panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend or "__auto"}
        for index, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": field_config(panel),
        "options": options(panel),
    }


def render(dashboard: Dashboard) -> str:
    numbered = enumerate(zip(dashboard.panels, places(dashboard.panels), strict=True), start=1)
    model = {
        "uid": f"deskmate-{dashboard.file}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["deskmate"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "Deskmate", "tags": ["deskmate"], "asDropdown": False, "keepTime": True}
        ],
        "panels": [render_panel(number, panel, place) for number, (panel, place) in numbered],
    }
    return json.dumps(model, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.file}.json").write_text(render(dashboard), encoding="utf-8")


if __name__ == "__main__":
    main()
