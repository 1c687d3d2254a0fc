"""A random Qwen2 of about 1.2 million parameters for tests that need speed and no sense. Knows no worker code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 2048
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT_TOKENS = 4096
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MADE = ".made"  # written last: a folder without it is an interrupted build


def make_tiny_model(folder: Path) -> Path:
    """Makes the model directory once, in a process of its own (torch stays out of the caller's), in about 8 seconds."""
    if not (folder / MADE).exists():
        subprocess.run([sys.executable, __file__, str(folder)], check=True, capture_output=True, timeout=120)
    return folder


def build(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    write_tokenizer(building)
    write_weights(building)
    (building / MADE).touch()
    put_in_place(building, folder)


def put_in_place(building: Path, folder: Path) -> None:
    """Moves the finished folder to its name; whoever came second throws its own away."""
    if folder.exists() and not (folder / MADE).exists():
        shutil.rmtree(folder)
    try:
        building.rename(folder)
    except OSError:
        shutil.rmtree(building)
        if not (folder / MADE).exists():
            raise


def write_tokenizer(folder: Path) -> None:
    """Trains a byte-level BPE on the repository's own text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        repository_text(),
        trainer=trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": CONTEXT_TOKENS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def repository_text() -> Iterator[str]:
    """The texts that the vocabulary is learnt from; a short repository still gives all 256 bytes."""
    for folder in ("gateway", "worker", "tests", "docs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".md", ".lua", ".html", ".js", ".css"} and "vendor" not in path.parts:
                yield path.read_text(encoding="utf-8", errors="replace")


def write_weights(folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    build(Path(sys.argv[1]))
