"""How a response looks to its caller: the object with all its fields, its items, and its stream of events.

Pure: a fold over the turn's events. The same events always give the same bytes and sequence numbers, so a stream
that is replayed is the stream that was seen. Knows no storage and no engine.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.conversations import Item, StoredResponse, item_id
from gateway.events import (
    Call,
    Compacted,
    Delta,
    Finished,
    Logprob,
    Progress,
    Queued,
    Rest,
    Thought,
    TurnEvent,
    decode_event,
)
from gateway.said import answer_item, call_item, parts_of, thought_item
from gateway.sse import event

_encode_json = msgspec.json.Encoder().encode


class Echo(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What was asked, with the effective values: stored with the response, given back in it."""

    model: str
    temperature: float
    top_p: float
    max_output_tokens: int
    instructions: str | None = None
    truncation: str = "disabled"
    background: bool = False
    store: bool = True
    parallel_tool_calls: bool = True
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    max_tool_calls: int | None = None
    format: dict[str, Any] | None = None  # None: text
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    metadata: dict[str, str] = {}
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    images_replaced: int = 0
    service_tier: str = "default"
    effort: str | None = None
    conversation: str | None = None
    previous: str | None = None
    created_at: int = 0


encode_echo = msgspec.json.Encoder().encode
decode_echo = msgspec.json.Decoder(Echo).decode


def render_item(item: Item) -> dict[str, Any]:
    """A stored item as the API shows it: content as parts, every required field there."""
    body = item.body
    match body.get("type"):
        case "function_call":
            return {"id": item.id, "status": "completed", **body}
        case "reasoning":
            content = [reasoning_text(body["text"])] if body["text"] else []
            return {"id": item.id, "type": "reasoning", "summary": [], "content": content, "status": body["status"]}
        case "compaction":
            return {"id": item.id, "type": "compaction", "encrypted_content": body["encrypted_content"]}
        case "function_call_output":
            return {"id": item.id, "status": "completed", **body, "output": _render_output(body["output"])}
    rendered = {"id": item.id, "type": "message", "status": body.get("status", "completed"), "role": body["role"]}
    if "phase" in body:
        rendered["phase"] = body["phase"]
    content = body["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if logprobs := body.get("logprobs"):
        return {**rendered, "content": [output_text(content, logprobs)]}
    return {**rendered, "content": [_render_part(part, body["role"]) for part in parts]}


def _render_output(output: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    return output if isinstance(output, str) else [_render_part(part, "tool") for part in output]


def _render_part(part: Mapping[str, Any], role: str) -> dict[str, Any]:
    if part["type"] == "refusal":
        return dict(part)
    if part["type"] == "input_image":
        return {"type": "input_image", "detail": part["detail"], "image_url": part.get("image_url"), "file_id": None}
    if role == "assistant":
        return output_text(part["text"])
    return {"type": "input_text", "text": part["text"]}


def output_text(text: str, logprobs: Sequence[Sequence[Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": render_logprobs(logprobs)}


def render_logprobs(logprobs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """As they are stored: `[token, logprob, [[token, logprob], …]]`."""
    return [
        {**_likely(token, logprob), "top_logprobs": [_likely(*other) for other in top]}
        for token, logprob, top in logprobs
    ]


def _likely(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "bytes": list(token.encode("utf-8", "replace")), "logprob": logprob}


def reasoning_text(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def response_object(
    id: str, echo: Echo, status: str, output: Sequence[Mapping[str, Any]], outcome: Finished | None
) -> dict[str, Any]:
    """All fields of the Response object, always."""
    return {
        "id": id,
        "object": "response",
        "created_at": echo.created_at,
        "completed_at": outcome.completed_at if outcome and status == "completed" else None,
        "status": status,
        "incomplete_details": {"reason": outcome.reason} if outcome and outcome.reason else None,
        "model": echo.model,
        "previous_response_id": echo.previous,
        "instructions": echo.instructions,
        "output": output,
        "error": {"code": outcome.code, "message": outcome.message} if outcome and outcome.code else None,
        "tools": echo.tools,
        "tool_choice": echo.tool_choice,
        "truncation": echo.truncation,
        "parallel_tool_calls": echo.parallel_tool_calls,
        "text": {"format": echo.format or {"type": "text"}},
        "top_p": echo.top_p,
        "presence_penalty": echo.presence_penalty,
        "frequency_penalty": echo.frequency_penalty,
        "top_logprobs": echo.top_logprobs,
        "temperature": echo.temperature,
        "reasoning": {"effort": echo.effort, "summary": None},
        "usage": usage_of(outcome) if outcome else None,
        "max_output_tokens": echo.max_output_tokens,
        "max_tool_calls": echo.max_tool_calls,
        "store": echo.store,
        "background": echo.background,
        "service_tier": echo.service_tier,
        "metadata": echo.metadata | _replaced(echo) | _timing(outcome),
        "safety_identifier": echo.safety_identifier,
        "prompt_cache_key": echo.prompt_cache_key,
        "conversation": {"id": echo.conversation} if echo.conversation else None,
    }


def usage_of(outcome: Finished) -> dict[str, Any]:
    return {
        "input_tokens": outcome.prompt_tokens,
        "input_tokens_details": {"cached_tokens": outcome.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": outcome.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": outcome.reasoning_tokens},
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
    }


def _replaced(echo: Echo) -> dict[str, str]:
    return {"deskmate:images_replaced": str(echo.images_replaced)} if echo.images_replaced else {}


def _timing(outcome: Finished | None) -> dict[str, str]:
    """Where the time went, in seconds, as metadata of the finished response."""
    if outcome is None or not outcome.timing.prefill:
        return {}
    timing = outcome.timing
    return {
        "deskmate:queued_seconds": f"{timing.queued:.3f}",
        "deskmate:prefill_seconds": f"{timing.prefill:.3f}",
        "deskmate:decode_seconds": f"{timing.decode:.3f}",
        "deskmate:cached_tokens": str(outcome.cached_tokens),
    }


def stored_object(stored: StoredResponse) -> dict[str, Any]:
    outcome = decode_event(stored.result) if stored.result is not None else None
    assert outcome is None or isinstance(outcome, Finished)  # noqa: S101 - what finish wrote
    output = [render_item(item) for item in stored.output]
    return response_object(stored.id, decode_echo(stored.request), stored.status, output, outcome)


@dataclass(frozen=True, slots=True)
class _Part:
    """How the one part of an item is streamed: the name in its events, what its item begins with."""

    name: str
    render: Callable[[str], dict[str, Any]]
    begun: Mapping[str, Any]
    tail: bytes  # the same in each delta


_PARTS: Mapping[str, _Part] = {
    "message": _Part("output_text", output_text, {"role": "assistant", "content": []}, b'"logprobs":[],'),
    "reasoning": _Part("reasoning_text", reasoning_text, {"summary": [], "content": []}, b""),
}


class StreamRenderer:
    """The Responses stream of one turn: feed it the turn's events in order, send what it gives.

    The ids of the answer's items are known before they are stored: one after the other from `first_output` on.
    """

    def __init__(self, id: str, echo: Echo, shelf: str, first_output: int) -> None:
        self._id = id
        self._echo = echo
        self._shelf = shelf
        self._first_output = first_output
        self._next = 0
        self._output: list[dict[str, Any]] = []  # the items that are done
        self._item = ""  # the message, or the thought, that is being written
        self._text: list[str] = []
        self._logprobs: list[Logprob] = []
        self.place = 0  # in line, when it came
        self._seated = False
        self._open = ""  # its type; empty: none is
        self._delta_head = self._delta_tail = b""

    def begin(self) -> Iterator[bytes]:
        yield self._state("response.created", "queued")

    def feed(self, happened: TurnEvent) -> Iterator[bytes]:
        match happened:
            case Delta(text=text, logprobs=logprobs):
                yield from self._say("message", text, logprobs)
            case Thought(text=text):
                yield from self._say("reasoning", text)
            case Queued(position=position, eta_seconds=eta):
                if position and not self.place:
                    self.place = position
                    yield self._state("response.queued", "queued")
                yield self._event("deskmate:queue.updated", position=position, eta_seconds=eta)
                if not position:
                    self._seated = True
                    yield self._state("response.in_progress", "in_progress")
            case Progress(state=state, eta_seconds=eta):
                yield self._event("deskmate:progress", state=state, eta_seconds=eta)
            case Compacted(item=compacted):
                yield from self._begin_output()
                item = render_item(Item(self._next_id("compaction"), compacted))
                yield self._event("response.output_item.added", output_index=len(self._output), item=item)
                yield self._done(item)
            case Rest():
                for part, likely in parts_of(happened):
                    yield from (
                        self._call(part) if isinstance(part, Call) else self.feed(Delta(part, (), likely or None))
                    )
            case Finished():
                yield from self._finish(happened)

    @property
    def count(self) -> int:
        """Events rendered so far, which is the next sequence number."""
        return self._next

    def result(self, outcome: Finished) -> dict[str, Any]:
        """The finished response, from what was fed."""
        return response_object(self._id, self._echo, outcome.status, list(self._output), outcome)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._next = self._next, self._next + 1
        return event({"type": kind, **fields, "sequence_number": number})

    def _state(self, kind: str, status: str) -> bytes:
        return self._event(kind, response=response_object(self._id, self._echo, status, [], None))

    def _say(self, kind: str, text: str, logprobs: tuple[Logprob, ...] | None = None) -> Iterator[bytes]:
        if self._open != kind:
            if self._open:
                yield from self._close_item(True)
            yield from self._open_item(kind)
        self._text.append(text)
        yield self._delta(text) if logprobs is None else self._likely_delta(text, logprobs)

    def _delta(self, text: str) -> bytes:
        """The hot path: everything but the text and the number is rendered once."""
        number, self._next = self._next, self._next + 1
        return b'%b,"delta":%b,%b"sequence_number":%d}\n\n' % (
            self._delta_head,
            _encode_json(text),
            self._delta_tail,
            number,
        )

    def _likely_delta(self, text: str, logprobs: tuple[Logprob, ...]) -> bytes:
        self._logprobs += logprobs
        shown = render_logprobs(msgspec.to_builtins(logprobs))
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=shown)

    def _written(self, complete: bool) -> dict[str, Any]:
        text = "".join(self._text)
        if self._open == "reasoning":
            return render_item(Item(self._item, thought_item(text, complete)))
        return render_item(Item(self._item, answer_item(text, complete, self._logprobs)))

    def _next_id(self, kind: str) -> str:
        return item_id({"type": kind}, self._shelf, self._first_output + len(self._output))

    def _begin_output(self) -> Iterator[bytes]:
        if not self._seated:
            self._seated = True
            yield self._state("response.in_progress", "in_progress")

    def _open_item(self, kind: str) -> Iterator[bytes]:
        yield from self._begin_output()
        self._open, self._item = kind, self._next_id(kind)
        self._text.clear()
        self._logprobs.clear()
        part = _PARTS[kind]
        delta = f"response.{part.name}.delta"
        head = _encode_json({"type": delta, **self._place()})[:-1]
        self._delta_head, self._delta_tail = b"event: %b\ndata: %b" % (delta.encode(), head), part.tail
        item = {"id": self._item, "type": kind, "status": "in_progress", **part.begun}
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        yield self._event("response.content_part.added", **self._place(), part=part.render(""))

    def _close_item(self, complete: bool) -> Iterator[bytes]:
        done, name, place = self._written(complete), _PARTS[self._open].name, self._place()
        (part,) = done["content"]
        more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        yield self._event(f"response.{name}.done", **place, text=part["text"], **more)
        yield self._event("response.content_part.done", **place, part=part)
        self._open = ""
        yield self._done(done)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": len(self._output), "content_index": 0}

    def _call(self, call: Call) -> Iterator[bytes]:
        """A call comes whole: everything of it follows at once."""
        yield from self._begin_output()
        if self._open:
            yield from self._close_item(True)
        item = render_item(Item(self._next_id("function_call"), call_item(call)))
        place = {"item_id": item["id"], "output_index": len(self._output)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output), item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        arguments = {"name": call.name, "arguments": call.arguments}
        yield self._event("response.function_call_arguments.done", **place, **arguments)
        yield self._done(item)

    def _done(self, item: dict[str, Any]) -> bytes:
        index = len(self._output)
        self._output.append(item)
        return self._event("response.output_item.done", output_index=index, item=item)

    def _finish(self, outcome: Finished) -> Iterator[bytes]:
        complete = outcome.status == "completed"
        if complete and not self._open and not self._output:
            yield from self._open_item("message")
        if self._open:
            yield from self._close_item(complete)
        kind = "response.incomplete" if outcome.status == "cancelled" else f"response.{outcome.status}"
        yield self._event(kind, response=self.result(outcome))
