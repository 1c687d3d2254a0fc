"""Pure: what the hardware, the model and the wishes make of vLLM's flags, its environment and its capacity.

Asks nothing, starts nothing. Memory is decided in bytes, capacity is told in tokens and seats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worker import parsers
from worker.hardware import Card, Hardware
from worker.model import Model
from worker.refusal import BadConfiguration

GIB = 1 << 30
VERSION = 1
GENERATION_DEFAULTS = {"max_tokens": 1024, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
LIVELY_TOKENS = 2048  # what a seat's conversation holds on average
LONG_CONVERSATIONS = 2  # how many of full length must fit side by side before the context is shortened
LEAST_CONTEXT = 2048  # below this nobody can chat
CONTEXT_STEP = 256
CPU_SEATS = 16
CPU_OVERHEAD_BYTES = 2 * GIB  # 1.2 GiB measured for server and engine; the rest is activations and headroom
CUDA_OVERHEAD_BYTES = 2 * GIB  # CUDA context, graphs, allocator
CUDA_MARGIN_BYTES = GIB // 2  # free memory that vLLM leaves on the card
CUDA_SHARE = 0.92
CUDA_SEATS = (8, 128)
OLDEST_CAPABILITY = (7, 5)
CPU_STEP_SECONDS, CUDA_STEP_SECONDS = 0.5, 0.15  # so long, about, do new prompts hold up at most whoever is answered
CPU_STEP_TOKENS, CUDA_STEP_TOKENS = (128, 2048), (512, 8192)
LONG_PROMPT_SHARE = 2  # one prompt takes at most this part of a step, so that a short one beside it is read at once
# Reading a token costs so many seconds of a core and so many operations for each parameter: measured with 135 M and
# 1.5 B parameters on AVX-512 with BF16 (500 and 190 tokens/s on two cores).
CPU_TOKEN_SECONDS, CPU_FLOPS = 3.4e-3, 3.65e11
# So many times as long take AVX-512 without BF16 (a guess), AVX2 with 32 and with 16 bits (150 and 50 tokens/s).
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_WIDENED, CPU_WIDE, CPU_EMULATED = 3, 3, 10
CPU_WIDE_ROOM_BYTES = 2 * GIB  # that must be left beside the weights for their twice as large KV cache
# Dense 16-bit operations a second of a generation's smaller cards, by NVIDIA's data sheets, and what comes out of it.
CUDA_FLOPS = {(7, 5): 65e12, (8, 0): 165e12, (8, 6): 50e12, (8, 9): 60e12, (9, 0): 750e12, (10, 0): 1500e12}
CUDA_OTHER_FLOPS, CUDA_EFFICIENCY = 100e12, 0.4
DRAIN_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person asked for, and where things of ours lie."""

    seats: int | None = None
    context_tokens: int | None = None
    compile: bool = False
    tool_parser: str | None = None
    """One of vLLM's, or `none`; None: chosen by the chat template."""
    reasoning_parser: str | None = None
    """The same for thoughts."""
    import_path: tuple[Path, ...] = ()
    """Folders that vLLM's Python needs to find our plug-in."""


@dataclass(frozen=True, slots=True)
class Reason:
    choice: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Capacity:
    context_tokens: int
    seats: int
    kv_tokens: int
    kv_bytes: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Device:
    kind: str
    name: str
    memory_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Plan:
    model: Model
    device: Device
    dtype: str
    capacity: Capacity
    step_tokens: int
    """Tokens that the engine reads and writes in one step, at most."""
    tool_parser: str | None
    reasoning_parser: str | None
    thinking_switch: str | None
    """The variable of the chat template that turns thinking off; None: it has none."""
    generation_defaults: Mapping[str, float]
    flags: tuple[str, ...]
    environment: Mapping[str, str]
    reasons: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan that gateway, page and metrics read; the fields are a contract, counted by `version`."""
        model, capacity, device = self.model, self.capacity, self.device
        return {
            "version": VERSION,
            "model": {
                "id": model.id,
                "path": str(model.path),
                "architecture": model.architecture,
                "parameters": model.weights.parameters,
                "weight_bytes": model.weights.loaded_bytes,
                "dtype": self.dtype,
                "demo": model.demo,
            },
            "device": {
                "kind": device.kind,
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "cores": device.cores,
            },
            "context_tokens": capacity.context_tokens,
            "seats": capacity.seats,
            "kv_tokens": capacity.kv_tokens,
            "kv_bytes": capacity.kv_bytes,
            "block_tokens": capacity.block_tokens,
            "step_tokens": self.step_tokens,
            "added_tokens": list(model.added_tokens),
            "tool_parser": self.tool_parser,
            "reasoning_parser": self.reasoning_parser,
            "thinking_switch": self.thinking_switch,
            "vision": model.vision,
            "generation_defaults": dict(self.generation_defaults),
            "flags": list(self.flags),
            "environment": dict(self.environment),
            "reasons": [{"choice": r.choice, "value": r.value, "reason": r.reason} for r in self.reasons],
        }


def plan(hardware: Hardware, model: Model, wishes: Wishes) -> Plan:
    """Raises BadConfiguration when the model does not fit or a wish cannot be granted."""
    check_wishes(model, wishes)
    side = plan_cuda(hardware, model, wishes) if on_card(hardware) else plan_cpu(hardware, model, wishes)
    tools = chosen(parsers.of_tools(model, wishes.tool_parser), "tool", side.notes)
    thoughts = chosen(parsers.of_thoughts(model, wishes.reasoning_parser), "reasoning", side.notes)
    note_template(model, side.notes)
    return Plan(
        model=side.model,
        device=side.device,
        dtype=side.dtype,
        capacity=side.capacity,
        step_tokens=side.step_tokens,
        tool_parser=tools,
        reasoning_parser=thoughts,
        thinking_switch=parsers.thinking_switch(model) if thoughts else None,
        generation_defaults={**GENERATION_DEFAULTS, **model.generation_defaults},
        flags=(*common_flags(model, side), *parsers.flags(tools, thoughts), *side.flags),
        environment={**common_environment(wishes), **side.environment},
        reasons=tuple(side.notes.reasons),
    )


def on_card(hardware: Hardware) -> bool:
    return bool(hardware.cards) and hardware.engine != "cpu"


def check_wishes(model: Model, wishes: Wishes) -> None:
    if wishes.context_tokens and wishes.context_tokens > model.context_tokens:
        raise BadConfiguration(
            f"--context {wishes.context_tokens} is longer than the {model.context_tokens} tokens that the model was "
            f"made for: {model.path}. Ask for less."
        )


# --- what both sides share ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Notes:
    """Collects the reasons while a plan is made; never leaves it."""

    reasons: list[Reason] = field(default_factory=list)

    def add(self, choice: str, value: object, reason: str) -> None:
        self.reasons.append(Reason(choice, str(value), reason))


@dataclass(frozen=True, slots=True)
class Side:
    """What the CPU or the card decides. `model`: with its weights as they are loaded."""

    model: Model
    device: Device
    dtype: str
    capacity: Capacity
    step_tokens: int
    flags: tuple[str, ...]
    environment: Mapping[str, str]
    notes: Notes


def common_flags(model: Model, side: Side) -> tuple[str, ...]:
    side.notes.add("prefix caching", "sha256", "a repeated history is not computed again; sha256 so that nobody can "
                   "craft a collision with another person's text")  # fmt: skip
    side.notes.add("drain", f"{DRAIN_SECONDS} s", "running answers may end after a stop is asked for")
    return (
        "--model", str(model.path),
        "--served-model-name", model.id,
        "--dtype", side.dtype,
        "--max-model-len", str(side.capacity.context_tokens),
        "--max-num-seqs", str(side.capacity.seats),
        "--max-num-batched-tokens", str(side.step_tokens),
        "--long-prefill-token-threshold", str(side.step_tokens // LONG_PROMPT_SHARE),
        "--enable-prefix-caching",
        "--prefix-caching-hash-algo", "sha256",
        "--enable-prompt-tokens-details",
        "--scheduling-policy", "priority",
        "--shutdown-timeout", str(DRAIN_SECONDS),
        "--generation-config", "vllm",
        "--override-generation-config", json.dumps({"repetition_penalty": GENERATION_DEFAULTS["repetition_penalty"]}),
        "--max-logprobs", "20",
        "--disable-uvicorn-access-log",
    )  # fmt: skip


def chosen(choice: parsers.Choice, what: str, notes: Notes) -> str | None:
    notes.add(f"{what} parser", choice.name or parsers.NONE, choice.reason)
    return choice.name


def note_template(model: Model, notes: Notes) -> None:
    if model.chat_template is None:
        notes.add("chat template", "none", "the model brings none, so vLLM refuses chat; choose its Instruct variant")


def common_environment(wishes: Wishes) -> dict[str, str]:
    """Nothing leaves the machine; our plug-in is found and allowed."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_PLUGINS": "deskmate",
        "PYTHONPATH": ":".join(str(path) for path in wishes.import_path),
    }


def seats_of(wishes: Wishes, usual: int, why: str, notes: Notes) -> int:
    seats = wishes.seats or usual
    notes.add("seats", seats, "asked for with --seats" if wishes.seats else why)
    return seats


def context_of(model: Model, wishes: Wishes, kv_tokens: int, notes: Notes) -> int:
    """The model's length, or so much that LONG_CONVERSATIONS of it fit side by side; at least LEAST_CONTEXT."""
    if wishes.context_tokens:
        if wishes.context_tokens > kv_tokens:
            raise too_tight(model, f"--context {wishes.context_tokens} needs more than the {kv_tokens} tokens of KV "
                            "cache that fit. Ask for less")  # fmt: skip
        notes.add("context", wishes.context_tokens, "asked for with --context")
        return wishes.context_tokens
    shared = max(kv_tokens // LONG_CONVERSATIONS, min(LEAST_CONTEXT, kv_tokens))
    if model.context_tokens <= shared:
        notes.add("context", model.context_tokens, "the length that the model was made for; it fits")
        return model.context_tokens
    context = shared // CONTEXT_STEP * CONTEXT_STEP
    if context < LEAST_CONTEXT:
        raise too_tight(model, f"only {kv_tokens} tokens of KV cache would fit beside the weights. Choose a smaller "
                        "or quantised model, or free memory")  # fmt: skip
    notes.add("context", context, f"shorter than the model's {model.context_tokens}: memory holds {kv_tokens} tokens, "
              f"and {LONG_CONVERSATIONS} conversations of full length shall fit side by side")  # fmt: skip
    return context


def step_tokens(rate: float, seconds: float, bounds: tuple[int, int], seats: int, notes: Notes) -> int:
    """So many tokens in a step that new prompts take about `seconds` of it. `rate`: tokens read in a second."""
    least, most = bounds
    tokens = max(least, min(most, int(rate * seconds) // 32 * 32)) + seats
    notes.add(
        "step", f"{tokens} tokens",
        f"new prompts hold up running answers for about {tokens / rate:.1f} s at most (estimated: {rate:.0f} of a "
        f"prompt's are read in a second), and one prompt takes 1/{LONG_PROMPT_SHARE} of a step at most",
    )  # fmt: skip
    return tokens


def too_tight(model: Model, what: str) -> BadConfiguration:
    return BadConfiguration(f"not enough memory for {model.path}: {what}.")


def gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def whole_blocks(kv_bytes: int, bytes_per_token: int, block_tokens: int) -> int:
    """Tokens that fit when memory is handed out in blocks."""
    return kv_bytes // (bytes_per_token * block_tokens) * block_tokens


# --- CPU ------------------------------------------------------------------------------------------------------------


def plan_cpu(hardware: Hardware, model: Model, wishes: Wishes) -> Side:
    notes = Notes()
    notes.add("device", "cpu", cpu_reason(hardware))
    dtype, model = cpu_dtype(hardware, model, notes)
    seats = seats_of(wishes, CPU_SEATS, "enough for a roomful of people; more share the same cores", notes)
    bytes_per_token = model.kv_values_per_token * (4 if dtype == "float32" else 2)
    kv_bytes = cpu_kv_bytes(hardware, model, seats, bytes_per_token, wishes, notes)
    kv_tokens = whole_blocks(kv_bytes, bytes_per_token, 128)
    context = context_of(model, wishes, kv_tokens, notes)
    notes.add("KV tokens", kv_tokens, f"{gib(kv_bytes)} at {bytes_per_token} bytes per token, in blocks of 128")
    rate = 1 / cpu_token_seconds(hardware, model, dtype)
    return Side(
        model=model,
        device=Device("cpu", hardware.processor, hardware.memory_bytes, hardware.cores),
        dtype=dtype,
        capacity=Capacity(context, seats, kv_tokens, kv_bytes, 128),
        step_tokens=step_tokens(rate, CPU_STEP_SECONDS, CPU_STEP_TOKENS, seats, notes),
        flags=eager_flags(wishes, notes),
        environment=cpu_environment(hardware, kv_bytes, notes),
        notes=notes,
    )


def cpu_token_seconds(hardware: Hardware, model: Model, dtype: str) -> float:
    """An estimate of the time that reading one token of a prompt takes."""
    if hardware.processor_flags & BFLOAT16_FLAGS:
        slower = 1
    elif "avx512f" in hardware.processor_flags:
        slower = CPU_WIDENED
    else:
        slower = CPU_WIDE if dtype == "float32" else CPU_EMULATED
    return slower * (CPU_TOKEN_SECONDS + 2 * model.weights.parameters / CPU_FLOPS) / hardware.cores


def cpu_reason(hardware: Hardware) -> str:
    if hardware.cards:
        return f"the CPU build of vLLM is installed, so {hardware.cards[0].name} is not used"
    return f"no NVIDIA card found; {hardware.cores} cores of {hardware.processor}"


def cpu_dtype(hardware: Hardware, model: Model, notes: Notes) -> tuple[str, Model]:
    """Also the model as it is loaded then: with 32 bits its weights take twice the memory."""
    narrow, weights = "bfloat16", model.weights
    if hardware.processor_flags & BFLOAT16_FLAGS:
        notes.add("dtype", narrow, "the processor computes with it")
        return narrow, model
    if "avx512f" in hardware.processor_flags:
        notes.add("dtype", narrow, "half the memory of 32 bits; the processor widens it (AVX-512 without BF16: slower)")
        return narrow, model
    wide_bytes = 4 * weights.parameters
    left = hardware.available_bytes - wide_bytes - CPU_OVERHEAD_BYTES
    if weights.loaded_bytes != 2 * weights.parameters or left < CPU_WIDE_ROOM_BYTES:
        wanted = gib(wide_bytes + CPU_OVERHEAD_BYTES + CPU_WIDE_ROOM_BYTES)
        notes.add("dtype", narrow, "the processor has no AVX-512 and has to emulate it; with 32 bits prompts would be "
                  f"read three times as fast, but that wants {wanted} and weights that are not quantised")  # fmt: skip
        return narrow, model
    notes.add("dtype", "float32", "the processor has no AVX-512 and would have to emulate 16 bits: prompts are read "
              "three times as fast, for twice the memory")  # fmt: skip
    return "float32", replace(model, weights=replace(weights, loaded_bytes=wide_bytes))


def cpu_kv_bytes(
    hardware: Hardware, model: Model, seats: int, bytes_per_token: int, wishes: Wishes, notes: Notes
) -> int:
    """Whole GiB, as VLLM_CPU_KVCACHE_SPACE is parsed: what the seats want, at most half of what is left beyond one."""
    needed = model.weights.loaded_bytes + CPU_OVERHEAD_BYTES
    left = hardware.available_bytes - needed
    if left < GIB:
        raise too_tight(
            model,
            f"{gib(needed + GIB)} are needed (weights {gib(model.weights.loaded_bytes)}, engine "
            f"{gib(CPU_OVERHEAD_BYTES)}, KV cache from 1 GiB), {gib(hardware.available_bytes)} are available. "
            "Free memory or choose a smaller model",
        )
    long_tokens = wishes.context_tokens or model.context_tokens
    wanted_tokens = max(seats * LIVELY_TOKENS, LONG_CONVERSATIONS * long_tokens)
    wanted = math.ceil(wanted_tokens * bytes_per_token / GIB)
    most = max(1, left // 2 // GIB)
    space = min(wanted, most)
    why = f"for {seats} seats of {LIVELY_TOKENS} tokens or {LONG_CONVERSATIONS} conversations of full length"
    if wanted > most:
        why = f"{wanted} GiB would be right {why}, but {gib(left)} are left beside the weights and others live here too"
    notes.add("KV cache", f"{space} GiB", why)
    return space * GIB


def eager_flags(wishes: Wishes, notes: Notes) -> tuple[str, ...]:
    if wishes.compile:
        notes.add("compile", "yes", "asked for: 1.3 to 1.5 times the tokens, ready a minute later")
        return ()
    notes.add("compile", "no", "ready a minute sooner; a long-lived worker may want --compile for 1.3 to 1.5 times "
              "the tokens")  # fmt: skip
    return ("--enforce-eager",)


def cpu_environment(hardware: Hardware, kv_bytes: int, notes: Notes) -> dict[str, str]:
    notes.add("executor", "in the engine's process", "0.6 GiB less, ready 8 s sooner, and no core is set aside for it")
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_bytes // GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **preload(hardware.openmp, notes),
    }


def preload(library: Path | None, notes: Notes) -> dict[str, str]:
    """The loader splits LD_PRELOAD at spaces and colons; a folder with a space is given as a search path instead."""
    if library is None:
        notes.add("preload", "none", "the environment has no lib/libiomp5.so: a busy neighbour can stall the engine")
        return {}
    if ":" in str(library):
        notes.add("preload", "none", f"the loader cannot take a path with a colon: {library}")
        return {}
    notes.add("preload", library, "without Intel's OpenMP one busy neighbour takes the engine to below 1 token/s")
    if any(character.isspace() for character in str(library)):
        return {"LD_PRELOAD": library.name, "LD_LIBRARY_PATH": str(library.parent)}
    return {"LD_PRELOAD": str(library)}


# --- card -----------------------------------------------------------------------------------------------------------


def plan_cuda(hardware: Hardware, model: Model, wishes: Wishes) -> Side:
    card = max(hardware.cards, key=lambda one: one.free_bytes)
    notes = Notes()
    notes.add(
        "device", card.name, "the card with the most free memory" if len(hardware.cards) > 1 else "the card found"
    )
    dtype = cuda_dtype(card, model, notes)
    share = cuda_share(card, notes)
    bytes_per_token = model.kv_values_per_token * 2
    kv_bytes = cuda_kv_bytes(card, model, share, notes)
    kv_tokens = whole_blocks(kv_bytes, bytes_per_token, 16)
    context = context_of(model, wishes, kv_tokens, notes)
    least, most = CUDA_SEATS
    usual = min(most, max(least, kv_tokens // LIVELY_TOKENS))
    why = f"{kv_tokens} KV tokens at {LIVELY_TOKENS} per conversation, within {least} to {most}"
    seats = seats_of(wishes, usual, why, notes)
    return Side(
        model=model,
        device=Device("cuda", card.name, card.total_bytes, hardware.cores),
        dtype=dtype,
        capacity=Capacity(context, seats, kv_tokens, kv_bytes, 16),
        step_tokens=step_tokens(cuda_rate(card, model), CUDA_STEP_SECONDS, CUDA_STEP_TOKENS, seats, notes),
        flags=("--gpu-memory-utilization", f"{share:.2f}"),
        environment={"CUDA_VISIBLE_DEVICES": card.uuid},
        notes=notes,
    )


def cuda_rate(card: Card, model: Model) -> float:
    """An estimate of the tokens of a prompt that the card reads in a second."""
    flops = CUDA_FLOPS.get(card.capability, CUDA_OTHER_FLOPS) * CUDA_EFFICIENCY
    return flops / (2 * model.weights.parameters)


def cuda_dtype(card: Card, model: Model, notes: Notes) -> str:
    major, minor = card.capability
    if card.capability < OLDEST_CAPABILITY:
        raise BadConfiguration(
            f"{card.name} has compute capability {major}.{minor}; vLLM needs 7.5 or newer. Install the CPU build to "
            f"serve {model.path} on the processor."
        )
    dtype = "bfloat16" if card.capability >= (8, 0) else "float16"
    notes.add("dtype", dtype, f"compute capability {major}.{minor}; bfloat16 begins at 8.0")
    return dtype


def cuda_share(card: Card, notes: Notes) -> float:
    """The share of the whole card that vLLM may take; rounded down, because it refuses what is not free."""
    room = min(CUDA_SHARE * card.total_bytes, card.free_bytes - CUDA_MARGIN_BYTES)
    share = math.floor(max(0.0, room) / card.total_bytes * 100) / 100
    free = f"{gib(card.free_bytes)} of {gib(card.total_bytes)} are free"
    notes.add("memory share", f"{share:.2f}", f"{free}; taken at the start, it never grows")
    return share


def cuda_kv_bytes(card: Card, model: Model, share: float, notes: Notes) -> int:
    """An estimate; vLLM measures its own need at the start and the real number stands in its metrics."""
    activations = CUDA_STEP_TOKENS[1] * model.hidden * 16 + 256 * model.vocabulary * 4
    weights, work = model.weights.loaded_bytes, CUDA_OVERHEAD_BYTES + activations
    left = int(share * card.total_bytes) - weights - work
    if left <= 0:
        raise too_tight(
            model,
            f"{gib(weights + work)} are needed (weights {gib(weights)}, work {gib(work)}, and KV cache), "
            f"{gib(card.free_bytes)} of {card.name}'s {gib(card.total_bytes)} are free. "
            "Choose a smaller or quantised model, or free the card",
        )
    why = f"what weights ({gib(weights)}) and work ({gib(work)}) leave of the share; vLLM measures the real number"
    notes.add("KV cache", gib(left), why)
    return left
