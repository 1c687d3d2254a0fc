"""The packaged demo model becomes a model directory once, whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.demo import convert_demo, is_whole, llama_name, packaged_gguf
from worker.model import read_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by a second call, after the first was killed in the middle."""
    folder = tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct"
    kill_in_the_middle(folder)
    ended = converted(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def kill_in_the_middle(folder: Path) -> None:
    building = folder.with_name(f".{folder.name}.partial")
    with subprocess.Popen([sys.executable, "-m", "worker.demo", str(folder)], cwd=ROOT) as first:
        while not building.exists() and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    assert building.exists()
    assert not folder.exists()


def converted(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.demo", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_directory_is_one_that_the_worker_serves_as_a_demo(demo: Path) -> None:
    model = read_model(demo)
    assert model.demo
    assert model.generation_defaults == {"temperature": 0.2}
    assert (model.architecture, model.weights.parameters) == ("LlamaForCausalLM", 134_515_008)
    assert (model.context_tokens, model.vocabulary) == (8192, 49152)
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(model.added_tokens)
    assert model.chat_template is not None and "<|im_start|>" in model.chat_template


def test_every_user_may_read_it(demo: Path) -> None:
    assert demo.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in demo.iterdir())


def test_a_second_call_leaves_it_as_it_is(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.iterdir()}
    convert_demo(demo)
    assert {path: path.stat().st_mtime_ns for path in demo.iterdir()} == before


def test_nothing_of_an_interrupted_conversion_is_left(demo: Path) -> None:
    assert not demo.with_name(f".{demo.name}.partial").exists()


def test_a_damaged_directory_counts_as_not_made(demo: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo, tmp_path / "demo"))
    assert is_whole(copy)
    os.truncate(copy / "model.safetensors", 1_000_000)
    assert not is_whole(copy)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = converted(tmp_path / "file" / "demo")
    assert ended.returncode == 73
    assert ended.stderr.count("\n") == 1
    assert str(tmp_path / "file") in ended.stderr


def test_names_of_tensors_are_translated() -> None:
    assert llama_name("token_embd.weight") == "model.embed_tokens.weight"
    assert llama_name("blk.29.ffn_norm.weight") == "model.layers.29.post_attention_layernorm.weight"
    with pytest.raises(KeyError):
        llama_name("blk.0.unheard_of.weight")


@pytest.mark.engine
def test_weights_and_logits_are_those_that_transformers_reads_from_the_gguf(demo: Path) -> None:
    """Each weight within the rounding of BF16 (2^-8 of its size), and the same next word, by its own configuration."""
    program = """
import json, sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
torch.set_grad_enabled(False)
torch.set_num_threads(1)
source, folder = Path(sys.argv[1]), sys.argv[2]
ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.parent, gguf_file=source.name)).float()
read = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=theirs, torch_dtype=torch.float32)
theirs.load_state_dict(read["tensors"], strict=False)
theirs.tie_weights()
expected = theirs.state_dict()
apart = [((value - expected[name]).abs() / (expected[name].abs() + 1e-6)).max().item()
         for name, value in ours.state_dict().items()]
tokenizer = AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": "What is the capital of France?"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
logits = [model(**prompt).logits[0, -1] for model in (ours, theirs)]
print(json.dumps({
    "tensors": len(read["tensors"]),
    "apart": max(apart),
    "logits_apart": (logits[0] - logits[1]).abs().max().item(),
    "words": [tokenizer.decode(one.argmax()) for one in logits],
}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(packaged_gguf()), str(demo)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["tensors"] == 272
    assert result["apart"] <= 2**-8
    assert result["logits_apart"] < 0.5
    assert result["words"] == ["The", "The"]  # "The capital of France is Paris."
