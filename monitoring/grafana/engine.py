"""The dashboard of the model server. Knows the metrics of vLLM and of the worker."""

from monitoring.grafana.panels import GREEN, RED, YELLOW, Dashboard, Panel, number

ENGINE = Dashboard(
    "engine",
    "Deskmate: Engine and VRAM · 引擎与显存",
    "What the model server does with its memory and its time.",
    [
        number(
            "Model · 模型",
            "What is served, and on what.",
            "deskmate_worker_info",
            "{{model}}, {{dtype}}, {{device_name}}",
            words={"1": "serving · 运行中"},
        ),
        number(
            "Memory in use · 显存占用",
            "Of the card, or on CPU of the machine; a card is filled to its plan at the start and stays there.",
            "deskmate:worker_memory_used:ratio",
            unit="percentunit",
            steps=((None, GREEN), (0.95, YELLOW), (0.97, RED)),
        ),
        number(
            "KV cache in use · KV 缓存占用",
            "Part of the cache that running answers hold; when it is full, some are put back.",
            "max(vllm:kv_cache_usage_perc)",
            unit="percentunit",
            steps=((None, GREEN), (0.8, YELLOW), (0.95, RED)),
        ),
        number(
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
            "First token in the engine · 引擎首字时间",
            "From seat to first word; what the same time in the dashboard Service has beyond it was spent in line.",
            [
                (f"histogram_quantile({q}, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))", name)
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
        Panel(
            "Worker up for · 工作进程运行时间",
            "Time since its start; each fall to zero is a start, each gap the time in which it was away.",
            [('time() - process_start_time_seconds{job="deskmate-worker"}', "worker · 工作进程")],
            unit="s",
        ),
    ],
)
