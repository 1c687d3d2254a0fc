"""Pure: which of vLLM's parsers understand what a model writes - calls of tools, thoughts - by its chat template.

Knows no hardware and starts nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from worker.model import Model

NONE = "none"
# The texts by which a chat template shows which calls of tools the model writes; the first that is found decides.
TOOLS = (
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<|channel|>", "openai"),
    ("<|tool_call|>", "granite"),
    ("ipython", "llama3_json"),
)
# The same for thoughts, where all the texts are there. Only parsers that go on rightly with an answer that broke off in
# the middle of its thoughts: they read in the prompt's tokens whether the thinking has ended.
THOUGHTS = (
    (("<seed:think>",), "seed_oss", ("<seed:think>", "</seed:think>")),
    (("<arg_key>", "enable_thinking", "<think>"), "glm45", ("<think>", "</think>")),
    (("enable_thinking", "<think>"), "qwen3", ("<think>", "</think>")),
    (("<|im_start|>assistant\\n<think>",), "qwen3", ("<think>", "</think>")),
    (("<｜Assistant｜><think>",), "deepseek_r1", ("<think>", "</think>")),
)
SWITCH = "enable_thinking"  # the variable by which templates turn thinking off, where they can


class Choice(NamedTuple):
    name: str | None
    reason: str


def of_tools(model: Model, asked: str | None) -> Choice:
    if asked:
        return Choice(None if asked == NONE else asked, "asked for with --tool-parser")
    template = model.chat_template or ""
    if "tools" not in template:
        return Choice(None, "the model's chat template has no place for tools")
    for mark, parser in TOOLS:
        if mark in template:
            return Choice(parser, f"the chat template writes calls with {mark}")
    return Choice(None, "the chat template writes calls in a form that is not known here")


def of_thoughts(model: Model, asked: str | None) -> Choice:
    """Only where template and tokenizer agree: a parser that waits for thoughts would take the answer for them."""
    if asked:
        return Choice(None if asked == NONE else asked, "asked for with --reasoning-parser")
    template = model.chat_template or ""
    for marks, parser, tokens in THOUGHTS:
        if all(mark in template for mark in marks) and set(tokens) <= set(model.added_tokens):
            return Choice(parser, f"the chat template has {' and '.join(marks)}")
    return Choice(None, "the chat template shows no thoughts in a form that is known here")


def thinking_switch(model: Model) -> str | None:
    return SWITCH if SWITCH in (model.chat_template or "") else None


def flags(tools: str | None, thoughts: str | None) -> tuple[str, ...]:
    calls = ("--enable-auto-tool-choice", "--tool-call-parser", tools) if tools else ()
    return (*calls, *(("--reasoning-parser", thoughts) if thoughts else ()))
