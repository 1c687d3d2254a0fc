"""What a turn is asked, and what the model is to read of it: the messages that fit its context. Runs nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.engine import Engine, EngineState, ModelFacts
from gateway.errors import BadRequest, ContextLengthExceeded, EngineLost
from gateway.events import Form, Sampling
from gateway.prompt import (
    Message,
    Window,
    current,
    drop_for_budget,
    estimate_tokens,
    first_round,
    harmless,
    has_pictures,
    most_tokens,
    rounds_of,
    to_messages,
    unknown_output,
)

LEAST_ANSWER_TOKENS = 16  # a prompt that leaves less room than this is too long
PLAIN = Form()
_EFFORTS = {"minimal": "none", "xhigh": "high", "max": "high"}  # all engines know the others
_FITTING_TRIES = 4


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One question with everything the model is to read. `items`: history and input, oldest first."""

    id: str
    person: str
    cache_salt: str
    model: str
    system: str | None
    items: Sequence[Mapping[str, Any]]
    window: Window
    sampling: Sampling
    form: Form = PLAIN
    compact_at: int | None = None  # tokens of context above which it is made short before it is answered
    resumes: bool = False  # of a gateway that died
    flex: bool = False  # it can wait
    thread: str = ""  # the conversation with its branches, as far as a worker's cache may know it
    key: str | None = None  # it came with


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: Sequence[Message]
    tokens: int
    certain: bool  # that it fits: counted by the engine, or far too short not to


async def build_prompt(request: TurnRequest, engine: Engine, *, count: bool = False) -> Prompt:
    """The messages that fit the context. Raises ContextLengthExceeded when they do not and may not be cut.

    Tokens are counted by the engine where it matters: near the limit, or when asked to. A short prompt is only
    estimated, and with no engine ready nothing is refused that might fit after all.
    """
    model = engine.model
    rounds = rounds_of(current(request.items))
    rounds = rounds[first_round(len(rounds) - 1, request.window.rounds) :]
    for _ in range(_FITTING_TRIES):
        messages, tools = _messages(request, rounds, model), request.form.tools
        if (
            model is not None
            and not count
            and not has_pictures(messages)
            and most_tokens(messages, tools) + request.sampling.max_tokens <= model.context_tokens
        ):
            return Prompt(messages, estimate_tokens(messages, tools), certain=True)
        prompt = await _count(request, messages, engine)
        excess = prompt.tokens - _budget(request, model)
        if model is None or excess <= 0 or not request.window.truncate or len(rounds) == 1:
            break
        rounds = rounds[drop_for_budget(_sizes(request, rounds, prompt, model), excess) :]
    if model is not None and prompt.certain and prompt.tokens > model.context_tokens - LEAST_ANSWER_TOKENS:
        raise ContextLengthExceeded(
            f"The prompt has {prompt.tokens} tokens; this model reads {model.context_tokens}, "
            f'of which {LEAST_ANSWER_TOKENS} are kept for the answer. Shorten it, or send truncation: "auto".',
            param="input",
        )
    return prompt


def _messages(
    request: TurnRequest, rounds: Sequence[Sequence[Mapping[str, Any]]], model: ModelFacts | None
) -> list[Message]:
    items = [item for r in rounds for item in r]
    added_tokens, sees = (model.added_tokens, model.vision) if model else ((), False)
    return to_messages(request.system, items, added_tokens, thoughts=request.window.thoughts, sees=sees)


def _budget(request: TurnRequest, model: ModelFacts | None) -> int:
    """Tokens a cut prompt aims for: room for the whole answer, but never less than half of the context."""
    context = model.context_tokens if model else 0
    return context - min(request.sampling.max_tokens, context // 2)


def _sizes(
    request: TurnRequest, rounds: Sequence[Sequence[Mapping[str, Any]]], prompt: Prompt, model: ModelFacts
) -> list[int]:
    """Tokens of each round, from its share of the estimate and the whole's count."""
    estimates = [estimate_tokens(to_messages(None, r, model.added_tokens, sees=model.vision)) for r in rounds]
    scale = prompt.tokens / max(1, sum(estimates))
    return [max(1, int(estimate * scale)) for estimate in estimates]


async def _count(request: TurnRequest, messages: list[Message], engine: Engine) -> Prompt:
    if engine.state is EngineState.READY:
        model = request.model or (engine.model.id if engine.model else "")
        asked = effort_of(request.form, engine.model)
        asked.pop("reasoning_effort", None)  # changes some prompts by a word; this route does not know it
        if request.form.tools:
            asked["tools"] = tools_of(request.form, engine.model)
        body = {"model": model, "messages": messages, "add_generation_prompt": True, **asked}
        try:
            return Prompt(messages, await engine.count(msgspec.json.encode(body), request.id), certain=True)
        except EngineLost:
            pass  # it has just gone: estimate now, count when the seat is given
    return Prompt(messages, estimate_tokens(messages, request.form.tools), certain=False)


def tools_of(form: Form, model: ModelFacts | None) -> list[Any]:
    return [harmless(tool, model.added_tokens if model else ()) for tool in form.tools]


def effort_of(form: Form, model: ModelFacts | None) -> dict[str, Any]:
    """How a chat is asked to think less or more. Where the template has no switch, it may know degrees."""
    if form.effort is None or model is None or model.reasoning_parser is None:
        return {}
    effort = _EFFORTS.get(form.effort, form.effort)
    if model.thinking_switch is None:
        return {"reasoning_effort": "low" if effort == "none" else effort}
    asked: dict[str, Any] = {"chat_template_kwargs": {model.thinking_switch: effort != "none"}}
    return asked if effort == "none" else {**asked, "reasoning_effort": effort}


def formed(form: Form, model: ModelFacts | None) -> dict[str, Any]:
    """What a chat is asked for beside text."""
    asked = effort_of(form, model)
    if form.tools:
        asked |= {"tools": tools_of(form, model), "tool_choice": form.choice, "parallel_tool_calls": form.parallel}
    return asked if form.format is None else {**asked, "response_format": form.format}


def check_outputs(items: Sequence[Mapping[str, Any]], start: int) -> None:
    """Raises BadRequest when from `start` on, where the input begins, something is the output of an unknown call."""
    if (index := unknown_output(items, start)) is not None:
        raise BadRequest(
            f"`{items[index]['call_id'][:80]}` is the `call_id` of no call: neither the input nor what came before has "
            "a `function_call` with it.",
            param=f"input[{index - start}].call_id",
        )
