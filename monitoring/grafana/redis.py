"""The dashboard of storage and of the machine. Knows what the gateway, Redis and a node exporter tell."""

from monitoring.grafana.panels import DOWN_UP, GREEN, RED, UP_STEPS, YELLOW, Dashboard, Panel, number

DISKS = '{job="deskmate-host",device!~"(loop|ram|zram).*"}'

REDIS = Dashboard(
    "redis",
    "Deskmate: Redis and host · Redis 与主机",
    "Where people and conversations are, and the machine under it all; the host's panels need a node exporter.",
    [
        number(
            "Redis · 存储",
            "Whether the gateway can reach Redis, where people and conversations are.",
            'deskmate_up{part="redis"}',
            steps=UP_STEPS,
            words=DOWN_UP,
        ),
        number(
            "Redis memory · Redis 内存占用",
            "Of its limit; when it is full, new questions are refused. Empty without a limit.",
            "deskmate:redis_memory_used:ratio",
            unit="percentunit",
            steps=((None, GREEN), (0.7, YELLOW), (0.85, RED)),
        ),
        number(
            "Writes reach the disk · 写盘",
            "Whether Redis keeps a file of all changes, and the last write to it went well.",
            "deskmate_redis_aof_enabled * deskmate_redis_aof_last_write_ok",
            steps=UP_STEPS,
            words={"0": "no · 否", "1": "yes · 是"},
        ),
        number(
            "Refused for storage · 存储拒绝",
            "Requests of the last 5 minutes that were refused because Redis was away or full.",
            'sum(increase(deskmate_refusals_total{code=~"storage_.*"}[5m])) or vector(0)',
            steps=((None, GREEN), (1, RED)),
        ),
        number(
            "Scraped · 采集状态",
            "Whether Prometheus gets the metrics; a worker that loads or is down has none.",
            'up{job=~"deskmate-.*"}',
            "{{job}}",
            steps=UP_STEPS,
            words=DOWN_UP,
        ),
        number(
            "Host memory · 主机内存占用",
            "Of the machine, caches not counted; when it is full, the kernel ends the largest process: the worker.",
            "deskmate:host_memory_used:ratio",
            unit="percentunit",
            steps=((None, GREEN), (0.85, YELLOW), (0.95, RED)),
        ),
        number(
            "Disk free · 磁盘可用",
            "Of the fullest disk; without space Redis takes no more data.",
            "min(deskmate:host_disk_free:ratio)",
            unit="percentunit",
            steps=((None, RED), (0.1, YELLOW), (0.2, GREEN)),
        ),
        Panel(
            "Up for · 运行时间",
            "Time since the start of the gateway and of Redis.",
            [
                ('time() - process_start_time_seconds{job="deskmate-gateway"}', "gateway · 网关 {{pid}}"),
                ("deskmate_redis_uptime_seconds", "Redis"),
            ],
            unit="s",
            number=True,
        ),
        "Redis · 存储",
        Panel(
            "Memory · 内存",
            "Used counts against the limit; resident is what Redis takes of the machine, more after much was deleted.",
            [
                ("deskmate_redis_memory_used_bytes", "used · 已用"),
                ("deskmate_redis_memory_resident_bytes", "resident · 常驻"),
                ("deskmate_redis_memory_limit_bytes > 0", "limit · 上限"),
            ],
            unit="bytes",
        ),
        Panel(
            "Time to answer · 应答时间",
            "Of one question at each scrape; a slow disk or a fork makes everybody wait as long.",
            [
                ("deskmate_redis_answer_seconds", "answer · 应答"),
                ("deskmate_redis_last_fork_seconds", "last fork · 上次 fork"),
            ],
            unit="s",
            steps=((None, GREEN), (0.1, YELLOW), (0.5, RED)),
        ),
        Panel(
            "Commands per second · 每秒命令数",
            "All that the gateway asks; tokens of all answers are written together, so it grows slower than they do.",
            [("rate(deskmate_redis_commands_total[2m])", "commands · 命令")],
            unit="ops",
        ),
        Panel(
            "Connections · 连接数",
            "The gateway holds at most 64; many more are somebody else's.",
            [("deskmate_redis_connected_clients", "connections · 连接")],
        ),
        Panel(
            "File of changes · 追加文件",
            "Size of the append-only file on the disk; it is made shorter by itself when it has doubled.",
            [("deskmate_redis_aof_size_bytes", "size · 大小")],
            unit="bytes",
        ),
        Panel(
            "Signs of trouble · 异常迹象",
            "In 5 minutes: connections refused, keys thrown out, writes that waited for the disk; all must be 0.",
            [
                ("increase(deskmate_redis_rejected_connections_total[5m])", "refused · 拒绝连接"),
                ("increase(deskmate_redis_evicted_keys_total[5m])", "thrown out · 淘汰键"),
                ("increase(deskmate_redis_aof_delayed_fsyncs_total[5m])", "waited for disk · 等待写盘"),
            ],
            steps=((None, GREEN), (1, RED)),
        ),
        "Host · 主机",
        Panel(
            "Processor · CPU",
            "Part of all cores by what they do; iowait is waiting for the disk, steal is taken by other machines.",
            [
                (
                    'avg by (mode) (rate(node_cpu_seconds_total{job="deskmate-host",mode!~"idle|nice|irq"}[2m]))',
                    "{{mode}}",
                )
            ],
            unit="percentunit",
            stacked=True,
            maximum=1,
        ),
        Panel(
            "Memory of the machine · 主机内存",
            "In use without caches, against what there is.",
            [
                (
                    'deskmate:host_memory_used:ratio * node_memory_MemTotal_bytes{job="deskmate-host"}',
                    "used · 已用",
                ),
                ('node_memory_MemTotal_bytes{job="deskmate-host"}', "total · 总量"),
            ],
            unit="bytes",
        ),
        Panel(
            "Pressure · 资源压力",
            "Part of the time in which somebody waited for processor, memory or disk; memory should be 0.",
            [
                (f'rate(node_pressure_{part}_waiting_seconds_total{{job="deskmate-host"}}[2m])', legend)
                for part, legend in (("cpu", "processor · CPU"), ("memory", "memory · 内存"), ("io", "disk · 磁盘"))
            ],
            unit="percentunit",
            maximum=1,
        ),
        Panel(
            "Disk free by folder · 各目录磁盘可用",
            "The one that holds Deskmate's data folder is the one that matters; Redis' file of changes grows there.",
            [("deskmate:host_disk_free:ratio", "{{mountpoint}}")],
            unit="percentunit",
            steps=((None, RED), (0.1, YELLOW), (0.2, GREEN)),
            maximum=1,
        ),
        Panel(
            "Disk busy · 磁盘繁忙",
            "Part of the time in which a disk has work; near 100 % every answer waits for it.",
            [(f"rate(node_disk_io_time_seconds_total{DISKS}[2m])", "{{device}}")],
            unit="percentunit",
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
            maximum=1,
        ),
        Panel(
            "Time of a write · 单次写盘时间",
            "How long the disk takes for one; each change waits for it, so 10 ms here are felt in every answer.",
            [
                (
                    f"rate(node_disk_write_time_seconds_total{DISKS}[2m])"
                    f" / (rate(node_disk_writes_completed_total{DISKS}[2m]) > 0)",
                    "{{device}}",
                )
            ],
            unit="s",
            steps=((None, GREEN), (0.02, YELLOW), (0.1, RED)),
        ),
        Panel(
            "Network · 网络",
            "Bytes per second over the machine's own network cards.",
            [
                (
                    f'sum(rate(node_network_{way}_bytes_total{{job="deskmate-host",device!~"(lo|veth|docker|br-).*"}}[2m]))',
                    legend,
                )
                for way, legend in (("receive", "in · 接收"), ("transmit", "out · 发送"))
            ],
            unit="Bps",
        ),
        Panel(
            "Open files of the machine · 主机打开文件",
            "File descriptors of all processes; a line that only rises is a leak.",
            [('node_filefd_allocated{job="deskmate-host"}', "open · 已打开")],
        ),
        Panel(
            "Time to scrape · 采集耗时",
            "How long the parts take to give their metrics; seconds mean a machine that is overloaded.",
            [('scrape_duration_seconds{job=~"deskmate-.*"}', "{{job}}")],
            unit="s",
            steps=((None, GREEN), (1, YELLOW), (5, RED)),
        ),
        "Gateway · 网关",
        Panel(
            "Gateway: processor · 网关 CPU",
            "Cores in use; one gateway process can use one.",
            [('rate(process_cpu_seconds_total{job="deskmate-gateway"}[2m])', "cores · 核 {{pid}}")],
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
        ),
        Panel(
            "Gateway: memory · 网关内存",
            "Resident memory of the gateway; it should not grow from day to day.",
            [('process_resident_memory_bytes{job="deskmate-gateway"}', "resident · 常驻 {{pid}}")],
            unit="bytes",
        ),
        Panel(
            "Gateway: open files · 网关打开文件",
            "Part of the allowed files and connections in use; each person who watches an answer holds one.",
            [
                (
                    'process_open_fds{job="deskmate-gateway"} / process_max_fds{job="deskmate-gateway"}',
                    "in use · 占用 {{pid}}",
                )
            ],
            unit="percentunit",
            steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
        ),
    ],
)
