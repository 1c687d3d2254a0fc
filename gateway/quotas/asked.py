"""What an administrator asks of limits, checked: over HTTP as JSON, on the command line as words."""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import BadRequest, UnknownParameter
from gateway.quotas import MOST, OF_A_KEY, WEIGHTS, Kind, Wish


def of_a_person(asked: Mapping[str, Any]) -> dict[Kind, Wish]:
    """Raises BadRequest. What is null or left out stays as it is."""
    return _wishes(asked, tuple(Kind))


def of_a_key(asked: Mapping[str, Any]) -> dict[Kind, Wish]:
    """The same; to have no limit and to have none of its own is one for a key."""
    return {kind: "default" if wish == "none" else wish for kind, wish in _wishes(asked, OF_A_KEY).items()}


def wish(text: str) -> Wish:
    """Raises ValueError."""
    if text == "none":
        return "none"
    if text == "default":
        return "default"
    if not text.isdecimal() or not text.isascii() or int(text) > MOST:
        raise ValueError
    return int(text)


def weight(asked: Any) -> float:
    """Of a person in the line. Raises BadRequest."""
    least, most = WEIGHTS
    if type(asked) not in (int, float) or not least <= asked <= most:
        raise BadRequest(f"'weight' must be a number from {least:g} to {most:g}; 1 is everybody's.", param="weight")
    return float(asked)


def of_a_weight(asked: Mapping[str, Any]) -> float:
    """`{"weight": 2}`. Raises BadRequest."""
    if set(asked) != {"weight"}:
        raise BadRequest('The body must be {"weight": a number}.', param="weight")
    return weight(asked["weight"])


def _wishes(asked: Mapping[str, Any], kinds: Sequence[Kind]) -> dict[Kind, Wish]:
    for name in asked:
        if name not in kinds:
            known, named = ", ".join(kinds), name[:80].encode("ascii", "backslashreplace").decode()
            raise UnknownParameter(f"There is no limit '{named}' here; there are: {known}.", param=named)
    return {Kind(name): _wish(name, value) for name, value in asked.items() if value is not None}


def _wish(name: str, value: Any) -> Wish:
    if value in ("none", "default") or (type(value) is int and 0 <= value <= MOST):
        known: Wish = value
        return known
    raise BadRequest(f'\'{name}\' must be a whole number from 0 on, "none" or "default".', param=name)
