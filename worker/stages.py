"""Which stage of the start a line of vLLM's log begins. Knows lines only; showing them is the supervisor's matter."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """In the order in which they come."""

    IMPORT = "import"
    WEIGHTS = "weights"
    MEMORY = "memory"
    WARMUP = "warmup"
    SERVE = "serve"


# Each text stood in vLLM 0.32's log, on CPU or on CUDA.
BEGINNINGS = (
    ("Starting to load model", Stage.WEIGHTS),
    ("Loading weights took", Stage.MEMORY),
    ("KV cache size:", Stage.WARMUP),
    ("Application startup complete", Stage.SERVE),
    ("non-default args:", Stage.IMPORT),
)


def stage_of(line: str) -> Stage | None:
    """The stage that begins with this line; None for every other line. SERVE means that requests are answered."""
    return next((stage for text, stage in BEGINNINGS if text in line), None)
