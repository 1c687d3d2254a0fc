"""A model directory is read as it is, and refused by name, path and advice when it cannot be served."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.commands import commands, shell
from worker.model import known_architectures, read_model
from worker.refusal import BadConfiguration

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": 2048,
}  # fmt: skip
TENSORS = {"a": ("BF16", [4, 8]), "b": ("F32", [8])}


def safetensors(tensors=TENSORS, cut=0, extra=b"", **changes) -> bytes:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"BF16": 2, "F32": 4}[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    for name, change in changes.items():
        header[name] = {**header.get(name, {}), **change}
    raw = json.dumps(header).encode()
    content = struct.pack("<Q", len(raw)) + raw + bytes(end) + extra
    return content[: len(content) - cut]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny-Instruct"
    folder.mkdir()
    write(folder / "config.json", CONFIG)
    write(folder / "tokenizer.json", {"added_tokens": [{"id": 0, "content": "<|im_start|>", "special": True}]})
    write(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"})
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def refusal(folder: Path) -> str:
    with pytest.raises(BadConfiguration) as caught:
        read_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_a_whole_directory_is_read(folder: Path) -> None:
    model = read_model(folder)
    assert (model.id, model.architecture) == ("Tiny-Instruct", "Qwen2ForCausalLM")
    assert (model.weights.parameters, model.weights.loaded_bytes) == (40, 80)
    assert (model.context_tokens, model.kv_values_per_token) == (4096, 2 * 4 * 2 * 32)
    assert model.added_tokens == ("<|im_start|>", "<|im_end|>")
    assert model.chat_template == "{{ messages }}"
    assert not model.demo
    assert not model.vision


def test_a_served_name_replaces_the_folders(folder: Path) -> None:
    assert read_model(folder, "house-model").id == "house-model"


def test_deskmate_json_marks_the_demo_and_sets_its_defaults(folder: Path) -> None:
    write(folder / "deskmate.json", {"demo": True, "generation_defaults": {"temperature": 0.2}})
    model = read_model(folder)
    assert model.demo
    assert model.generation_defaults == {"temperature": 0.2}


def test_every_source_of_added_tokens_is_read(folder: Path) -> None:
    write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {"5": {"content": "<tool_call>", "special": False}},
            "bos_token": {"content": "<s>"},
            "additional_special_tokens": ["<|im_end|>"],
        },
    )
    assert read_model(folder).added_tokens == ("<|im_start|>", "<tool_call>", "<s>", "<|im_end|>")


def test_a_chat_template_in_its_own_file_wins(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("jinja")
    assert read_model(folder).chat_template == "jinja"


def test_a_base_model_has_no_chat_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert read_model(folder).chat_template is None


def test_a_model_that_sees_keeps_its_text_settings_inside(folder: Path) -> None:
    write(
        folder / "config.json",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "vision_config": {},
            "text_config": {k: v for k, v in CONFIG.items() if k != "architectures"},
        },
    )
    assert read_model(folder).vision


def test_a_yarn_scaling_lengthens_the_context(folder: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    write(folder / "config.json", {**CONFIG, "rope_scaling": scaling})
    assert read_model(folder).context_tokens == 16384


def test_layers_without_attention_keep_no_keys_and_values(folder: Path) -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    write(folder / "config.json", {**CONFIG, "layer_types": kinds})
    assert read_model(folder).kv_values_per_token == 2 * 1 * 2 * 32


def test_the_known_architectures_come_from_the_installed_vllm() -> None:
    known = known_architectures()
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"} <= known
    assert "BertModel" not in known


# --- refusals, each told by name ------------------------------------------------------------------------------------


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "no such model directory" in refusal(tmp_path / "absent")


def test_a_file_instead_of_a_directory_is_refused(folder: Path) -> None:
    assert "not a directory" in refusal(folder / "config.json")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    assert "empty" in refusal(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(folder)


def test_a_directory_without_config_json_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense", '{"a": ' * 100_000, "\x00\xff"])
def test_an_invalid_config_json_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is not" in refusal(folder)


def test_a_config_json_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not valid JSON" in refusal(folder)


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [7]])
def test_a_config_json_without_an_architecture_is_refused(folder: Path, names: object) -> None:
    write(folder / "config.json", {**CONFIG, "architectures": names})
    assert "names no architecture" in refusal(folder)


@pytest.mark.parametrize("name", ["FantasyForCausalLM", "BertModel", "../../etc/passwd"])
def test_an_architecture_that_vllm_does_not_know_is_refused_by_name(folder: Path, name: str) -> None:
    write(folder / "config.json", {**CONFIG, "architectures": [name]})
    assert name in refusal(folder)


def test_a_config_json_without_its_sizes_is_refused_by_field(folder: Path) -> None:
    write(folder / "config.json", {"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 4})
    assert "lacks" in refusal(folder)


@pytest.mark.parametrize("value", ["many", [], {}, 0])
def test_a_config_json_with_a_senseless_size_is_refused(folder: Path, value: object) -> None:
    write(folder / "config.json", {**CONFIG, "num_attention_heads": value})
    assert "wrong kind" in refusal(folder)


def test_only_pytorch_model_bin_is_refused_with_the_conversion(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "save_pretrained" in refusal(folder)


def test_only_gguf_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.Q4_1.gguf")
    assert "only GGUF" in refusal(folder)


def test_a_directory_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)


@pytest.mark.parametrize("cut", [1, 50, 96, 97, 200])
def test_truncated_weights_are_refused_wherever_they_end(folder: Path, cut: int) -> None:
    whole = safetensors()
    (folder / "model.safetensors").write_bytes(whole[: max(0, len(whole) - cut)])
    assert "truncated" in refusal(folder)


def test_a_file_of_a_few_bytes_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"abc")
    assert "truncated" in refusal(folder)


def test_a_header_longer_than_the_format_allows_is_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    assert "claims 200,000,000 bytes" in refusal(folder)


@pytest.mark.parametrize("change", [
    {"shape": [4, 9]}, {"dtype": "F32"}, {"dtype": "Q4"}, {"data_offsets": [0, 6]}, {"data_offsets": [8, 72]},
    {"data_offsets": [-64, 0]}, {"data_offsets": [64, 0]}, {"shape": [-4, -8]}, {"shape": "4"}, {"shape": [4.0, 8]},
    {"data_offsets": None}, {"dtype": None}, {"shape": [True, 32]},
])  # fmt: skip
def test_lying_weights_are_refused(folder: Path, change: dict[str, object]) -> None:
    (folder / "model.safetensors").write_bytes(safetensors(a=change))
    assert "broken weights" in refusal(folder)


@pytest.mark.parametrize("header", [b"[]", b"{", b"null", b'{"a": 1}', b"\xff\xff"])
def test_a_header_that_is_no_table_of_tensors_is_refused(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "broken weights" in refusal(folder)


def test_bytes_beyond_the_promised_ones_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors(extra=b"x" * 7))
    assert "7 bytes more" in refusal(folder)


def test_weights_without_a_tensor_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors({}))
    assert "no tensor" in refusal(folder)


def test_a_git_lfs_pointer_is_refused_with_the_command(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(folder)


def test_a_shard_missing_from_a_numbered_series_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in refusal(folder)


def test_a_shard_that_only_the_index_names_is_refused(folder: Path) -> None:
    write(folder / "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors", "z": "more.safetensors"}})
    assert "more.safetensors" in refusal(folder)


def test_a_tensor_that_only_the_index_names_is_refused(folder: Path) -> None:
    write(folder / "model.safetensors.index.json", {"weight_map": {"z": "model.safetensors"}})
    assert "tensor z" in refusal(folder)


@pytest.mark.parametrize("table", [None, {}, [], {"a": 3}, {"a": "../elsewhere.safetensors"}])
def test_a_senseless_index_is_refused(folder: Path, table: object) -> None:
    write(folder / "model.safetensors.index.json", {"weight_map": table})
    assert "the index" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_link_that_leads_nowhere_is_refused_by_path(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "gone")
    assert name in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_refused_by_path(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"cannot read {folder / name}" in refusal(folder)


# --- the process ----------------------------------------------------------------------------------------------------


def worker(*arguments: object, options=(), **settings) -> tuple[subprocess.CompletedProcess[str], float]:
    begun = time.monotonic()
    command = [sys.executable, *options, "-m", "worker", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **settings)
    return ended, time.monotonic() - begun


BREAKAGES = {
    "missing": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "truncated": lambda folder: os.truncate(folder / "model.safetensors", 150),
    "lying": lambda folder: (folder / "model.safetensors").write_bytes(safetensors(a={"shape": [1]})),
    "pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "unreadable": lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
    "invalid config": lambda folder: (folder / "config.json").write_text("{"),
    "unknown architecture": lambda folder: write(folder / "config.json", {**CONFIG, "architectures": ["Fantasy"]}),
    "no memory": lambda folder: write(folder / "config.json", {**CONFIG, "num_hidden_layers": 10**12}),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_process_ends_with_78_and_one_line_within_three_seconds(folder: Path, breakage: str) -> None:
    BREAKAGES[breakage](folder)
    ended, seconds = worker("--model", folder, "--port", 1)
    assert ended.returncode == 78
    assert ended.stderr.startswith("worker: ")
    assert ended.stderr.count("\n") == 1
    assert str(folder) in ended.stderr
    assert ended.stdout == ""
    assert seconds < 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_that_belongs_to_somebody_else_is_refused_by_path(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0o600)
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    program = (
        "import os, sys; from pathlib import Path; from worker.model import read_model\n"
        "os.setuid(65534)\n"
        "read_model(Path(sys.argv[1]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert f"cannot read {folder / 'model.safetensors'}: Permission denied" in ended.stderr


@pytest.mark.parametrize("arguments", [["--explain"], ["--explain", "--context", "9000"]])
def test_neither_torch_nor_vllm_is_imported_before_the_decision(folder: Path, arguments: list[str]) -> None:
    ended, _ = worker("--model", folder, *arguments, options=["-X", "importtime"])
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "argparse" in imported
    assert not imported & {"torch", "vllm", "transformers", "numpy"}


def test_the_command_of_the_docs_says_what_would_be_planned_and_why(folder: Path) -> None:
    changes = {"var/env/bin/python": sys.executable, "/srv/models/Qwen2.5-1.5B-Instruct": folder}
    told = shell(commands("explain", changes), ROOT, {}, 60)
    assert "Tiny-Instruct" in told.stdout, told.stderr
    assert "seats" in told.stdout


def test_a_model_given_from_any_directory_is_planned_under_its_full_path(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "--model", folder.name, "--explain", "--json"],
        cwd=folder.parent, capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert json.loads(ended.stdout)["model"]["path"] == str(folder)
