"""Bytes of a stream, however they are cut: whole events, the usage found, dropped or kept, the end and errors seen."""

import random

import pytest

from gateway.admission import Ticket
from gateway.auth.principal import Principal, Role
from gateway.errors import ContextLengthExceeded, EngineAway, EngineError, PromptRefused
from gateway.refused import refused
from gateway.relay import CHAT, COMPLETION, MESSAGES, Order, Served, _Events

ADA = Principal("u", "ada", Role.MEMBER, frozenset())
OPENING = b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = 'data: {"id":"1","choices":[{"index":0,"delta":{"content":"世 \\"choices\\":[] 🙂"}}]}\n\n'.encode()
USAGE = (
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
END = b"data: [DONE]\n\n"
CHAT_STREAM = OPENING + TOKEN * 3 + USAGE + END


def events(dialect=CHAT, *, keeps_usage=False):
    order = Order(dialect, b"", ADA, Ticket("u", 1, 1), "r", streamed=True, keeps_usage=keeps_usage)
    served = Served(dialect.path, True)
    return _Events(order, served), served


def cut(data, seed):
    places = sorted(random.Random(seed).sample(range(1, len(data)), 12))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("keeps_usage", [True, False])
def test_however_the_bytes_are_cut_whole_events_come_out(seed, keeps_usage):
    taken, served = events(keeps_usage=keeps_usage)
    sent = [part for piece in cut(CHAT_STREAM, seed) if (part := taken.take(piece))]
    assert all(part.endswith(b"\n\n") for part in sent)
    assert b"".join(sent) == (CHAT_STREAM if keeps_usage else CHAT_STREAM.replace(USAGE, b""))
    assert (served.prompt_tokens, served.completion_tokens, served.cached_tokens) == (9, 3, 4)
    assert taken.ended
    assert not taken.broken


def test_without_a_usage_event_the_tokens_are_counted():
    taken, served = events()
    taken.take(OPENING + TOKEN * 2 + TOKEN[:10])
    assert served.completion_tokens == 2
    assert not taken.ended
    taken, served = events(COMPLETION)
    taken.take(TOKEN * 2)
    assert served.completion_tokens == 2


def test_anthropic_usage_is_found_and_kept():
    start = b'event: message_start\ndata: {"type":"message_start"}\n\nevent: content_block_start\ndata: {}\n\n'
    delta = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
    end = (
        b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"input_tokens":9,"output_tokens":2,'
        b'"cache_read_input_tokens":8}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    taken, served = events(MESSAGES)
    assert taken.take(start + delta * 2) == start + delta * 2
    assert served.completion_tokens == 2
    assert taken.take(end) == end
    assert (served.prompt_tokens, served.completion_tokens, served.cached_tokens) == (9, 2, 8)
    assert taken.ended


def test_an_error_of_the_engine_is_cut_off():
    taken, _ = events()
    error = b'data: {"error":{"message":"/usr/lib/x.py died at 0x7f00deadbeef","code":500}}\n\n'
    assert taken.take(OPENING + TOKEN + error + END) == OPENING + TOKEN
    assert taken.broken
    assert not taken.ended


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (
            400,
            b'{"error":{"message":"max_tokens must be positive","param":"body.max_tokens","code":400}}',
            PromptRefused,
        ),
        (400, b'{"error":{"message":"This model\'s maximum context length is 9"}}', ContextLengthExceeded),
        (422, b"not json", PromptRefused),
        (404, b'{"type":"error","error":{"type":"NotFoundError","message":"gone"}}', EngineError),
        (500, b"", EngineAway),
        (503, b"<html>", EngineAway),
    ],
)
def test_the_engines_refusals_become_ours(status, body, kind):
    refusal = refused(status, body)
    assert type(refusal) is kind
    assert refusal.param in (None, "max_tokens")


@pytest.mark.parametrize("leak", ["object at 0x7f3a2b1c", "in /usr/lib/python3/x.py line 3", "Traceback (most recent"])
def test_no_address_path_or_stack_is_passed_on(leak):
    refusal = refused(400, b'{"error":{"message":"bad %b"}}' % leak.encode())
    assert refusal.message == "The engine refused the request."
