"""Stages of the start are read from lines that vLLM 0.32 wrote."""

import pytest

from worker.stages import Stage, stage_of

LOG = r"""
(APIServer pid=10889) INFO 11-25 00:05:41 [api_utils.py:347]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.32.0
(APIServer pid=10889) INFO 11-25 00:05:41 [api_utils.py:286] non-default args: {'uds': 'w.sock', 'seed': 0}
(APIServer pid=10889) INFO 11-25 00:05:58 [model.py:733] Resolved architecture: LlamaForCausalLM
(APIServer pid=10889) INFO 11-25 00:05:58 [model.py:2152] Using max model len 8192
(EngineCore pid=11419) INFO 11-25 00:06:13 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='m'
(EngineCore pid=11419) INFO 11-25 00:06:15 [cpu_model_runner.py:68] Starting to load model /models/SmolLM2...
(EngineCore pid=11419) INFO 11-25 00:06:15 [base_loader.py:82] Initializing model took 0.281889 seconds
Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00,  1.36it/s]
(EngineCore pid=11419) INFO 11-25 00:06:16 [default_loader.py:501] Loading weights took 0.74 seconds
(EngineCore pid=11419) INFO 11-25 00:06:17 [cpu_worker.py:260] Explicitly set (1.0/7.59) GiB for KV cache on node 0.
(EngineCore pid=11419) INFO 11-25 00:06:17 [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum concurrency for 8,192 tokens per request: 5.69x
(EngineCore pid=11419) INFO 11-25 00:06:18 [core.py:402] init engine (profile, create kv cache, warmup model) took 1.51 s
(APIServer pid=10889) INFO 11-25 00:06:20 [entry.py:140] Starting vLLM server on unix:/run/worker.sock
INFO:     Started server process [10889]
INFO:     Waiting for application startup.
INFO:     Application startup complete.
"""  # noqa: E501


def test_the_stages_of_a_real_start_come_once_each_and_in_order() -> None:
    stages = [stage for line in LOG.splitlines() if (stage := stage_of(line))]
    assert stages == list(Stage)


@pytest.mark.parametrize("line", [
    "", "INFO:     Shutting down", "INFO:     Application shutdown complete.",
    "(EngineCore pid=5831) INFO 11-24 23:57:12 [core.py:1499] [shutdown] EngineCore: exiting busy loop",
])  # fmt: skip
def test_other_lines_begin_no_stage(line: str) -> None:
    assert stage_of(line) is None
