"""Names of stored things: made unguessable, checked before they enter a key; where an item's id says it lies."""

import re
import secrets
import string
from typing import NamedTuple

ALPHABET = string.ascii_letters + string.digits
_LETTERS = bytes(ord(ALPHABET[byte % len(ALPHABET)]) for byte in range(256))
ID_LENGTH = 24
SHELF_LENGTH = 16
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_ITEM = re.compile(rf"[a-z]+_([A-Za-z0-9]{{{SHELF_LENGTH}}})([1-9][0-9]{{0,14}})")


class Place(NamedTuple):
    shelf: str
    number: int


def new_id(kind: str) -> str:
    """`resp_…`, `conv_…`"""
    return f"{kind}_{_random(ID_LENGTH)}"


def new_shelf() -> str:
    return _random(SHELF_LENGTH)


def _random(length: int) -> str:
    """`length` characters of about 5.9 bits each."""
    return secrets.token_bytes(length).translate(_LETTERS).decode()


def is_name(text: str) -> bool:
    """Whether the text may be part of a key: no colon, so that no id reaches into another owner's keys."""
    return _NAME.fullmatch(text) is not None


def place_of(item: str) -> Place | None:
    """Where the item with this id lies; None for what cannot be an id of ours."""
    match = _ITEM.fullmatch(item)
    return Place(match[1], int(match[2])) if match else None
