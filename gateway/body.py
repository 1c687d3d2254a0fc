"""Strict JSON: bytes in, a dict out or a BadRequest that says what and where; knows no route and no field.

Refused beside broken syntax: anything but UTF-8 (a byte order mark too), a top level that is no object, duplicate keys,
NaN and infinities (also 1e999), whole numbers beyond 64 bits, lone surrogates, NUL characters, more than 64 levels.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gateway.errors import BadRequest, UnknownParameter

MAX_DEPTH = 64
_MAX_DIGITS = 20  # a sign and the 19 digits of 2**63
_ODD_ESCAPE = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")  # surrogates (mostly legal pairs) and NUL
_ODD_CHARACTER = re.compile("[\ud800-\udfff\0]")


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that `body` spells. Raises BadRequest (code `invalid_json`), never anything else."""
    value = _parse(_decode(body))
    if not isinstance(value, dict):
        raise _refusal(f"The body must be a JSON object, not {_name(value)}.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH or _ODD_ESCAPE.search(body):
        _check(value, "", 1)
    return value


def checked(
    body: dict[str, Any], *, required: Mapping[str, type] | None = None, optional: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """`body` with every required field, no unknown one and each of its type; a null counts as absent."""
    kinds = {**(required or {}), **(optional or {})}
    for name in body:
        if name not in kinds:
            raise UnknownParameter(f"Unknown field {_show(name)}.", param=_show(name))
    for name in required or {}:
        if body.get(name) is None:
            raise BadRequest(f"The field '{name}' is missing.", code="missing_parameter", param=name)
    present = {name: value for name, value in body.items() if value is not None}
    for name, value in present.items():
        if type(value) is not kinds[name]:
            raise BadRequest(f"'{name}' must be {_NAMES[kinds[name]]}, not {_name(value)}.", param=name)
    return present


_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _decode(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        raise _refusal("The body begins with a byte order mark; send plain UTF-8.")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise _refusal(f"The body is not UTF-8 (byte {fault.start}).") from None


def _parse(text: str) -> Any:
    if not text.strip():
        raise _refusal("The body is empty; send a JSON object.")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as fault:
        where = f"line {fault.lineno}, column {fault.colno}"
        raise _refusal(f"The body is not valid JSON: {fault.msg} at {where}.") from None
    except RecursionError:
        raise _too_deep() from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = _show(next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1))
        raise _refusal(f"The key {twice} stands twice in one object.", param=twice)
    return value


def _integer(text: str) -> int:
    number = int(text) if len(text) <= _MAX_DIGITS else None
    if number is None or not -(2**63) <= number < 2**63:
        raise _refusal(f"The number {text[:16]}… does not fit into 64 bits.")
    return number


def _real(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _refusal(f"The number {text[:24]} is too large.")
    return number


def _constant(text: str) -> None:
    raise _refusal(f"{text} is not a JSON number.")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant)


def _check(value: Any, path: str, depth: int) -> None:
    """Refuse odd characters and depth below `value`, which stands at `path` and `depth`."""
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, list):
            for index, item in enumerate(value):
                _check(item, f"{path}[{index}]", depth + 1)
            return
        for key, item in value.items():
            _check_text(key, path)
            _check(item, f"{path}.{key}" if path else key, depth + 1)


def _check_text(text: str, path: str) -> None:
    if odd := _ODD_CHARACTER.search(text):
        what = "a NUL character" if odd[0] == "\0" else f"a lone surrogate (\\u{ord(odd[0]):04x})"
        raise _refusal(f"{_show(path) if path else 'A key'} holds {what}.", param=_show(path) or None)


def _too_deep() -> BadRequest:
    return _refusal(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _name(value: Any) -> str:
    return "null" if value is None else _NAMES[type(value)]


def _show(name: str) -> str:
    """A key or path of the caller's as it may stand in an error: printable ASCII, short."""
    return name[:80].encode("ascii", "backslashreplace").decode("ascii").replace("\0", "\\0")


def _refusal(message: str, param: str | None = None) -> BadRequest:
    return BadRequest(message, code="invalid_json", param=param)
