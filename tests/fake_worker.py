"""A scripted engine behind vLLM's HTTP surface: the one part that tests cannot drive to a fault otherwise.

Answers are a pure function of the prompt's token ids (and the seed), so that a test knows what must come, and so that
prompt ids + generated ids on /v1/completions continue the very same answer. Shapes of bodies and events are those
vLLM 0.32 sends. Speaks HTTP/1.1 itself on an asyncio protocol: it must outrun the gateway in benchmarks, and it must be
able to break a connection at any byte. Knows nothing of the gateway.

    python -m tests.fake_worker --port 8001 --pace-ms 5
    POST /_fake/script {"pace_ms": 5, "loading": false, "fail": "close_after:3", ...}   (the fields of `Script`)
    GET  /_fake/requests
    --journal FILE: a line for each answer that begins or ends, which outlives the process
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import itertools
import os
import re
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from tests.listening import stop_listening

json_bytes = msgspec.json.encode
json_value = msgspec.json.decode

FINGERPRINT = "vllm-0.32.0-fake"
UNSET = msgspec.UNSET


# Tokens ---------------------------------------------------------------------------------------------------------------
# An id holds its own bytes (at most five), so that ids outlive the process and every Redis script keeps them exact.

IM_START, IM_END, END_OF_TEXT, ASSISTANT, THINK, THOUGHT = range(1, 7)
SPECIAL = {"<|im_start|>": IM_START, "<|im_end|>": IM_END, "<|endoftext|>": END_OF_TEXT, "<think>": THINK}
SPECIAL |= {"</think>": THOUGHT}
SPECIAL_TEXT = {
    **{number: text.encode() for text, number in SPECIAL.items()},
    ASSISTANT: b"<|im_start|>assistant\n",
}
_OFFSET = 256
_BYTES_PER_TOKEN = 5
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
_PIECE = re.compile(r" ?\S{1,4}|\s")


def token_id(piece: bytes) -> int:
    return _OFFSET + int.from_bytes(piece, "little")


def token_bytes(number: int) -> bytes:
    if number in SPECIAL_TEXT:
        return SPECIAL_TEXT[number]
    value = max(0, number - _OFFSET)
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "little")


def tokenize(text: str) -> list[int]:
    """One id per four characters or word, less for wide characters; a control token in the text is that token."""
    ids: list[int] = []
    for part in _SPECIAL.split(text):
        ids += [SPECIAL[part]] if part in SPECIAL else _plain_ids(part)
    return ids


def _plain_ids(text: str) -> list[int]:
    pieces = [piece.encode("utf-8", "replace") for piece in _PIECE.findall(text)]
    return [token_id(raw[at : at + _BYTES_PER_TOKEN]) for raw in pieces for at in range(0, len(raw), _BYTES_PER_TOKEN)]


def detokenize(ids: list[int]) -> str:
    return b"".join(map(token_bytes, ids)).decode("utf-8", "replace")


def text_of(content: Any) -> str:
    """The text of a message's content; parts may nest (a tool result holds parts again)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(part.get("text") or text_of(part.get("content")) for part in content if isinstance(part, dict))


OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>\n"


NO_THOUGHT = "<think>\n\n</think>\n\n"


def chat_ids(messages: list[dict[str, Any]], tools: Any = None, *, thinking: bool = True) -> list[int]:
    """The prompt of a chat: the tools, each message between its markers, then the assistant's header.

    `thinking` is the switch of the template: without it the header holds thoughts that have ended.
    """
    ids: list[int] = [IM_START, *tokenize(f"tools\n{json_bytes(tools).decode()}"), IM_END] if tools else []
    for message in messages:
        calls = written(call.get("function") or {} for call in message.get("tool_calls") or ())
        thought = f"<think>\n{message['reasoning']}\n</think>\n\n" if message.get("reasoning") else ""
        text = f"{message.get('role')}\n{thought}{text_of(message.get('content'))}{calls}"
        ids += [IM_START, *tokenize(text), IM_END]
    return [*ids, ASSISTANT, *(() if thinking else tokenize(NO_THOUGHT))]


def written(calls: Iterable[Mapping[str, Any]]) -> str:
    """Calls as the model writes them, in the words that vLLM's parser `hermes` reads."""
    return "".join(f'{OPEN}{{"name": "{call.get("name")}", "arguments": {_json(call)}}}{CLOSE}' for call in calls)


def _json(call: Mapping[str, Any]) -> str:
    arguments = call.get("arguments")
    return arguments if isinstance(arguments, str) else json_bytes(arguments).decode()


class Hermes:
    """vLLM's parser of that name in little: what each piece of text adds to the content and to the calls."""

    def __init__(self, number: int) -> None:
        self.number, self.text, self.said = number, "", 0
        self.sent: list[int] = []  # characters of each call's arguments

    def delta(self, text: str) -> dict[str, Any]:
        self.text += text
        content, steps = self._content(), [step for step in self._steps() if step]
        if steps:
            return {"content": content, "tool_calls": steps}
        return {"content": content} if content else {}

    def _content(self) -> str | None:
        """Text before the first call, less what might become the beginning of one."""
        tag = OPEN.strip()
        end = self.text.find(tag)
        said, self.said = self.said, max(self.said, _without_start(self.text, tag) if end < 0 else end)
        return self.text[said : self.said] or None

    def _steps(self) -> Iterator[dict[str, Any]]:
        for index, region in enumerate(self.text.split(OPEN.strip())[1:]):
            tag = CLOSE.strip()
            body, closed, _ = region.partition(tag)
            yield from self._call(index, (body if closed else body[: _without_start(body, tag)]).strip())

    def _call(self, index: int, body: str) -> Iterator[dict[str, Any]]:
        if not (name := re.search(r'"name"\s*:\s*"([^"]+)"', body)):
            return
        if index == len(self.sent):
            self.sent.append(0)
            id = f"chatcmpl-tool-{self.number:014x}{index:02x}"
            yield {"id": id, "type": "function", "index": index, "function": {"name": name[1]}}
        begin = re.search(r'"arguments"\s*:\s*', body)
        arguments = body[begin.end() :] if begin else ""
        if _is_json(body):
            arguments = arguments.rstrip()[:-1].rstrip()
        if len(arguments) > self.sent[index]:
            sent, self.sent[index] = self.sent[index], len(arguments)
            yield {"index": index, "function": {"arguments": arguments[sent:]}}


class Qwen3:
    """vLLM's parser of thoughts of that name in little: what each token adds to them, or to the answer behind them.

    In the middle of an answer the prompt's tokens say whether it is thinking still.
    """

    def __init__(self, prompt_ids: list[int], answer: ChatDialect) -> None:
        marks = (number for number in reversed(prompt_ids) if number in (THINK, THOUGHT, ASSISTANT))
        self.thinks, self.tokens, self.answer = next(marks, ASSISTANT) != THOUGHT, 0, answer

    def delta(self, piece: Piece) -> dict[str, Any]:
        if not self.thinks:
            return self.answer.read(piece.text)
        self.thinks = piece.number != THOUGHT
        self.tokens += 1
        return {"reasoning": piece.text} if piece.text and piece.number not in (THINK, THOUGHT) else {}


def _without_start(text: str, tag: str) -> int:
    """How much of the text cannot be the beginning of the tag."""
    overlap = next((size for size in range(len(tag) - 1, 0, -1) if text.endswith(tag[:size])), 0)
    return len(text) - overlap


def _is_json(text: str) -> bool:
    try:
        json_value(text.encode())
    except ValueError:
        return False
    return True


# Answers --------------------------------------------------------------------------------------------------------------

_WORDS = (
    "the an hour desk sun tree lake note page line word hand road rain wind wood leaf bird blue gray cold warm soft"
    " old new wide deep near far late soon once then here home east west from into with over upon and but or so if as"
    " of to in on at by is was has can may will goes come give hold read says end. go; 你 好 世 界 中 文"
)
_EMOJI = "🙂".encode()
_HALVES = (token_id(_EMOJI[:2]), token_id(_EMOJI[2:]))  # one character in two tokens, as real vocabularies have them
VOCABULARY = (*(token_id(f" {word}".encode()) for word in _WORDS.split()), _HALVES[0])
_MASK = (1 << 61) - 1


def _fold(state: int, number: int) -> int:
    return ((state ^ number) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & _MASK


def generated_ids(prompt_ids: list[int], seed: int | None = None) -> Iterator[int]:
    """The endless answer to a prompt; its natural end is `natural_length`."""
    state, last = _fold(0, seed or 0), 0
    for last in prompt_ids:
        state = _fold(state, last)
    while True:
        last = _HALVES[1] if last == _HALVES[0] else VOCABULARY[(state >> 24) % len(VOCABULARY)]
        state = _fold(state, last)
        yield last


def natural_length(prompt_ids: list[int]) -> int:
    """Tokens still to come, the end of turn included: 24 to 64 after the assistant's header."""
    header = _header(prompt_ids)
    whole = 24 + zlib.crc32(repr(prompt_ids[:header]).encode()) % 41
    return max(1, whole - (len(prompt_ids) - header))


def _header(prompt_ids: list[int]) -> int:
    """Where the answer begins: after the last assistant's header, else after the prompt."""
    return len(prompt_ids) - prompt_ids[::-1].index(ASSISTANT) if ASSISTANT in prompt_ids else len(prompt_ids)


def answer(messages: list[dict[str, Any]], max_tokens: int | None = None, seed: int | None = None) -> str:
    """What the worker says to these chat messages (as it receives them)."""
    ids = chat_ids(messages)
    words = natural_length(ids) - 1
    count = words if max_tokens is None else min(words, max_tokens)
    # An answer cut inside a character ends before it, as in vLLM's stream.
    raw = b"".join(map(token_bytes, itertools.islice(generated_ids(ids, seed), count)))
    return codecs.getincrementaldecoder("utf-8")().decode(raw)


class Piece(NamedTuple):
    number: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | None = None


def pieces(prompt_ids: list[int], wish: Wish, answer: str | None) -> Iterator[Piece]:
    """The answer token by token, the scripted one if there is one; the last piece carries the finish reason."""
    numbers = generated_ids(prompt_ids, wish.seed)
    length = natural_length(prompt_ids)
    if answer is not None:
        scripted = tokenize(answer)[len(prompt_ids) - _header(prompt_ids) :]
        numbers, length = itertools.chain(scripted, numbers), len(scripted) + 1
    if wish.ignore_eos:
        length = wish.max_tokens
    ends = wish.ignore_eos or wish.max_tokens < length  # by length
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # vLLM's own surprise: a prompt that ends inside a character comes back whole with the first text.
    owed = detokenize(prompt_ids) if _ends_inside_a_character(prompt_ids) else ""
    said = held = ""
    last = min(length, wish.max_tokens) - 1
    for index, number in enumerate(numbers):
        if index == last and not ends:
            yield Piece(IM_END, owed, "stop")
            return
        # As vLLM: while the tokens end inside a character nothing is said, not even what stands before it in a token.
        held += decoder.decode(token_bytes(number))
        text, held = ("", held) if decoder.getstate()[0] else (held, "")
        if owed and text:
            text, owed = owed + text, ""
        stopped = next((stop for stop in wish.stop if stop in said + text), None) if wish.stop else None
        if stopped is not None:
            kept = (said + text).split(stopped, 1)[0]
            yield Piece(number, kept[len(said) :], "stop", stopped)
            return
        if index >= last:
            yield Piece(number, text, "length")
            return
        if wish.stop:
            said += text
        yield Piece(number, text)


def _ends_inside_a_character(ids: list[int]) -> bool:
    tail = b"".join(map(token_bytes, ids[-3:]))
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(tail)
    return bool(decoder.getstate()[0])


# Requests -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Script:
    """How the worker behaves from now on. `fail` holds for the next `times` requests (None: until it is changed)."""

    pace_ms: float = 0.0  # between two tokens of one answer; 0: as fast as the reader reads
    prefill_ms: float = 0.0  # before the first token
    loading: bool = False  # /health and everything else answer 503
    fail: str | None = None  # "500", "400", "hang", "garbage", "close_after:N", "error_after:N", "hang_after:N"
    times: int | None = None
    refuses: str | None = None  # why it holds no answer to any schema or to tools; vLLM says so as a stream begins
    checks: bool = True  # it has the route that says so before
    answer: str | None = None  # these words instead of the deterministic ones
    thoughts: str | None = None  # thought before `answer`; the chat is then read by vLLM's parser of thoughts
    # [{"name": …, "arguments": {…} or text}]: called when a request brings tools; after `answer`, if there is one
    tools: list[dict[str, Any]] | None = None
    split_bytes: int = 0  # write every frame in pieces of so many bytes
    batch: int = 1  # tokens that leave in one write


@dataclass(frozen=True, slots=True)
class Wish:
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False


@dataclass(slots=True, eq=False)
class Record:
    """One request as it was received, and how it went."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    state: str = "running"  # running, finished, aborted, failed
    tokens_sent: int = 0
    prompt_ids: list[int] = field(default_factory=list)
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": status}


def wish_of(body: Mapping[str, Any], default_max_tokens: int) -> Wish:
    stop = body.get("stop") or body.get("stop_sequences") or ()
    given = body.get("max_completion_tokens") or body.get("max_tokens")
    if not isinstance(body.get("seed") or 0, int):
        raise Refused(400, "1 validation error: seed: Input should be a valid integer", "Bad Request", "body.seed")
    return Wish(
        max_tokens=int(default_max_tokens if given is None else given),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=body.get("seed"),
        ignore_eos=bool(body.get("ignore_eos")),
    )


def usage_of(prompt_ids: list[int], count: int) -> dict[str, Any]:
    return {
        "prompt_tokens": len(prompt_ids),
        "total_tokens": len(prompt_ids) + count,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0},
    }


def _data(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


def likely(number: int, most: int) -> list[tuple[str, float]]:
    """How likely a token was, then the `most` likeliest in its place with itself as the first; made up of their ids."""
    others = VOCABULARY[number % len(VOCABULARY) :] + VOCABULARY
    return [
        (token_text(one), -(one % 97) / 100 - max(0, at - 1))
        for at, one in enumerate([number, number, *others][: most + 1])
    ]


def token_text(number: int) -> str:
    return token_bytes(number).decode("utf-8", "replace")


class ChatDialect:
    """/v1/chat/completions."""

    prefix = "chatcmpl"

    def __init__(self, body: dict[str, Any], prompt_ids: list[int], number: int, script: Script) -> None:
        self.body, self.prompt_ids, self.number = body, prompt_ids, number
        self.with_ids = bool(body.get("return_token_ids"))
        self.with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.tools = script.tools if body.get("tools") and body.get("tool_choice") != "none" else None
        self.answer = (script.answer or "") + written(self.tools) if self.tools else script.answer
        self.parser = Hermes(number) if self.tools else None
        self.thinker: Qwen3 | None = None
        if script.thoughts is not None:
            self.thinker = Qwen3(prompt_ids, self)
            off = tokenize(NO_THOUGHT) == prompt_ids[_header(prompt_ids) :][: len(tokenize(NO_THOUGHT))]
            thought = NO_THOUGHT if off else f"<think>\n{script.thoughts}\n</think>\n\n"
            self.answer = thought + (self.answer or "Well.")
        self.head = {
            "id": f"{self.prefix}-{number:016x}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body.get("model"),
        }
        self._before, self._after = self._frame_edges()

    def _frame_edges(self) -> tuple[bytes, bytes]:
        before = json_bytes(self.head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        return b"data: " + before, b'},"logprobs":null,"finish_reason":null,"token_ids":'

    def logprobs(self, answered: list[Piece]) -> Any:
        """Of each token, as vLLM tells them; its bytes are those of its text, also where that is half a character."""
        if not self.body.get("logprobs"):
            return None
        content = []
        for piece in answered:
            one, *top = (
                {"token": text, "logprob": logprob, "bytes": list(text.encode())}
                for text, logprob in likely(piece.number, self.body.get("top_logprobs") or 0)
            )
            content.append({**one, "top_logprobs": top})
        return {"content": content}

    def opening(self) -> bytes:
        delta = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ids = self.prompt_ids if self.with_ids else None
        return _data(self.head | {"choices": [delta], "prompt_token_ids": ids, "prompt_text": None})

    def read(self, text: str) -> dict[str, Any]:
        return self.parser.delta(text) if self.parser else {"content": text} if text else {}

    def parsed(self, piece: Piece) -> dict[str, Any]:
        return self.thinker.delta(piece) if self.thinker else self.read(piece.text)

    def delta(self, piece: Piece) -> bytes:
        if self.parser is not None or self.thinker is not None:
            delta, ids_too = self.parsed(piece), {"token_ids": [piece.number] if self.with_ids else None}
            if not delta and not self.with_ids:
                return b""  # nothing to say of this token
            choice = {"index": 0, "delta": delta, "logprobs": self.logprobs([piece]), "finish_reason": None}
            return _data(self.head | {"choices": [choice | ids_too]})
        if self.body.get("logprobs"):
            choice = {"index": 0, "delta": {"content": piece.text}, "logprobs": self.logprobs([piece])}
            ids_too = {"finish_reason": None, "token_ids": [piece.number] if self.with_ids else None}
            return _data(self.head | {"choices": [choice | ids_too]})
        ids = b"[%d]}]}\n\n" % piece.number if self.with_ids else b"null}]}\n\n"
        return self._before + json_bytes(piece.text) + self._after + ids

    def last(self, piece: Piece) -> bytes:
        delta, reason = {"content": piece.text}, piece.finish_reason
        if self.thinker is not None:
            delta = self.parsed(piece)
        if self.parser is not None:
            delta = delta if self.thinker else self.parsed(piece)
            named = isinstance(self.body.get("tool_choice"), dict)
            reason = "tool_calls" if self.parser.sent and reason == "stop" and not named else reason
        return self._final(delta, reason, piece)

    def _final(self, delta: dict[str, Any], finish: str | None, piece: Piece) -> bytes:
        choice = {
            "index": 0, "delta": delta, "logprobs": self.logprobs([piece]), "finish_reason": finish,
            "stop_reason": piece.stop_reason, "token_ids": [piece.number] if self.with_ids else None,
        }  # fmt: skip
        fingerprint = {} if self.with_usage else {"system_fingerprint": FINGERPRINT}
        return _data(self.head | {"choices": [choice]} | fingerprint)

    def closing(self, count: int) -> bytes:
        usage = {"choices": [], "usage": self.usage_of(count), "system_fingerprint": FINGERPRINT}
        return (_data(self.head | usage) if self.with_usage else b"") + b"data: [DONE]\n\n"

    def usage_of(self, count: int) -> dict[str, Any]:
        details = {"completion_tokens_details": {"reasoning_tokens": self.thinker.tokens}} if self.thinker else {}
        return usage_of(self.prompt_ids, count) | details

    def call_id(self, index: int) -> str:
        return f"chatcmpl-tool-{self.number:014x}{index:02x}"

    def apart(self, answered: list[Piece]) -> tuple[str, str]:
        """The thoughts, and everything else."""
        if self.thinker is None:
            return "", "".join(piece.text for piece in answered)
        parser, self.parser = self.parser, None
        deltas = [self.parsed(piece) for piece in answered]
        self.parser = parser
        return tuple("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning", "content"))

    def whole(self, answered: list[Piece]) -> dict[str, Any]:
        calls = [
            {
                "id": self.call_id(index),
                "type": "function",
                "function": {"name": tool["name"], "arguments": _json(tool)},
            }
            for index, tool in enumerate(self.tools or ())
        ]
        thought, said = self.apart(answered)
        text = said.split(OPEN)[0] or None if calls else said
        message = {
            "role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None,
            "function_call": None, **({"tool_calls": calls} if calls else {}), "reasoning": thought or None,
        }  # fmt: skip
        choice = {
            "index": 0, "message": message, "logprobs": self.logprobs(answered),
            "finish_reason": "tool_calls" if calls else answered[-1].finish_reason,
            "stop_reason": answered[-1].stop_reason,
            "token_ids": [piece.number for piece in answered] if self.with_ids else None, "routed_experts": None,
        }  # fmt: skip
        return self.head | {
            "object": "chat.completion", "choices": [choice], "service_tier": None, "system_fingerprint": FINGERPRINT,
            "usage": {"completion_tokens_details": None} | self.usage_of(len(answered)),
            "prompt_logprobs": None, "prompt_token_ids": self.prompt_ids if self.with_ids else None,
            "prompt_text": None, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None,
        }  # fmt: skip


class CompletionDialect(ChatDialect):
    """/v1/completions."""

    prefix = "cmpl"

    def __init__(self, body: dict[str, Any], prompt_ids: list[int], number: int, script: Script) -> None:
        super().__init__({key: value for key, value in body.items() if key != "tools"}, prompt_ids, number, script)
        self.thinker = None  # only chats are read by parsers
        self.head = self.head | {"object": "text_completion"}
        self._first = True
        self._offset = 0

    def logprobs(self, answered: list[Piece]) -> Any:
        if (most := self.body.get("logprobs")) is None:
            return None
        told = [likely(piece.number, most) for piece in answered]
        ends = list(itertools.accumulate(len(one[0][0]) for one in told))
        self._offset, offsets = self._offset + ends[-1], [self._offset + end for end in (0, *ends[:-1])]
        return {
            "text_offset": offsets, "token_logprobs": [one[0][1] for one in told],
            "tokens": [one[0][0] for one in told], "top_logprobs": [dict(one) for one in told],
        }  # fmt: skip

    def opening(self) -> bytes:
        return b""

    def delta(self, piece: Piece) -> bytes:
        prompt_ids = self.prompt_ids if self.with_ids and self._first else None
        self._first = False
        choice = {
            "index": 0, "text": piece.text, "logprobs": self.logprobs([piece]), "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason, "prompt_token_ids": prompt_ids,
            "token_ids": [piece.number] if self.with_ids else None,
        }  # fmt: skip
        return _data(self.head | {"choices": [choice]})

    last = delta

    def whole(self, answered: list[Piece]) -> dict[str, Any]:
        choice = {
            "index": 0, "text": "".join(piece.text for piece in answered), "logprobs": self.logprobs(answered),
            "finish_reason": answered[-1].finish_reason, "stop_reason": answered[-1].stop_reason,
            "token_ids": [piece.number for piece in answered] if self.with_ids else None, "prompt_logprobs": None,
            "prompt_token_ids": self.prompt_ids if self.with_ids else None, "routed_experts": None,
        }  # fmt: skip
        return self.head | {
            "choices": [choice], "service_tier": None, "system_fingerprint": FINGERPRINT,
            "usage": usage_of(self.prompt_ids, len(answered)) | {"completion_tokens_details": None},
            "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None,
        }  # fmt: skip


class MessagesDialect(ChatDialect):
    """/v1/messages: Anthropic's events."""

    def _event(self, kind: str, **value: Any) -> bytes:
        return f"event: {kind}\n".encode() + _data({"type": kind, **value})

    def _usage(self, count: int) -> dict[str, Any]:
        tokens = {"input_tokens": len(self.prompt_ids), "output_tokens": count}
        return tokens | {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}

    def _reason(self, finish: str | None, stop: str | None) -> dict[str, Any]:
        names = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "stop_sequence" if stop else "end_turn"}
        return {"stop_reason": names.get(finish or "stop"), "stop_sequence": stop}

    def opening(self) -> bytes:
        message = {
            "id": self.head["id"], "type": "message", "role": "assistant", "content": [],
            "model": self.head["model"], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": len(self.prompt_ids), "output_tokens": 0},
        }  # fmt: skip
        start = self._event("message_start", message=message)
        self.block, self.index = "", 0
        return start if self.tools or self.thinker else start + self._block("text")

    def _block(self, kind: str) -> bytes:
        """The end of the block that is open, if one is, and the beginning of another."""
        end = b""
        if self.block == "thinking":
            signature = {"type": "signature_delta", "signature": "f" * 32}
            end = self._event("content_block_delta", delta=signature, index=self.index)
        if self.block:
            end += self._event("content_block_stop", index=self.index)
            self.index += 1
        self.block = kind
        return end + self._event("content_block_start", content_block={"type": kind, kind: ""}, index=self.index)

    def delta(self, piece: Piece) -> bytes:
        said = self.parsed(piece) if self.thinker else {"content": piece.text}
        frames = b""
        for name, kind in (("reasoning", "thinking"), ("content", "text")):
            if name in said:
                frames += b"" if self.block == kind else self._block(kind)
                delta = {"type": f"{kind}_delta", kind: said[name]}
                frames += self._event("content_block_delta", delta=delta, index=self.index)
        return frames

    def last(self, piece: Piece) -> bytes:
        self._ended = (piece.finish_reason, piece.stop_reason)
        return self.delta(piece) + self._event("content_block_stop", index=self.index)

    def closing(self, count: int) -> bytes:
        end = self._event("message_delta", delta=self._reason(*self._ended), usage=self._usage(count))
        return end + self._event("message_stop")

    def tool_frames(self) -> list[bytes]:
        self._ended = ("tool_calls", None)
        frames = []
        for index, tool in enumerate(self.tools or ()):
            block = {"type": "tool_use", "id": self.call_id(index), "name": tool["name"], "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json_bytes(tool["arguments"]).decode()}
            frames.append(self._event("content_block_start", content_block=block, index=index))
            frames.append(self._event("content_block_delta", delta=delta, index=index))
            frames.append(self._event("content_block_stop", index=index))
        return frames

    def whole(self, answered: list[Piece]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "tool_use", "id": self.call_id(index), "name": tool["name"], "input": tool["arguments"]}
            for index, tool in enumerate(self.tools or ())
        ]
        if not content:
            thought, text = self.apart(answered)
            content = [{"type": "thinking", "thinking": thought, "signature": "f" * 32}] if thought else []
            content.append({"type": "text", "text": text})
        finish = "tool_calls" if self.tools else answered[-1].finish_reason
        return {
            "id": self.head["id"], "type": "message", "role": "assistant", "content": content,
            "model": self.head["model"], **self._reason(finish, answered[-1].stop_reason),
            "usage": self._usage(len(answered)),
        }  # fmt: skip


DIALECTS = {
    "/v1/chat/completions": ChatDialect,
    "/v1/completions": CompletionDialect,
    "/v1/messages": MessagesDialect,
}


# The engine -----------------------------------------------------------------------------------------------------------


class FakeEngine:
    """What all connections share: the script, the records, the counters."""

    def __init__(self, script: Script, *, model: str, context_tokens: int, seats: int, plan: Mapping[str, Any]) -> None:
        self.script = script
        self.model, self.context_tokens, self.seats = model, context_tokens, seats
        self.plan = default_plan(model, context_tokens, seats) | dict(plan)
        self.records: deque[Record] = deque(maxlen=4000)
        self.journal: IO[bytes] | None = None
        self.numbers = itertools.count(1)
        self.running = self.peak_running = self.prompt_tokens = self.generated_tokens = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0}

    def begin(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Record:
        record = Record(next(self.numbers), path, headers, body)
        self.records.append(record)
        return record

    def note(self, record: Record) -> None:
        """In the journal, at once: the next moment this process may be killed."""
        if self.journal is not None:
            line = {"pid": os.getpid(), "number": record.number, "id": record.headers.get("x-request-id", "")}
            line |= {"state": record.state, "tokens": record.tokens_sent, "prompt": len(record.prompt_ids)}
            self.journal.write(json_bytes(line | {"at": time.time()}) + b"\n")
            self.journal.flush()

    def take_failure(self) -> str | None:
        fail, times = self.script.fail, self.script.times
        if fail is not None and times is not None:
            self.script.times = times - 1
            if times <= 1:
                self.script.fail = self.script.times = None
        return fail

    def prompt_of(self, path: str, body: dict[str, Any]) -> list[int]:
        if path.endswith("/completions") and "prompt" in body and "messages" not in body:
            prompt = body["prompt"]
            return tokenize(prompt) if isinstance(prompt, str) else [int(number) for number in prompt]
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise Refused(400, "1 validation error: messages: Field required", "Bad Request", "body.messages")
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        if ids := (body.get("kv_transfer_params") or {}).get("prompt_token_ids"):
            return list(ids)  # as a decoding stage is given them; the messages are not read
        tools = body.get("tools") if path != "/v1/messages" else None
        switches = body.get("chat_template_kwargs") or {}
        return chat_ids(system + messages, tools, thinking=switches.get("enable_thinking") is not False)

    def check(self, path: str, body: dict[str, Any], prompt_ids: list[int]) -> Wish:
        """The refusals a gateway meets: unknown model, stream options, tools without a parser, too many tokens."""
        if body.get("model") not in (self.model, None):
            message = f"The model `{body.get('model')}` does not exist. Valid aliases: {self.model}."
            raise Refused(404, message, "NotFoundError", "model")
        if body.get("stream_options") and not body.get("stream"):
            raise Refused(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
        if body.get("tools") and body.get("tool_choice", "auto") == "auto" and not self.plan["tool_parser"]:
            raise Refused(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
        room = self.context_tokens - len(prompt_ids)
        wish = wish_of(body, 16 if path == "/v1/completions" else max(1, room))
        if room < 1 or wish.max_tokens > room:
            raise Refused(
                400,
                f"This model's maximum context length is {self.context_tokens} tokens. However, you requested "
                f"{wish.max_tokens} output tokens and your prompt contains at least {len(prompt_ids)} input tokens.",
                param="input_tokens",
            )
        return wish

    def check_form(self, body: Mapping[str, Any]) -> None:
        """What vLLM says of a schema that none of its grammars can hold, or of tools that must be called."""
        kind = (body.get("response_format") or {}).get("type")
        if self.script.refuses and (kind == "json_schema" or body.get("tools")):
            raise Refused(400, self.script.refuses)

    def metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.model}"}}'
        lines = [
            f"vllm:num_requests_running{labels} {float(self.running)}",
            f"vllm:num_requests_waiting{labels} 0.0",
            f"vllm:kv_cache_usage_perc{labels} {min(1.0, self.running / max(1, self.seats))}",
            f"vllm:prompt_tokens_total{labels} {float(self.prompt_tokens)}",
            f"vllm:generation_tokens_total{labels} {float(self.generated_tokens)}",
            f"vllm:prefix_cache_queries_total{labels} {float(self.prompt_tokens)}",
            f"vllm:prefix_cache_hits_total{labels} 0.0",
        ]
        for reason, count in self.finished.items():
            name = f'engine="0",finished_reason="{reason}",model_name="{self.model}"'
            lines.append(f"vllm:request_success_total{{{name}}} {float(count)}")
        return ("\n".join(lines) + "\n").encode()

    def models(self) -> dict[str, Any]:
        card = {"id": self.model, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": "/fake"}
        return {"object": "list", "data": [card | {"parent": None, "max_model_len": self.context_tokens}]}


def default_plan(model: str, context_tokens: int, seats: int) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {
            "id": model, "path": "/fake", "architecture": "FakeForCausalLM", "parameters": 1000, "weight_bytes": 2000,
            "dtype": "bfloat16", "demo": False,
        },
        "device": {"kind": "cpu", "name": "scripted", "memory_bytes": 1 << 30, "cores": 1},
        "context_tokens": context_tokens, "seats": seats, "kv_tokens": context_tokens * seats, "kv_bytes": 1 << 20,
        "block_tokens": 128, "added_tokens": list(SPECIAL), "tool_parser": "hermes", "vision": False,
        "reasoning_parser": None, "thinking_switch": None,
        "generation_defaults": {"max_tokens": 1024, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
        "flags": [], "environment": {}, "reasons": [],
    }  # fmt: skip


# HTTP -----------------------------------------------------------------------------------------------------------------

_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}
_REASONS |= {503: "Service Unavailable"}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time. Losing it aborts the request that runs."""

    transport: asyncio.Transport

    def __init__(self, engine: FakeEngine, open_connections: set[Connection]) -> None:
        self.engine = engine
        self.open = open_connections
        self.buffer = b""
        self.stream: Stream | None = None
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        self.open.add(self)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)
        if self.stream is not None:
            self.stream.end("aborted")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.stream is not None:
            self.stream.go_on()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.take_requests()

    def take_requests(self) -> None:
        while self.stream is None:
            head, separator, rest = self.buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            request_line, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            method, path, _ = request_line.split(" ")
            self.answer(method, path.partition("?")[0], headers, rest[:length])

    def answer(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> None:
        try:
            self.route(method, path, headers, raw)
        except Refused as refused:
            error = {"error": refused.error}
            if path.startswith("/v1/messages"):
                kind, message = refused.error["type"], refused.error["message"]
                error = {"type": "error", "error": {"type": kind, "message": message}}
            self.send_json(error, refused.status)

    def route(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> None:
        engine = self.engine
        if path == "/_fake/script":
            engine.script = msgspec.convert(asdict(engine.script) | json_value(raw), Script)
            return self.send_json(asdict(engine.script))
        if path == "/_fake/requests":
            records = [asdict(record) for record in engine.records]
            return self.send_json({"peak_running": engine.peak_running, "running": engine.running, "requests": records})
        if engine.script.loading:
            return self.send_json({"error": {"message": "loading"}}, 503)
        if method == "GET":
            return self.get(path)
        body = json_value(raw) if raw else {}
        try:
            return self.generate(path, headers, body) if path in DIALECTS else self.utility(path, headers, body)
        except (TypeError, AttributeError, ValueError, LookupError) as wrong:  # vLLM looks at the types first
            raise Refused(400, f"1 validation error: {wrong}", "Bad Request") from wrong

    def get(self, path: str) -> None:
        engine = self.engine
        answers: dict[str, Callable[[], Any]] = {
            "/health": lambda: b"",
            "/v1/models": engine.models,
            "/version": lambda: {"version": "0.32.0"},
            "/deskmate/plan": lambda: engine.plan if engine.plan.get("version") else None,
            "/metrics": engine.metrics,
        }
        value = answers[path]() if path in answers else None
        if value is None:
            raise Refused(404, "Not Found", "NotFoundError")
        if isinstance(value, bytes):
            return self.send(value, 200, "text/plain; version=0.0.4; charset=utf-8")
        return self.send_json(value)

    def utility(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        engine = self.engine
        record = engine.begin(path, headers, body)
        record.state = "finished"
        if path == "/deskmate/check" and engine.script.checks and engine.plan.get("version"):
            engine.check_form(body)
            return self.send(b"", 204, "text/plain")
        if path == "/tokenize":
            ids = tokenize(body["prompt"]) if "prompt" in body else engine.prompt_of(path, body)
            limit = engine.context_tokens
            return self.send_json({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None})
        if path == "/detokenize":
            return self.send_json({"prompt": detokenize(body["tokens"])})
        if path == "/v1/messages/count_tokens":
            count = len(engine.prompt_of(path, body))
            return self.send_json({"input_tokens": count, "context_management": {"original_input_tokens": count}})
        raise Refused(404, "Not Found", "NotFoundError")

    def generate(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        engine = self.engine
        record = engine.begin(path, headers, body)
        fail = engine.take_failure()
        if fail in ("500", "400"):
            record.state = "failed"
            raise Refused(int(fail), "the script says so", "InternalServerError")
        prompt_ids = engine.prompt_of(path, body)
        record.prompt_ids = prompt_ids
        wish = engine.check(path, body, prompt_ids)
        try:
            engine.check_form(body)
        except Refused as refusal:
            record.state = "failed"
            self.refuse(refusal, streamed=bool(body.get("stream")))
            return
        dialect = DIALECTS[path](body, prompt_ids, record.number, engine.script)
        self.stream = Stream(self, record, dialect, pieces(prompt_ids, wish, dialect.answer), fail)
        self.stream.begin()

    def refuse(self, refusal: Refused, *, streamed: bool) -> None:
        """As vLLM does where it looks only when the answer begins: a stream has its head by then."""
        if not streamed:
            raise refusal
        error = _data({"error": refusal.error}) + b"data: [DONE]\n\n"
        self.transport.write(_STREAM_HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(error), error))

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(json_bytes(value), status, "application/json")

    def send(self, body: bytes, status: int, content_type: str) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nserver: uvicorn\r\n"
            f"content-length: {len(body)}\r\ncontent-type: {content_type}\r\nvary: Origin\r\n\r\n"
        )
        self.transport.write(head.encode() + body)


class Stream:
    """One answer on its way, streamed or collected; a step per token, driven by the loop's clock."""

    def __init__(
        self, connection: Connection, record: Record, dialect: ChatDialect, answered: Iterator[Piece], fail: str | None
    ) -> None:
        self.connection, self.record, self.dialect, self.answered = connection, record, dialect, answered
        self.engine = connection.engine
        kind, _, count = (fail or "").partition(":")
        self.fail, self.fail_after = kind, int(count or 0)
        self.streamed = bool(record.body.get("stream"))
        self.collected: list[Piece] = []
        self.handle: asyncio.Handle | None = None
        self.loop = asyncio.get_running_loop()
        self.next_at = self.loop.time()

    def begin(self) -> None:
        engine = self.engine
        engine.running += 1
        engine.peak_running = max(engine.peak_running, engine.running)
        engine.prompt_tokens += len(self.record.prompt_ids)
        engine.note(self.record)
        if self.fail == "hang":
            return
        if self.fail == "garbage":
            self.connection.transport.write(_STREAM_HEAD)
            self.write(b"data: {\xff\xfe not json\n\nwhat: is this\n\n")
            self.end("failed")
            self.connection.transport.close()
            return
        if self.streamed:
            self.connection.transport.write(_STREAM_HEAD)
        self.later(engine.script.prefill_ms or engine.script.pace_ms, self.open_answer)

    def later(self, milliseconds: float, step: Callable[[], None]) -> None:
        if milliseconds <= 0:
            self.handle = self.loop.call_soon(step)
        else:
            self.next_at += milliseconds / 1000
            self.handle = self.loop.call_at(self.next_at, step)

    def go_on(self) -> None:
        if self.handle is None and self.fail not in ("hang", "hang_after"):
            self.later(0, self.step)

    def open_answer(self) -> None:
        if isinstance(self.dialect, MessagesDialect) and self.dialect.tools:
            self.collected = list(itertools.islice(self.answered, 1))
            if self.streamed:
                self.write(self.dialect.opening() + b"".join(self.dialect.tool_frames()))
            return self.finish()
        if self.streamed:
            opening = self.dialect.opening()
            if opening:
                self.write(opening)
        return self.step()

    def step(self) -> None:
        self.handle = None
        frames = []
        for _ in range(self.engine.script.batch):
            if self.fail and self.record.tokens_sent >= self.fail_after:
                self.write(b"".join(frames))
                return self.break_off()
            piece = next(self.answered)
            self.record.tokens_sent += 1
            if self.streamed:
                frames.append(self.dialect.last(piece) if piece.finish_reason else self.dialect.delta(piece))
            else:
                self.collected.append(piece)
            if piece.finish_reason:
                self.write(b"".join(frames))
                return self.finish(piece)
        self.write(b"".join(frames))
        if self.connection.writable:
            self.later(self.engine.script.pace_ms, self.step)
        return None

    def break_off(self) -> None:
        if self.fail == "error_after":
            error = {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
            self.write(_data({"error": error}) + b"data: [DONE]\n\n")
            self.connection.transport.write(b"0\r\n\r\n")
            self.end("failed")
            self.connection.stream = None
        elif self.fail == "close_after":
            self.end("failed")
            self.connection.transport.abort()

    def finish(self, last: Piece | None = None) -> None:
        count = max(1, self.record.tokens_sent)
        self.engine.finished[(last.finish_reason if last else None) or "stop"] += 1
        # Ended before the last bytes leave: whoever has read the answer finds it finished.
        self.end("finished")
        if self.streamed:
            self.write(self.dialect.closing(count))
            self.connection.transport.write(b"0\r\n\r\n")
        else:
            self.connection.send_json(self.dialect.whole(self.collected))
        self.connection.stream = None
        self.connection.take_requests()

    def write(self, data: bytes) -> None:
        if not data:
            return
        size = self.engine.script.split_bytes or len(data)
        for at in range(0, len(data), size):
            part = data[at : at + size]
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def end(self, state: str) -> None:
        if self.record.state != "running":
            return
        if self.handle is not None:
            self.handle.cancel()
        self.record.state = state
        self.record.ended_at = time.time()
        self.engine.running -= 1
        self.engine.generated_tokens += self.record.tokens_sent
        if state == "aborted":
            self.engine.finished["abort"] += 1
        self.engine.note(self.record)


# Running it -----------------------------------------------------------------------------------------------------------


async def listen(engine: FakeEngine, host: str, port: int, uds: str | None) -> tuple[asyncio.Server, set[Connection]]:
    loop = asyncio.get_running_loop()
    connections: set[Connection] = set()
    if uds is not None:
        Path(uds).unlink(missing_ok=True)
        return await loop.create_unix_server(lambda: Connection(engine, connections), uds, backlog=1024), connections
    made = await loop.create_server(lambda: Connection(engine, connections), host, port, backlog=1024)
    return made, connections


class FakeWorker:
    """The scripted worker in a thread of its own: `with FakeWorker() as worker: worker.url`.

    After `stop` (connections are cut, as by a crash) `start` serves at the same address again. Fields of `Script` are
    keywords, also of `script()`; `plan` overrides fields of the plan, `plan={"version": None}` serves none.
    """

    def __init__(
        self,
        *,
        uds: str | Path | None = None,
        port: int = 0,
        model: str = "fake",
        context_tokens: int = 8192,
        seats: int = 16,
        plan: Mapping[str, Any] | None = None,
        **script: Any,
    ) -> None:
        self.engine = FakeEngine(
            Script(**script), model=model, context_tokens=context_tokens, seats=seats, plan=plan or {}
        )
        self.uds = None if uds is None else str(uds)
        self.port = port
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self.uds is None else f"unix:{self.uds}"

    @property
    def requests(self) -> list[Record]:
        """Everything received so far, oldest first."""
        return list(self.engine.records)

    @property
    def generations(self) -> list[Record]:
        return [record for record in self.requests if record.path in DIALECTS]

    def script(self, **changes: Any) -> None:
        self.engine.script = Script(**(asdict(self.engine.script) | changes))

    async def until(self, true: Callable[[FakeWorker], Any], within_seconds: float = 5.0) -> Any:
        """Wait until `true(worker)` is, and return it; e.g. `await worker.until(lambda w: w.generations)`."""
        async with asyncio.timeout(within_seconds):
            while not (value := true(self)):  # noqa: ASYNC110 - it lives in another thread
                await asyncio.sleep(0.002)
        return value

    def start(self) -> FakeWorker:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fake-worker", daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the scripted worker did not start")
        return self

    def stop(self) -> None:
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        self._thread = None

    def _run(self, started: threading.Event) -> None:
        asyncio.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server, connections = await listen(self.engine, "127.0.0.1", self.port, self.uds)
        if self.uds is None:
            self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stopping.wait()
        await stop_listening(server)
        for connection in list(connections):
            connection.transport.abort()
        await server.wait_closed()
        await asyncio.sleep(0)  # connection_lost runs in the next step

    def __enter__(self) -> FakeWorker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


async def serve(arguments: argparse.Namespace) -> None:
    script = Script(
        **({"pace_ms": arguments.pace_ms, "prefill_ms": arguments.prefill_ms} | json_value(arguments.script))
    )
    engine = FakeEngine(script, model=arguments.model, context_tokens=arguments.context, seats=arguments.seats, plan={})
    if arguments.journal:
        engine.journal = Path(arguments.journal).open("ab")  # noqa: ASYNC230, SIM115 - open as long as the process lives
    server, _ = await listen(engine, arguments.host, arguments.port, arguments.uds)
    where = arguments.uds or "http://{}:{}".format(*server.sockets[0].getsockname())
    print(f"scripted worker at {where}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_worker", description="A scripted vLLM.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--uds", help="listen on this Unix socket instead")
    parser.add_argument("--model", default="fake")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--seats", type=int, default=16)
    parser.add_argument("--pace-ms", type=float, default=0.0, help="time between two tokens of one answer")
    parser.add_argument("--prefill-ms", type=float, default=0.0, help="time before the first token")
    parser.add_argument("--script", default="{}", help="further fields of `Script`, as JSON")
    parser.add_argument("--journal", help="file that tells of every answer, also after a SIGKILL")
    arguments = parser.parse_args()
    run: Callable[[Awaitable[None]], None] = asyncio.run  # type: ignore[assignment]
    try:
        import uvloop

        run = uvloop.run  # type: ignore[assignment]
    except ImportError:
        pass
    try:
        run(serve(arguments))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
