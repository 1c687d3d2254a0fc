"""The one value that says who is calling; knows nothing of how that was proven."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    ADMINISTRATOR = "administrator"
    MEMBER = "member"


class Scope(StrEnum):
    CHAT = "chat"  # models, chat, responses, conversations of its person
    METRICS = "metrics"  # /metrics
    DELEGATE = "delegate"  # may name the person it speaks for (a front end with one key)
    ADMIN = "admin"  # /admin


@dataclass(frozen=True, slots=True)
class Principal:
    """A person as the rest of the gateway sees them.

    `user` is the stable id in every storage key; `key` the API key's id, None for a browser session.
    """

    user: str
    name: str
    role: Role
    scopes: frozenset[Scope]
    department: str | None = None
    key: str | None = None
