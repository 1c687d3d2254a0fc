"""Strict JSON: nothing but an object of well-formed values comes out, nothing but a BadRequest goes up."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.body import MAX_DEPTH, checked, parse_json
from gateway.errors import BadRequest, UnknownParameter

HOSTILE = {
    "empty": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "truncated": (b'{"a": [1, 2', "line 1, column"),
    "trailing comma": (b'{"a": 1,}', "not valid JSON"),
    "two values": (b"{} {}", "Extra data"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a": "b"}'.encode("utf-16"), "not UTF-8 (byte 0)"),
    "UTF-32": ('{"a": "b"}'.encode("utf-32-le"), "not valid JSON"),
    "Latin-1": (b'{"a": "\xe4"}', "not UTF-8 (byte 7)"),
    "a surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    "a lone surrogate": (b'{"messages": [{"content": "\\ud800"}]}', "messages[0].content holds a lone surrogate"),
    "surrogates in the wrong order": (b'{"a": "\\udc00\\ud800"}', "a holds a lone surrogate"),
    "a surrogate in a key": (b'{"\\ud800": 1}', "A key holds a lone surrogate"),
    "a NUL": (b'{"a": {"b": "x\\u0000y"}}', "a.b holds a NUL"),
    "a raw control character": (b'{"a": "\x01"}', "not valid JSON"),
    "NaN": (b'{"temperature": NaN}', "NaN is not"),
    "Infinity": (b'{"temperature": -Infinity}', "-Infinity is not"),
    "1e999": (b'{"temperature": 1e999}', "1e999 is too large"),
    "a huge integer": (b'{"seed": ' + b"9" * 5000 + b"}", "64 bits"),
    "an integer of 65 bits": (b'{"seed": 9223372036854775808}', "64 bits"),
    "a key twice": (b'{"a": {"model": 1, "model": 2}}', "model stands twice"),
    "a list": (b"[1]", "not an array"),
    "a string": (b'"x"', "not a string"),
    "null": (b"null", "not null"),
    "deep lists": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64 levels"),
    "deep objects": (b'{"a": ' * 100_000, "64 levels"),
    "one level too deep": (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "64 levels"),
}


@pytest.mark.parametrize(("body", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_refused_and_says_why(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_json(body)
    assert says in refused.value.message
    assert refused.value.code == "invalid_json"
    json.dumps(refused.value.body()).encode()


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": "😀 \\ud83d", "名": ["中", None, True, -0.5, 2**63 - 1, -(2**63)]},
        {"a": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    ],
)
def test_what_is_well_formed_comes_out_as_it_went_in(value: dict[str, object]) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_sixty_four_levels_are_allowed() -> None:
    body = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert "a" in parse_json(body)


def test_a_wide_body_is_not_mistaken_for_a_deep_one() -> None:
    value = {"input": [{"role": "user", "content": "x"}] * 500}
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=300))
def test_no_bytes_cause_anything_but_a_bad_request(body: bytes) -> None:
    _parses_or_refuses(body)


_PIECES = st.sampled_from(
    ["{", "}", "[", "]", ",", ":", '"', '"a"', "\\", "\\ud800", "\\u0000", "1", "-", "1e999", "NaN", "null", "😀"]
)


@given(st.lists(_PIECES, max_size=40).map("".join))
def test_no_arrangement_of_json_pieces_causes_anything_but_a_bad_request(text: str) -> None:
    _parses_or_refuses(text.encode())
    _parses_or_refuses(b'{"a": ' + text.encode() + b"}")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=())), _JSON))
def test_any_value_python_can_write_is_parsed_or_refused_and_can_be_sent_on(value: dict[str, object]) -> None:
    _parses_or_refuses(json.dumps(value).encode())


def _parses_or_refuses(body: bytes) -> None:
    try:
        value = parse_json(body)
    except BadRequest as refusal:
        json.dumps(refusal.body()).encode()
    else:
        assert isinstance(value, dict)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # safe for Redis, for the worker, for a stream


def test_a_body_of_twenty_kibibytes_is_parsed_within_a_millisecond() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Grüße, 你好 " * 12}] * 110}).encode()
    assert len(body) > 20 * 1024
    fastest = min(_seconds(body) for _ in range(20))
    assert fastest < 0.005, f"{fastest * 1e3:.2f} ms"  # 0.3 ms where it was written


def _seconds(body: bytes) -> float:
    begin = time.perf_counter()
    parse_json(body)
    return time.perf_counter() - begin


def test_fields_are_checked_by_name_and_type() -> None:
    assert checked({"name": "x", "role": None}, required={"name": str}, optional={"role": str}) == {"name": "x"}
    with pytest.raises(UnknownParameter, match="admin"):
        checked({"name": "x", "admin": True}, required={"name": str})
    with pytest.raises(BadRequest, match="'name' is missing"):
        checked({}, required={"name": str})
    with pytest.raises(BadRequest, match="must be a whole number, not true or false"):
        checked({"days": True}, optional={"days": int})
