"""The dashboard of what people notice. Knows the gateway's metrics."""

from monitoring.grafana.panels import DOWN_UP, GREEN, RED, UP_STEPS, YELLOW, Dashboard, Panel, number, quantiles

SERVICE = Dashboard(
    "service",
    "Deskmate: Service · 服务",
    "What people notice: whether it answers, how long they wait, how fast it writes.",
    [
        number(
            "Engine and Redis · 引擎与 Redis",
            "Whether the gateway can reach the parts it needs.",
            "deskmate_up",
            "{{part}}",
            steps=UP_STEPS,
            words=DOWN_UP,
        ),
        number(
            "Waiting · 等待人数",
            "Requests in line for a seat now; a person has at most a few of them.",
            "sum(deskmate_requests_waiting)",
            steps=((None, GREEN), (1, YELLOW), (20, RED)),
        ),
        number(
            "First token, p95 · 首字时间",
            "19 of 20 answers began within this time, the wait in line included.",
            'deskmate:first_token_seconds:quantile5m{quantile="0.95"}',
            unit="s",
            steps=((None, GREEN), (5, YELLOW), (30, RED)),
        ),
        number(
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
            "Longest in line · 最长等待",
            "How long the one in line longest waits already; flex can wait, promised goes on with an answer.",
            [("max by (class) (deskmate_queue_oldest_seconds)", "{{class}}")],
            unit="s",
            steps=((None, GREEN), (10, YELLOW), (60, RED)),
        ),
        Panel(
            "How even · 公平指数",
            "Jain's index of the last minute among people who always had something waiting: 1 is all alike.",
            [
                ("max(deskmate_fairness_jain)", "even · 公平"),
                ("max(deskmate_fairness_largest_share)", "largest · 最大"),
            ],
            unit="percentunit",
            maximum=1,
        ),
        Panel(
            "What runs short · 资源紧张",
            "From 1 on what can wait is refused, at 2 every new answer; what has begun runs to its end.",
            [("max by (resource) (deskmate_overload_rung)", "{{resource}}")],
            maximum=2,
            steps=((None, GREEN), (1, YELLOW), (2, RED)),
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
            "Written for nobody · 无人阅读的 token",
            "Tokens per second of answers that were stopped, left or broke off.",
            [("sum(rate(deskmate_wasted_tokens_total[2m]))", "wasted · 浪费")],
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
