"""The plan is a pure function: made-up machines and models in, flags, capacity and reasons out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from worker.hardware import Card, Hardware
from worker.model import Model, Weights
from worker.plan import GIB, Plan, Wishes, plan
from worker.refusal import BadConfiguration

DESK = Hardware(
    processor="Made-up 2000", cores=2, processor_flags=frozenset({"avx512f", "avx512_bf16"}), memory_bytes=24 * GIB,
    available_bytes=20 * GIB, cards=(), engine="cpu", openmp=Path("/env/lib/libiomp5.so"),
)  # fmt: skip
DEMO = Model(
    id="SmolLM2-135M-Instruct", path=Path("/models/SmolLM2-135M-Instruct"), architecture="LlamaForCausalLM",
    weights=Weights(134_515_008, 269_030_016), context_tokens=8192, kv_values_per_token=2 * 30 * 3 * 64, hidden=576,
    vocabulary=49152, vision=False, added_tokens=("<|im_start|>",), chat_template="{{ messages }}", demo=True,
    generation_defaults={"temperature": 0.2},
)  # fmt: skip
QWEN_1_5B = replace(
    DEMO, id="Qwen2.5-1.5B-Instruct", path=Path("/models/Qwen2.5-1.5B-Instruct"), architecture="Qwen2ForCausalLM",
    weights=Weights(1_543_714_304, 3_087_428_608), context_tokens=32768, kv_values_per_token=2 * 28 * 2 * 128,
    hidden=1536, vocabulary=151936, chat_template="{% if tools %}<tool_call>{% endif %}", demo=False,
    generation_defaults={},
)  # fmt: skip
LLAMA_8B = replace(
    QWEN_1_5B, id="Llama-3.1-8B-Instruct", architecture="LlamaForCausalLM", context_tokens=131072,
    weights=Weights(8_030_261_248, 16_060_522_496), kv_values_per_token=2 * 32 * 8 * 128, hidden=4096,
    vocabulary=128256, chat_template="{% if tools %}Environment: ipython{% endif %}",
)  # fmt: skip


def card(total_gib: float, capability: tuple[int, int] = (8, 9), free_gib: float | None = None, name="A card") -> Card:
    free = total_gib - 0.3 if free_gib is None else free_gib
    return Card(name, f"GPU-{name}", int(total_gib * GIB), int(free * GIB), capability)


def with_cards(*cards: Card) -> Hardware:
    return replace(DESK, engine="cuda", cards=cards)


def flag(made: Plan, name: str) -> str:
    return made.flags[made.flags.index(name) + 1]


def reason(made: Plan, choice: str) -> str:
    return next(one.reason for one in made.reasons if one.choice == choice)


# --- CPU ------------------------------------------------------------------------------------------------------------


def test_the_demo_on_two_cores_gets_sixteen_seats_and_its_whole_context() -> None:
    made = plan(DESK, DEMO, Wishes())
    assert (made.capacity.seats, made.capacity.context_tokens) == (16, 8192)
    assert (made.capacity.kv_bytes, made.capacity.kv_tokens) == (GIB, 46592)  # what vLLM says of 1 GiB
    assert (flag(made, "--max-num-seqs"), flag(made, "--max-model-len")) == ("16", "8192")


def test_a_busy_neighbour_is_provided_for() -> None:
    made = plan(DESK, DEMO, Wishes())
    assert made.environment["LD_PRELOAD"] == "/env/lib/libiomp5.so"
    assert made.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.parametrize(
    ("hardware", "model", "tokens"),
    [
        (DESK, DEMO, 224 + 16),
        (DESK, QWEN_1_5B, 128 + 16),  # half a second is less than what pays
        (replace(DESK, cores=16), QWEN_1_5B, 672 + 16),
        (replace(DESK, cores=16, processor_flags=frozenset({"avx512f"})), QWEN_1_5B, 224 + 16),
        (replace(DESK, cores=128), DEMO, 2048 + 16),
    ],
)
def test_a_step_is_bounded_in_time_and_one_prompt_never_fills_it(hardware: Hardware, model: Model, tokens: int) -> None:
    made = plan(hardware, model, Wishes())
    assert int(flag(made, "--max-num-batched-tokens")) == made.to_json()["step_tokens"] == tokens
    assert int(flag(made, "--long-prefill-token-threshold")) == tokens // 2
    assert "estimated" in reason(made, "step")


@pytest.mark.parametrize(
    ("capability", "model", "tokens"),
    [((7, 5), QWEN_1_5B, 1248), ((9, 0), QWEN_1_5B, 8192), ((9, 0), LLAMA_8B, 2784), ((12, 0), LLAMA_8B, 512)],
)
def test_a_step_of_a_card_is_bounded_too(capability: tuple[int, int], model: Model, tokens: int) -> None:
    made = plan(with_cards(card(80, capability)), model, Wishes(seats=10))
    assert int(flag(made, "--max-num-batched-tokens")) == tokens + 10


def test_nothing_leaves_the_machine() -> None:
    environment = plan(DESK, DEMO, Wishes()).environment
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        assert environment[name] == "1"


def test_prefix_caching_token_details_and_drain_are_on() -> None:
    made = plan(DESK, DEMO, Wishes())
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details"} <= set(made.flags)
    assert flag(made, "--prefix-caching-hash-algo") == "sha256"
    assert int(flag(made, "--shutdown-timeout")) > 0
    assert json.loads(flag(made, "--override-generation-config")) == {"repetition_penalty": 1.1}


def test_a_folder_with_a_space_is_given_to_the_loader_as_a_search_path() -> None:
    made = plan(replace(DESK, openmp=Path("/my files/env/lib/libiomp5.so")), DEMO, Wishes())
    assert made.environment["LD_PRELOAD"] == "libiomp5.so"
    assert made.environment["LD_LIBRARY_PATH"] == "/my files/env/lib"


@pytest.mark.parametrize("library", [None, Path("/a:b/lib/libiomp5.so")])
def test_a_preload_that_cannot_be_is_left_out_and_said(library: Path | None) -> None:
    made = plan(replace(DESK, openmp=library), DEMO, Wishes())
    assert "LD_PRELOAD" not in made.environment
    assert next(one.value for one in made.reasons if one.choice == "preload") == "none"


def test_the_first_minute_is_not_spent_compiling_unless_asked_for() -> None:
    assert "--enforce-eager" in plan(DESK, DEMO, Wishes()).flags
    assert "--enforce-eager" not in plan(DESK, DEMO, Wishes(compile=True)).flags


def test_seats_and_context_can_be_wished_for() -> None:
    made = plan(DESK, DEMO, Wishes(seats=5, context_tokens=3000))
    assert (made.capacity.seats, made.capacity.context_tokens) == (5, 3000)
    assert "--seats" in reason(made, "seats")


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(BadConfiguration, match="--context 8193 is longer than the 8192"):
        plan(DESK, DEMO, Wishes(context_tokens=8193))


def test_the_kv_space_is_whole_gibibytes_for_all_seats() -> None:
    made = plan(DESK, QWEN_1_5B, Wishes())
    assert made.environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert made.capacity.kv_bytes == 2 * GIB
    assert made.capacity.kv_tokens >= 16 * 2048


def test_a_tight_memory_shortens_the_context_and_says_so() -> None:
    made = plan(replace(DESK, available_bytes=int(6.5 * GIB)), QWEN_1_5B, Wishes())
    assert made.capacity.kv_bytes == GIB
    assert 2048 <= made.capacity.context_tokens < 32768
    assert 2 * made.capacity.context_tokens <= made.capacity.kv_tokens
    assert "shorter than the model's 32768" in reason(made, "context")


def test_a_wished_context_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadConfiguration, match="--context 131072 needs more"):
        plan(replace(DESK, available_bytes=21 * GIB), LLAMA_8B, Wishes(context_tokens=131072))


@pytest.mark.parametrize("available_gib", [0, 1, 3.2, 5.8])
def test_too_little_memory_is_refused_with_the_numbers(available_gib: float) -> None:
    with pytest.raises(BadConfiguration, match=rf"not enough memory for .* {available_gib:.1f} GiB are available"):
        plan(replace(DESK, available_bytes=int(available_gib * GIB)), QWEN_1_5B, Wishes())


OLD = replace(DESK, processor_flags=frozenset({"avx2"}))


def test_a_processor_without_avx_512_computes_with_32_bits_where_they_fit() -> None:
    made = plan(OLD, DEMO, Wishes())
    assert flag(made, "--dtype") == made.dtype == "float32"
    assert made.to_json()["model"]["weight_bytes"] == 4 * 134_515_008
    assert made.capacity.kv_tokens == 46592  # for as many as with 16 bits
    assert made.capacity.kv_bytes == 2 * GIB
    assert "three times as fast" in reason(made, "dtype")


@pytest.mark.parametrize(
    ("hardware", "model"),
    [
        (replace(OLD, available_bytes=6 * GIB), QWEN_1_5B),
        (OLD, replace(DEMO, weights=Weights(134_515_008, 80_000_000))),
        (replace(DESK, processor_flags=frozenset({"avx512f"})), DEMO),
    ],
    ids=["no room", "quantised", "AVX-512"],
)
def test_else_it_computes_with_16_bits(hardware: Hardware, model: Model) -> None:
    assert plan(hardware, model, Wishes()).dtype == "bfloat16"


def test_the_demo_fits_a_machine_with_four_gibibytes_free() -> None:
    assert plan(replace(DESK, available_bytes=4 * GIB), DEMO, Wishes()).capacity.context_tokens == 8192


def test_the_cpu_build_beside_a_card_uses_the_cpu_and_says_why() -> None:
    made = plan(replace(DESK, cards=(card(24, name="Big card"),)), DEMO, Wishes())
    assert made.device.kind == "cpu"
    assert "Big card is not used" in reason(made, "device")


# --- cards ----------------------------------------------------------------------------------------------------------


def test_a_24_gib_card_serves_8b_with_a_shorter_context_and_says_so() -> None:
    made = plan(with_cards(card(24)), LLAMA_8B, Wishes())
    assert made.device.kind == "cuda"
    assert flag(made, "--dtype") == "bfloat16"
    assert 4096 <= made.capacity.context_tokens < 131072
    assert "shorter than the model's 131072" in reason(made, "context")
    assert 8 <= made.capacity.seats <= 32
    assert "--enforce-eager" not in made.flags


def test_an_80_gib_card_gives_the_same_model_its_whole_context_and_more_seats() -> None:
    made = plan(with_cards(card(80, (9, 0))), LLAMA_8B, Wishes())
    assert made.capacity.context_tokens == 131072
    assert made.capacity.seats == 128
    assert float(flag(made, "--gpu-memory-utilization")) == 0.92


def test_an_8_gib_card_serves_1_5b_whole_and_refuses_8b() -> None:
    hardware = with_cards(card(8, (8, 6)))
    assert plan(hardware, QWEN_1_5B, Wishes()).capacity.kv_tokens > 32768
    with pytest.raises(BadConfiguration, match=r"not enough memory .* quantised"):
        plan(hardware, LLAMA_8B, Wishes())


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_the_number_format_follows_the_card(capability: tuple[int, int], dtype: str) -> None:
    assert plan(with_cards(card(16, capability)), QWEN_1_5B, Wishes()).dtype == dtype


def test_a_card_older_than_vllm_supports_is_refused() -> None:
    with pytest.raises(BadConfiguration, match=r"compute capability 6\.1"):
        plan(with_cards(card(11, (6, 1))), QWEN_1_5B, Wishes())


@pytest.mark.parametrize("free_gib", [7.9, 12.0, 20.0, 23.7])
def test_no_more_than_is_free_on_the_card_is_taken(free_gib: float) -> None:
    made = plan(with_cards(card(24, free_gib=free_gib)), QWEN_1_5B, Wishes())
    share = float(flag(made, "--gpu-memory-utilization"))
    assert share * 24 <= free_gib - 0.5
    assert made.model.weights.loaded_bytes + made.capacity.kv_bytes < share * 24 * GIB


def test_of_several_cards_the_freest_is_chosen_by_its_own_name() -> None:
    made = plan(with_cards(card(24, name="busy", free_gib=3), card(24, name="idle")), QWEN_1_5B, Wishes())
    assert made.environment["CUDA_VISIBLE_DEVICES"] == "GPU-idle"
    assert made.device.name == "idle"


def test_a_card_without_any_free_memory_is_refused() -> None:
    with pytest.raises(BadConfiguration, match="not enough memory"):
        plan(with_cards(card(24, free_gib=0)), QWEN_1_5B, Wishes())


# --- tools, JSON ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "parser"), [
    (None, None),
    ("{{ messages }}", None),
    ("{% if tools %}{{ tools }}{% endif %}", None),
    ("{% if tools %}<tool_call>\n{\"name\": ...}", "hermes"),
    ("{% if tools %}<tool_call><function=x>", "qwen3_coder"),
    ("{% if tools %}<tool_call>name<arg_key>", "glm45"),
    ("{% if tools %}[TOOL_CALLS]", "mistral"),
    ("{% if tools %}Environment: ipython", "llama3_json"),
])  # fmt: skip
def test_the_tool_parser_follows_the_chat_template(template: str | None, parser: str | None) -> None:
    made = plan(DESK, replace(DEMO, chat_template=template), Wishes())
    assert made.tool_parser == parser
    assert ("--enable-auto-tool-choice" in made.flags) == (parser is not None)
    if parser:
        assert flag(made, "--tool-call-parser") == parser


def test_a_parser_that_is_asked_for_wins_over_the_template_and_none_is_one_of_them() -> None:
    made = plan(DESK, QWEN_1_5B, Wishes(tool_parser="pythonic"))
    assert (made.tool_parser, flag(made, "--tool-call-parser")) == ("pythonic", "pythonic")
    assert reason(made, "tool parser") == "asked for with --tool-parser"
    made = plan(DESK, QWEN_1_5B, Wishes(tool_parser="none"))
    assert made.tool_parser is None and "--enable-auto-tool-choice" not in made.flags


THINK = ("<think>", "</think>")
HYBRID = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>' }}{% endif %}"


@pytest.mark.parametrize(("template", "tokens", "parser", "switch"), [
    (None, THINK, None, None),
    ("{{ messages }}", THINK, None, None),
    ("{{ content.split('</think>')[-1] }}", THINK, None, None),  # reads thoughts, and does not think
    (HYBRID, (), None, None),
    (HYBRID, THINK, "qwen3", "enable_thinking"),
    (HYBRID + "<arg_key>", THINK, "glm45", "enable_thinking"),
    ("{{- '<|im_start|>assistant\\n<think>\\n' }}", THINK, "qwen3", None),
    ("{{'<｜Assistant｜><think>\\n'}}", THINK, "deepseek_r1", None),
    ("{{ '<seed:think>' }}", ("<seed:think>", "</seed:think>"), "seed_oss", None),
])  # fmt: skip
def test_the_reasoning_parser_follows_template_and_tokenizer(
    template: str | None, tokens: tuple[str, ...], parser: str | None, switch: str | None
) -> None:
    made = plan(DESK, replace(DEMO, chat_template=template, added_tokens=tokens), Wishes())
    assert (made.reasoning_parser, made.thinking_switch) == (parser, switch)
    assert ("--reasoning-parser" in made.flags) == (parser is not None)
    assert made.to_json()["reasoning_parser"] == parser and made.to_json()["thinking_switch"] == switch
    if parser:
        assert flag(made, "--reasoning-parser") == parser and "chat template has" in reason(made, "reasoning parser")


def test_a_reasoning_parser_that_is_asked_for_wins_and_none_is_one_of_them() -> None:
    thinking = replace(DEMO, chat_template=HYBRID, added_tokens=THINK)
    made = plan(DESK, thinking, Wishes(reasoning_parser="olmo3"))
    assert (made.reasoning_parser, flag(made, "--reasoning-parser")) == ("olmo3", "olmo3")
    made = plan(DESK, thinking, Wishes(reasoning_parser="none"))
    assert (made.reasoning_parser, made.thinking_switch) == (None, None) and "--reasoning-parser" not in made.flags


def test_a_model_without_a_chat_template_is_planned_and_said() -> None:
    made = plan(DESK, replace(DEMO, chat_template=None), Wishes())
    assert "Instruct" in reason(made, "chat template")


def test_the_json_holds_what_its_readers_rely_on() -> None:
    made = json.loads(json.dumps(plan(DESK, DEMO, Wishes()).to_json()))
    assert made["version"] == 1
    assert made["model"] == {
        "id": "SmolLM2-135M-Instruct", "path": "/models/SmolLM2-135M-Instruct", "architecture": "LlamaForCausalLM",
        "parameters": 134_515_008, "weight_bytes": 269_030_016, "dtype": "bfloat16", "demo": True,
    }  # fmt: skip
    assert made["device"] == {"kind": "cpu", "name": "Made-up 2000", "memory_bytes": 24 * GIB, "cores": 2}
    assert (made["context_tokens"], made["seats"], made["kv_tokens"], made["block_tokens"]) == (8192, 16, 46592, 128)
    assert made["added_tokens"] == ["<|im_start|>"]
    assert made["generation_defaults"] == {
        "max_tokens": 1024, "temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1,
    }  # fmt: skip
    assert all(one["choice"] and one["value"] and one["reason"] for one in made["reasons"])


def test_every_flag_is_one_that_the_installed_vllm_knows() -> None:
    """Read from its source, so that a renamed flag is seen without a start."""
    from importlib.util import find_spec

    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    sources = [Path(spec.origin).parent / name for name in ("engine/arg_utils.py", "entrypoints/openai/cli_args.py")]
    known = "".join(path.read_text() for path in sources if path.exists())
    known += "".join(path.read_text() for path in (Path(spec.origin).parent / "entrypoints").rglob("cli_args.py"))
    known += (Path(spec.origin).parent / "config" / "model.py").read_text()
    for hardware in (DESK, with_cards(card(24))):
        for one in plan(hardware, QWEN_1_5B, Wishes()).flags:
            if one.startswith("--"):
                assert one in known or one[2:].replace("-", "_") in known, one
