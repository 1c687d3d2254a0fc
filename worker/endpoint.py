"""vLLM's plug-in of ours: /deskmate/plan, /deskmate/check, and deskmate_worker_* beside vLLM's /metrics.

Runs inside vLLM's server process, which finds it through worker/plugin/. Plans nothing: the plan comes by an open file.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker.vram import Usage, card_usage, host_usage

PLAN_DESCRIPTOR = "DESKMATE_PLAN_DESCRIPTOR"  # set by worker/__main__.py, inherited over exec


class DeskmatePlugin:
    """Satisfies vllm.plugins.endpoint_plugins.interface.EndpointPlugin."""

    name = "deskmate"
    required_tasks = None

    def __init__(self) -> None:
        self.engine: Any = None
        self.plan = read_plan(int(os.environ[PLAN_DESCRIPTOR]))

    def attach_router(self, app: FastAPI) -> None:
        @app.get("/deskmate/plan")
        async def plan() -> dict[str, Any]:
            return self.plan

        self._attach_check(app)
        REGISTRY.register(WorkerMetrics(self.plan))

    def _attach_check(self, app: FastAPI) -> None:
        """A chat looked at as if it were asked for, and not asked for: its schema, its tools. 204, or vLLM's own error.

        vLLM itself looks at them when an answer begins, which may be long after somebody was told to wait.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        @app.post("/deskmate/check")
        async def check(raw: Request) -> Response:
            chat, config = raw.app.state.openai_serving_chat, self.engine.vllm_config
            try:
                request = ChatCompletionRequest.model_validate(await raw.json())
                wrong = await chat.render_chat_request(request)
                request.to_sampling_params(1, {}).verify(
                    config.model_config,
                    config.speculative_config,
                    config.structured_outputs_config,
                    chat.renderer.tokenizer,
                )
            except Exception as error:  # noqa: BLE001 - vLLM says which of them are the caller's
                wrong = chat.create_error_response(error)
            if isinstance(wrong, tuple):  # what it would read
                return Response(status_code=204)
            return Response(wrong.model_dump_json(), wrong.error.code, media_type="application/json")

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """The engine has measured its KV cache by now; on a card the plan held an estimate."""
        self.engine = engine_client
        cache = getattr(getattr(engine_client, "vllm_config", None), "cache_config", None)
        blocks, block_tokens = getattr(cache, "num_gpu_blocks", None), getattr(cache, "block_size", None)
        if blocks and block_tokens:
            self.plan["block_tokens"] = block_tokens
            self.plan["kv_tokens"] = blocks * block_tokens


def read_plan(descriptor: int) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    plan: dict[str, Any] = json.loads(os.pread(descriptor, size, 0))
    return plan


class WorkerMetrics(Collector):
    """Everything is read when it is scraped."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan

    def collect(self) -> Iterator[Metric]:
        yield info(self.plan)
        for name, help_text in PLANNED.items():
            yield GaugeMetricFamily(f"deskmate_worker_{name}", help_text, value=self.plan[name])
        model = self.plan["model"]
        yield GaugeMetricFamily(
            "deskmate_worker_weight_bytes", "Bytes of the loaded weights.", value=model["weight_bytes"]
        )
        usage = self.usage()
        if usage:
            yield from memory_metrics(usage)

    def usage(self) -> Usage | None:
        if self.plan["device"]["kind"] == "cuda":
            return card_usage(self.plan["environment"]["CUDA_VISIBLE_DEVICES"])
        return host_usage()


PLANNED = {
    "seats": "Requests that run at the same time.",
    "context_tokens": "Longest prompt and answer together, in tokens.",
    "kv_tokens": "Tokens that the KV cache holds.",
    "kv_bytes": "Bytes of the KV cache.",
    "block_tokens": "Tokens of one block of the KV cache.",
}


def info(plan: dict[str, Any]) -> Metric:
    model, device = plan["model"], plan["device"]
    labels = {
        "model": model["id"],
        "architecture": model["architecture"],
        "dtype": model["dtype"],
        "device": device["kind"],
        "device_name": device["name"],
        "demo": "1" if model["demo"] else "0",
    }
    family = GaugeMetricFamily("deskmate_worker_info", "What is served, on what; always 1.", labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def memory_metrics(usage: Usage) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "deskmate_worker_memory_used_bytes",
        "Memory in use: of the card, or on CPU of the server and its engine.",
        value=usage.used_bytes,
    )
    yield GaugeMetricFamily(
        "deskmate_worker_memory_total_bytes",
        "Memory of the card, or of the machine or container.",
        value=usage.total_bytes,
    )
    by_process = GaugeMetricFamily(
        "deskmate_worker_memory_process_bytes", "Memory by process, of the same kind.", labels=["pid", "process"]
    )
    for pid, name, size in usage.processes:
        by_process.add_metric([str(pid), name], size)
    yield by_process
