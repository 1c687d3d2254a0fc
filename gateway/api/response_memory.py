"""What was said in responses that are not stored, while their connection lives. Knows neither turns nor storage."""

from collections.abc import Sequence

import msgspec

from gateway.conversations import Json

MOST_RESPONSES = 8
MOST_BYTES = 2 << 20  # of all contexts; what they share counts each time

_encode = msgspec.json.Encoder().encode


class Memory:
    """The newest contexts of one connection, by the response they end with: its input, what came before, its output."""

    def __init__(self, most_responses: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most_responses = most_responses
        self._most_bytes = most_bytes
        self._contexts: dict[str, tuple[Sequence[Json], int]] = {}

    def get(self, response: str | None) -> Sequence[Json] | None:
        found = self._contexts.get(response or "")
        return found[0] if found else None

    def keep(self, response: str, context: Sequence[Json]) -> None:
        """The oldest go for it, and itself when it alone is too large."""
        self.forget(response)
        self._contexts[response] = (context, len(_encode(context)))
        while len(self._contexts) > self._most_responses or self._bytes > self._most_bytes:
            del self._contexts[next(iter(self._contexts))]

    def forget(self, response: str | None) -> None:
        self._contexts.pop(response or "", None)

    @property
    def _bytes(self) -> int:
        return sum(size for _, size in self._contexts.values())
