"""Reads a model directory as it lies on disk and refuses what vLLM could not serve; imports neither torch nor vLLM.

Knows no hardware: whether the model fits is the plan's question.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from os.path import lexists  # true for a link that leads nowhere: it is there, and cannot be read
from pathlib import Path
from typing import Any

from worker.refusal import BadConfiguration

Json = Mapping[str, Any]

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
GENERATING = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS",
              "_TRANSFORMERS_BACKEND_MODELS")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """What the safetensors headers promise, checked against the files."""

    parameters: int
    loaded_bytes: int
    """Bytes once loaded: 32-bit tensors are loaded as 16-bit ones."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the plan needs to know of a model directory."""

    id: str
    path: Path
    architecture: str
    weights: Weights
    context_tokens: int
    kv_values_per_token: int
    """Numbers (not bytes) that one token leaves in the KV cache over all layers."""
    hidden: int
    vocabulary: int
    vision: bool
    added_tokens: tuple[str, ...]
    chat_template: str | None
    demo: bool = False
    generation_defaults: Mapping[str, float] = field(default_factory=dict)


def read_model(folder: Path, served_name: str | None = None) -> Model:
    """Raises BadConfiguration with one line that names what is wrong, the path and what to do."""
    check_folder(folder)
    config = read_json(folder / "config.json")
    architecture = known_architecture(config, folder / "config.json")
    weights = read_weights(folder)
    tokenizer = read_tokenizer(folder)
    text = config.get("text_config") or config
    extra = read_json(folder / "deskmate.json") if lexists(folder / "deskmate.json") else {}
    try:
        return Model(
            id=served_name or folder.resolve().name,
            path=folder.resolve(),
            architecture=architecture,
            weights=weights,
            context_tokens=context_tokens(text),
            kv_values_per_token=kv_values_per_token(text),
            hidden=int(text["hidden_size"]),
            vocabulary=int(text["vocab_size"]),
            vision="vision_config" in config,
            added_tokens=added_tokens(*tokenizer),
            chat_template=chat_template(folder, tokenizer[1]),
            demo=bool(extra.get("demo", False)),
            generation_defaults=dict(extra.get("generation_defaults", {})),
        )
    except KeyError as missing:
        raise BadConfiguration(
            f"config.json lacks {missing.args[0]!r}: {folder / 'config.json'}. Download the model again, all its files."
        ) from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as wrong:
        raise BadConfiguration(
            f"a file of the model has a value of the wrong kind ({wrong}): {folder}. Download the model again."
        ) from None


# --- files ----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    if not folder.exists():
        raise BadConfiguration(f"no such model directory: {folder}. Give --model the folder that holds config.json.")
    if not folder.is_dir():
        raise BadConfiguration(f"not a directory: {folder}. Give --model the folder, not a file in it.")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None
    if empty:
        raise BadConfiguration(f"the model directory is empty: {folder}. Put the model's files there.")


def read_json(path: Path) -> Json:
    if not lexists(path):
        raise BadConfiguration(f"{path.name} is missing: {path}. Give --model a complete model directory.")
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f"{path.name} is not valid JSON ({error}): {path}. Download this file again.") from None
    if not isinstance(value, dict):
        raise BadConfiguration(f"{path.name} is not a JSON object: {path}. Download this file again.")
    return value


def unreadable(path: Path, error: OSError) -> BadConfiguration:
    return BadConfiguration(
        f"cannot read {path}: {error.strerror}. Make it readable for the worker's user, or download it again."
    )


# --- config.json ----------------------------------------------------------------------------------------------------


def known_architecture(config: Json, path: Path) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise BadConfiguration(f"config.json names no architecture: {path}. Is this a complete model directory?")
    known = known_architectures()
    for name in names:
        if not known or name in known:
            return str(name)
    raise BadConfiguration(
        f"the installed vLLM does not generate text with the architecture {names[0]}: {path}. Choose another model."
    )


def known_architectures() -> frozenset[str]:
    """What the installed vLLM generates text with, read from its source; empty when vLLM is not installed."""
    spec = find_spec("vllm")  # finds, does not import
    if spec is None or spec.origin is None:
        return frozenset()
    registry = Path(spec.origin).parent / "model_executor" / "models" / "registry.py"
    try:
        tree = ast.parse(registry.read_bytes())
    except (OSError, SyntaxError):
        return frozenset()
    return frozenset(name for statement in tree.body for name in dictionary_keys(statement))


def dictionary_keys(statement: ast.stmt) -> Iterator[str]:
    """The keys of `NAME = {...}` for the tables of generating models."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys)) if name in GENERATING:
            yield from (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def context_tokens(text: Json) -> int:
    """The length that the model was made for; a rope scaling that config.json states extends it."""
    length = int(text.get("max_position_embeddings") or text.get("n_positions") or text.get("max_seq_len") or 2048)
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type")) == "yarn":
        original = scaling.get("original_max_position_embeddings", length)
        length = max(length, int(original * float(scaling.get("factor", 1))))
    return length


def kv_values_per_token(text: Json) -> int:
    layers = attention_layers(text)
    if text.get("kv_lora_rank"):  # multi-head latent attention keeps one compressed vector
        return layers * (int(text["kv_lora_rank"]) + int(text["qk_rope_head_dim"]))
    heads = int(text["num_attention_heads"])
    size = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    return 2 * layers * int(text.get("num_key_value_heads") or heads) * size


def attention_layers(text: Json) -> int:
    """Layers that keep keys and values; linear and state-space layers keep a state of fixed size instead."""
    kinds = text.get("layer_types")
    return (
        sum("attention" in kind and "linear" not in kind for kind in kinds) if kinds else int(text["num_hidden_layers"])
    )


# --- weights --------------------------------------------------------------------------------------------------------


def read_weights(folder: Path) -> Weights:
    headers = {path.name: read_header(path) for path in weight_files(folder)}
    tensors = [tensor for header in headers.values() for tensor in header.values()]
    if not tensors:
        raise BadConfiguration(f"the safetensors files hold no tensor: {folder}. Download the model again.")
    check_index(folder, headers)
    counts = [(math.prod(tensor["shape"]), DTYPE_BITS[tensor["dtype"]]) for tensor in tensors]
    return Weights(
        parameters=sum(count for count, _ in counts),
        loaded_bytes=sum(count * min(bits, 16) // 8 for count, bits in counts),
    )


def weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, or every safetensors file; all there, none missing from a numbered series."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted({str(name) for name in weight_map(index).values()})
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        names = [name for name in names if not name.startswith("consolidated")] or names
        names = whole_series(names)
    if not names:
        raise no_weights(folder)
    for name in names:
        path = folder / name
        if not lexists(path):
            raise BadConfiguration(f"a file of the weights is missing: {path}. Download this file.")
    return [folder / name for name in names]


def whole_series(names: list[str]) -> list[str]:
    """`model-00001-of-00003.safetensors` promises two more."""
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.safetensors", names[0]) if names else None
    if not found:
        return names
    return [f"{found[1]}-{n:05}-of-{found[2]}.safetensors" for n in range(1, int(found[2]) + 1)]


def no_weights(folder: Path) -> BadConfiguration:
    if any(folder.glob("pytorch_model*.bin")):
        return BadConfiguration(
            f"only pytorch_model.bin, no safetensors: {folder}. Convert it on a machine that trusts it: "
            f"python -c 'from transformers import AutoModelForCausalLM as M; "
            f'M.from_pretrained("{folder}").save_pretrained("{folder}")\''
        )
    if any(folder.glob("*.gguf")):
        return BadConfiguration(f"only GGUF, no safetensors: {folder}. Download the model's safetensors files.")
    return BadConfiguration(f"no weights (*.safetensors) in the model directory: {folder}. Download them.")


def weight_map(index: Path) -> Json:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadConfiguration(f"the index has no weight_map: {index}. Download this file again.")
    for name in names.values():
        if not isinstance(name, str) or "/" in name:
            raise BadConfiguration(f"the index names a file outside the model directory: {index}. Download it again.")
    return names


def check_index(folder: Path, headers: Mapping[str, Json]) -> None:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for tensor, name in weight_map(index).items():
            if tensor not in headers[name]:
                raise lying(folder / name, f"the index promises tensor {tensor}, which is not in it")


def read_header(path: Path) -> dict[str, Json]:
    """The tensors of one safetensors file, each with dtype, shape and offsets that agree with the file's size."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise BadConfiguration(f"a Git LFS pointer instead of weights: {path}. Run `git lfs pull` there.")
            if size < 8 or length > size - 8:
                raise lying(path, f"truncated: {size:,} bytes cannot hold its header")
            if length > HEADER_LIMIT_BYTES:
                raise lying(path, f"its header claims {length:,} bytes")
            raw = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    return checked_tensors(path, raw, size - 8 - length)


def checked_tensors(path: Path, raw: bytes, data_bytes: int) -> dict[str, Json]:
    try:
        header = json.loads(raw)
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        spans = sorted(tensor_span(path, name, tensor) for name, tensor in tensors.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise lying(path, "its header is not what the format says") from None
    end = 0
    for first, last in spans:
        if first != end:
            raise lying(path, f"its tensors leave a gap or overlap at byte {end:,}")
        end = last
    if end > data_bytes:
        raise lying(path, f"truncated: the header promises {end:,} bytes of tensors, the file has {data_bytes:,}")
    if end < data_bytes:
        raise lying(path, f"{data_bytes - end:,} bytes more than the header promises")
    return tensors


def tensor_span(path: Path, name: str, tensor: Json) -> tuple[int, int]:
    first, last = tensor["data_offsets"]
    shape = tensor["shape"]
    if tensor["dtype"] not in DTYPE_BITS:
        raise lying(path, f"tensor {name} has the unknown type {tensor['dtype']}")
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError(name)
    if (last - first) * 8 != math.prod(shape) * DTYPE_BITS[tensor["dtype"]]:
        raise lying(path, f"tensor {name} has {last - first:,} bytes, which its shape {shape} contradicts")
    return first, last


def lying(path: Path, what: str) -> BadConfiguration:
    return BadConfiguration(f"broken weights ({what}): {path}. Download this file again.")


# --- tokenizer ------------------------------------------------------------------------------------------------------


def read_tokenizer(folder: Path) -> tuple[Json, Json]:
    """tokenizer.json and tokenizer_config.json; the first is empty for a tokenizer of another format."""
    found = next((folder / name for name in TOKENIZER_FILES if lexists(folder / name)), None)
    if found is None:
        raise BadConfiguration(
            f"no tokenizer ({', '.join(TOKENIZER_FILES)}) in the model directory: {folder}. Download it."
        )
    try:
        found.open("rb").close()
    except OSError as error:
        raise unreadable(found, error) from None
    config = folder / "tokenizer_config.json"
    return read_json(found) if found.name == "tokenizer.json" else {}, read_json(config) if lexists(config) else {}


def added_tokens(tokenizer: Json, config: Json) -> tuple[str, ...]:
    """Every text that the tokenizer turns into one token of its own, special or not; a person must not type them."""
    found = [entry["content"] for entry in tokenizer.get("added_tokens", [])]
    found += [entry["content"] for entry in config.get("added_tokens_decoder", {}).values()]
    named = [config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")]
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    named += list(extra.values()) if isinstance(extra, dict) else list(extra)
    found += [entry["content"] if isinstance(entry, dict) else entry for entry in named if entry]
    return tuple(dict.fromkeys(token for token in found if isinstance(token, str) and token))


def chat_template(folder: Path, config: Json) -> str | None:
    path = folder / "chat_template.jinja"
    if lexists(path):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise unreadable(path, error) from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None
