"""Every metric of the gateway is declared here; the only importer of prometheus_client. Knows no route and no storage.

Nothing is counted per token: a request is counted once, at its end. Labels are bounded sets, never people or ids.
Several processes of one machine share a folder, and a scrape of any of them tells of all: what was counted by one that
is gone still counts, so a restart is no step back; gauges are of those that live.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from gateway.admission import LineState
from gateway.events import Finished

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WAIT_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60, 180, 600)
_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
ROUTES = ("responses", "chat_completions", "completions", "messages")
OUTCOMES = ("completed", "incomplete", "cancelled", "failed", "refused", "left")
WASTED = frozenset({"cancelled", "failed", "left"})  # what was written is of no use
# An alert or a panel names them.
WATCHED_CODES = ("storage_down", "storage_full", "engine_lost", "queue_full", "overloaded")


@dataclass(frozen=True, slots=True)
class _Told:
    """A metric that Redis tells in a field of INFO; `scale` turns its unit into ours."""

    name: str
    field: str
    meaning: str
    family: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily
    scale: float = 1.0


_TOLD_BY_REDIS = (
    _Told("memory_used_bytes", "used_memory", "Memory that Redis counts against its limit."),
    _Told("memory_limit_bytes", "maxmemory", "Its limit (`maxmemory`), above which it takes no more data; 0: none."),
    _Told("memory_resident_bytes", "used_memory_rss", "Memory that Redis takes of the machine."),
    _Told("connected_clients", "connected_clients", "Connections to Redis."),
    _Told("rejected_connections", "rejected_connections", "Connections refused, by `maxclients`.", CounterMetricFamily),
    _Told("commands", "total_commands_processed", "Commands answered.", CounterMetricFamily),
    _Told("evicted_keys", "evicted_keys", "Keys thrown out to make room: data lost.", CounterMetricFamily),
    _Told("aof_enabled", "aof_enabled", "Whether changes go to the append-only file: 1 or 0."),
    _Told("aof_last_write_ok", "aof_last_write_status", "Whether the last write to that file went well: 1 or 0."),
    _Told("aof_last_rewrite_ok", "aof_last_bgrewrite_status", "Whether it was last made shorter with success: 1 or 0."),
    _Told("aof_size_bytes", "aof_current_size", "Size of that file on the disk."),
    _Told("aof_delayed_fsyncs", "aof_delayed_fsync", "Writes that waited for a slow disk.", CounterMetricFamily),
    _Told("last_fork_seconds", "latest_fork_usec", "How long the last fork made everybody wait.", scale=1e-6),
    _Told("uptime_seconds", "uptime_in_seconds", "Time since the start of Redis."),
)
_ANSWER = ("deskmate_redis_answer_seconds", "Time Redis took to answer this scrape.")
_LINE = (
    ("deskmate_queue_requests", "Requests in line at all gateways.", ("class",)),
    ("deskmate_queue_oldest_seconds", "How long the one in line longest has waited.", ("class",)),
    ("deskmate_queue_people", "People who wait in line.", ()),
    ("deskmate_seats_taken", "Seats that are given, by all gateways.", ()),
    (
        "deskmate_queue_behind_tokens",
        "Service that who was given least of those waiting lacks to the virtual clock.",
        (),
    ),
    (
        "deskmate_fairness_jain",
        "Jain's index of the last minute among people who had something waiting all the time: 1 is all alike.",
        (),
    ),
    ("deskmate_fairness_largest_share", "What that one of them was given who was given most, of all they were.", ()),
    ("deskmate_fairness_people", "How many they were; with fewer than two there is nothing to compare.", ()),
)


class Metrics:
    """All metrics of one gateway process, on a registry of its own.

    `folder`: where it shares them; prometheus_client must have been told of it before it was imported.
    """

    def __init__(self, version: str, folder: Path | None = None) -> None:
        self._folder = folder
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter(
            "deskmate_requests",
            "Requests that reached the engine's queue, by route and how they ended.",
            ("route", "outcome"),
            registry=own,
        )
        self.refusals = Counter("deskmate_refusals", "Requests refused, by the error's code.", ("code",), registry=own)
        self.prompt_tokens = Counter("deskmate_prompt_tokens", "Tokens read, by route.", ("route",), registry=own)
        self.cached_tokens = Counter(
            "deskmate_cached_prompt_tokens",
            "Tokens read that were in the prefix cache, by route.",
            ("route",),
            registry=own,
        )
        self.completion_tokens = Counter(
            "deskmate_completion_tokens", "Tokens written, by route.", ("route",), registry=own
        )
        self.wasted_tokens = Counter(
            "deskmate_wasted_tokens",
            "Tokens written of answers that were stopped, left or broke off, by route.",
            ("route",),
            registry=own,
        )
        self.queue_seconds = Histogram(
            "deskmate_queue_seconds",
            "Time in line until a seat was given.",
            ("route",),
            buckets=_WAIT_BUCKETS,
            registry=own,
        )
        self.first_token_seconds = Histogram(
            "deskmate_first_token_seconds",
            "Time to first token (TTFT), the wait in line included.",
            ("route",),
            buckets=_WAIT_BUCKETS,
            registry=own,
        )
        self.inter_token_seconds = Histogram(
            "deskmate_inter_token_seconds",
            "Mean time between the tokens of one answer.",
            ("route",),
            buckets=_TOKEN_BUCKETS,
            registry=own,
        )
        self.running = Gauge(
            "deskmate_requests_running", "Requests that hold a seat.", registry=own, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "deskmate_requests_waiting", "Requests in line.", registry=own, multiprocess_mode="livesum"
        )
        self.seats = Gauge(
            "deskmate_seats", "Seats of the engines that are ready.", registry=own, multiprocess_mode="livemax"
        )
        self.up = Gauge(
            "deskmate_up",
            "Whether a part is there: 1 or 0.",
            ("part",),
            registry=own,
            multiprocess_mode="livemostrecent",
        )
        self.overload = Gauge(
            "deskmate_overload_rung",
            "Whether something runs short: 1 refuses what can wait, 2 every new answer.",
            ("resource",),
            registry=own,
            multiprocess_mode="livemax",
        )
        self._redis, self._line = _Redis(), _Line()
        own.register(self._redis)
        own.register(self._line)
        self.build = Gauge(
            "deskmate_build_info",
            "Always 1; the version is its label.",
            ("version",),
            registry=own,
            multiprocess_mode="livemax",
        )
        self.build.labels(version).set(1)
        self._process = ProcessCollector(registry=own) if folder is None else _Processes(folder)
        self._platform = PlatformCollector(registry=own)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """To Prometheus a series that appears with 1 has not grown: the first failure of a day would be missed."""
        for code in WATCHED_CODES:
            self.refusals.labels(code)
        for route in ROUTES:
            for outcome in OUTCOMES:
                self.requests.labels(route, outcome)
            for counter in (self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.wasted_tokens):
                counter.labels(route)
            for histogram in (self.queue_seconds, self.first_token_seconds, self.inter_token_seconds):
                histogram.labels(route)

    def turn_finished(self, outcome: Finished) -> None:
        """Count a turn of /v1/responses."""
        timing = outcome.timing
        first = timing.queued + timing.prefill if timing.prefill else None
        self.count(
            "responses",
            outcome.status,
            outcome.prompt_tokens,
            outcome.cached_tokens,
            outcome.completion_tokens,
            timing.queued,
            first,
            timing.decode,
        )

    def count(
        self,
        route: str,
        outcome: str,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        queue_seconds: float,
        first_seconds: float | None,
        decode_seconds: float,
    ) -> None:
        """Count one request at its end. `first_seconds` is None when no token came."""
        self.requests.labels(route, outcome).inc()
        self.prompt_tokens.labels(route).inc(prompt_tokens)
        self.cached_tokens.labels(route).inc(cached_tokens)
        self.completion_tokens.labels(route).inc(max(0, completion_tokens))
        if outcome in WASTED:
            self.wasted_tokens.labels(route).inc(max(0, completion_tokens))
        self.queue_seconds.labels(route).observe(queue_seconds)
        if first_seconds is not None:
            self.first_token_seconds.labels(route).observe(first_seconds)
        if completion_tokens > 1 and decode_seconds > 0:
            self.inter_token_seconds.labels(route).observe(decode_seconds / (completion_tokens - 1))

    def redis_told(self, fields: Mapping[str, str], seconds: float) -> None:
        """What the next scrape shows of Redis: the fields of INFO, nothing without any, and how long they took."""
        self._redis.fields, self._redis.seconds = fields, seconds

    def line_told(self, state: LineState | None) -> None:
        """What the next scrape shows of the line; nothing while Redis is away."""
        self._line.state = state

    def render(self) -> bytes:
        """The exposition of all metrics, as Prometheus reads it."""
        return generate_latest(self._registry if self._folder is None else self._together(self._folder))

    def _together(self, folder: Path) -> CollectorRegistry:
        _forget_the_dead(folder)
        together = CollectorRegistry()
        MultiProcessCollector(together, str(folder))  # type: ignore[no-untyped-call]
        for collector in (self._redis, self._line, self._process, self._platform):
            together.register(collector)
        return together

    def table(self) -> str:
        """The metrics as a Markdown table: name, kind, labels, meaning. The docs hold it; a test compares."""
        declared = [metric for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]
        told = [told.family(f"deskmate_redis_{told.name}", told.meaning) for told in _TOLD_BY_REDIS]
        rows = [_row(m._name, type(m).__name__.lower(), m._documentation, m._labelnames) for m in declared]
        rows += [_row(m.name, m.type, m.documentation) for m in [*told, GaugeMetricFamily(*_ANSWER)]]
        rows += [_row(name, "gauge", meaning, labels) for name, meaning, labels in _LINE]
        return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


class _Processes(Collector):
    """What ProcessCollector tells of one process, of each of them: its pid is a label."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for pid in sorted({pid for pid, _ in _gauges(self._folder)}):
            for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                of_all = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                of_all.samples += [s._replace(labels={**s.labels, "pid": str(pid)}) for s in family.samples]
        yield from families.values()


def _forget_the_dead(folder: Path) -> None:
    """Their gauges go. A file that its process does not have in memory is not its own: a pid is used again one day."""
    for pid, file in _gauges(folder):
        try:
            is_held = str(file) in Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            is_held = False
        if not is_held:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _gauges(folder: Path) -> list[tuple[int, Path]]:
    return [(int(file.stem.rpartition("_")[2]), file) for file in folder.glob("gauge_live*_*.db")]


class _Redis(Collector):
    """Shows nothing while there is no answer: the last gauges of a server that is away would be taken for its state."""

    fields: Mapping[str, str] = {}
    seconds = 0.0

    def collect(self) -> Iterator[Metric]:
        for told in _TOLD_BY_REDIS:
            if (text := self.fields.get(told.field)) is not None:
                yield told.family(f"deskmate_redis_{told.name}", told.meaning, value=_number(text) * told.scale)
        if self.fields:
            yield GaugeMetricFamily(*_ANSWER, value=self.seconds)


class _Line(Collector):
    """What Redis tells of the line, likewise."""

    state: LineState | None = None

    def collect(self) -> Iterator[Metric]:
        if self.state is None:
            return
        state = self.state
        fairness = state.fairness
        one = (state.people, state.flying, state.behind, fairness.jain, fairness.largest, fairness.people)
        values = (state.waiting, state.oldest_seconds, *({"": value} for value in one))
        for (name, meaning, labels), of_each in zip(_LINE, values, strict=True):
            family = GaugeMetricFamily(name, meaning, labels=labels)
            for label, value in of_each.items():
                family.add_metric([label] if labels else [], value)
            yield family


def _number(text: str) -> float:
    return float({"ok": "1", "err": "0"}.get(text, text))


def _row(name: str, kind: str, meaning: str, labels: Sequence[str] = ()) -> str:
    full = f"{name}_total" if kind == "counter" else name
    return f"| `{full}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '–'} | {meaning} |"
