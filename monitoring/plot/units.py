"""Numbers as people read them, and the marks of an axis. Knows Grafana's names of units, and no picture."""

import math
from collections.abc import Sequence

SHORT = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, ""))
SECONDS = ((86400.0, " d"), (3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))
BINARY = ((2.0**40, " TiB"), (2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"), (1.0, " B"))
DECIMAL = ((1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s"))
SCALES = {"short": SHORT, "s": SECONDS, "bytes": BINARY, "Bps": DECIMAL, "reqps": SHORT, "ops": SHORT}
CLOCK = (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)  # seconds between marks
BEHIND = {"reqps": " req/s", "ops": " /s"}


def shown(value: float, unit: str) -> str:
    """0.25 s is `250 ms`, 0.25 percentunit is `25 %`."""
    if unit == "percentunit":
        return f"{digits(value * 100)} %"
    size, name = next((scale for scale in SCALES[unit] if abs(value) >= scale[0]), SCALES[unit][-1])
    if value == 0:
        size, name = 1.0, {"s": " s", "bytes": " B", "Bps": " B/s"}.get(unit, "")
    return f"{digits(value / size)}{name}{BEHIND.get(unit, '')}"


def digits(value: float) -> str:
    """Three digits that count, no zeros behind the point."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1g}"


def marks(highest: float, unit: str) -> Sequence[float]:
    """Round numbers from 0 to at least the highest: two to six of them."""
    wanted = max(highest, 1e-6) / 4
    step = next(step for step in steps(wanted, unit) if step >= wanted * 0.999)
    return [step * index for index in range(max(1, math.ceil(highest / step - 1e-9)) + 1)]


def steps(wanted: float, unit: str) -> list[float]:
    """Distances that are round in this unit, from below to above the wanted one."""
    if unit == "s" and 5 < wanted <= CLOCK[-1]:
        return [*CLOCK]
    if unit == "bytes":
        size = next((size for size, _ in BINARY if wanted >= size), 1.0)
        return [size * 2**power for power in range(11)]
    size = 10.0 ** math.floor(math.log10(wanted))
    return [size * factor for factor in (1, 2, 2.5, 5, 10)]
