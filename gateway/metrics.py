"""Every metric of the gateway is declared here; the only importer of prometheus_client. Knows no route and no storage.

Nothing is counted per token: a request is counted once, at its end. Labels are bounded sets, never people or ids.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

from gateway.turn import Finished

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WAIT_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60, 180, 600)
_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)


class Metrics:
    """All metrics of one gateway process, on a registry of its own."""

    def __init__(self, version: str) -> None:
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
        self.running = Gauge("deskmate_requests_running", "Requests that hold a seat.", registry=own)
        self.waiting = Gauge("deskmate_requests_waiting", "Requests in line.", registry=own)
        self.seats = Gauge("deskmate_seats", "Seats of the engines that are ready.", registry=own)
        self.up = Gauge("deskmate_up", "Whether a part is there: 1 or 0.", ("part",), registry=own)
        self.build = Gauge(
            "deskmate_build_info",
            "Always 1; the version is its label.",
            ("version",),
            registry=own,
        )
        self.build.labels(version).set(1)
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)

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
        self.queue_seconds.labels(route).observe(queue_seconds)
        if first_seconds is not None:
            self.first_token_seconds.labels(route).observe(first_seconds)
        if completion_tokens > 1 and decode_seconds > 0:
            self.inter_token_seconds.labels(route).observe(decode_seconds / (completion_tokens - 1))

    def render(self) -> bytes:
        """The exposition of all metrics, as Prometheus reads it."""
        return generate_latest(self._registry)

    def table(self) -> str:
        """The metrics as a Markdown table: name, kind, labels, meaning. The docs hold it; a test compares."""
        declared = [metric for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]
        rows = [_row(metric) for metric in declared]
        return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


def _row(metric: MetricWrapperBase) -> str:
    kind = type(metric).__name__.lower()
    name = f"{metric._name}_total" if kind == "counter" else metric._name
    labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "–"
    return f"| `{name}` | {kind} | {labels} | {metric._documentation} |"
