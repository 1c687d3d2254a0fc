"""Passwords: which are good enough, and their Argon2id hashes, two at a time; knows no person and no store."""

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import BadRequest, Busy

SHORTEST, LONGEST = 8, 128
_AT_ONCE, _QUEUE = 2, 20  # a hash takes 22 ms of a core and 19 MiB
_WEAK_WORDS = Path(__file__).with_name("weak_words.txt")
_LOOKALIKES = str.maketrans("013457@$!|", "oieastasil")
_ROWS = (
    *("01234567890", "abcdefghijklmnopqrstuvwxyz", "1qaz2wsx3edc4rfv5tgb", "qazwsxedcrfvtgb"),
    *("qwertyuiopasdfghjklzxcvbnm", "qwertzuiopasdfghjklyxcvbnm", "azertyuiopqsdfghjklmwxcvbn"),
)
T = TypeVar("T")


class Passwords:
    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="argon2")
        self._waiting = 0
        self._weak_words = frozenset(_WEAK_WORDS.read_text().split())
        self._nobodys = self._hasher.hash("the password of nobody")

    async def hash(self, password: str) -> str:
        """Raises Busy when too many wait."""
        return await self._run(partial(self._hasher.hash, _normal(password)))

    async def verify(self, password: str, hash: str | None) -> bool:
        """Whether `password` is the one hashed. Without a hash: the same work, then no. Raises Busy."""
        if len(password) > LONGEST:
            return False
        matches = await self._run(partial(self._verify, hash or self._nobodys, _normal(password)))
        return matches and hash is not None

    def is_outdated(self, hash: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(hash)

    def check(self, password: str, name: str) -> None:
        """Raise BadRequest unless `password` is good enough for the person called `name`."""
        if not SHORTEST <= len(_normal(password)) <= LONGEST:
            message = f"A password has {SHORTEST} to {LONGEST} characters; a short sentence is good."
            raise BadRequest(message, code="weak_password", param="new")
        if self._is_weak(_normal(password).casefold(), name.casefold()):
            raise BadRequest(
                "This password would be guessed among the first; take a few unrelated words.",
                code="weak_password",
                param="new",
            )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _is_weak(self, password: str, name: str) -> bool:
        if len(set(password)) < 4 or any(password in row or password in row[::-1] for row in _ROWS):
            return True
        bare = password.strip("0123456789!?.,-_#*+$@& ")
        plain = password.translate(_LOOKALIKES).strip("0123456789!?.,-_#*+$@& ")
        spellings = {password, bare, plain, bare.translate(_LOOKALIKES)}
        halves = {word[: len(word) // 2] for word in spellings if word == word[: len(word) // 2] * 2}
        return not (spellings | halves).isdisjoint({*self._weak_words, name, ""})

    def _verify(self, hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= _AT_ONCE + _QUEUE:
            raise Busy("Too many people are signing in at this moment.", retry_after_seconds=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _normal(password: str) -> str:
    """The same characters whatever keyboard they come from."""
    return unicodedata.normalize("NFC", password)
