"""How limits come into scripts, and how scripts tell of them (see lua/parts/quota.lua). Knows no Redis."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.quotas import Allowance, Balance, Kind, Meter, Source

_DAY = 86_400
_MINUTE = 60


def limits_of(allowance: Allowance) -> Iterator[str | int]:
    """As scripts take them."""
    for kind in Kind:
        limit = allowance.of(kind)
        yield "none" if limit is None else limit


def balance_of(now_ms: int, rows: Sequence[Sequence[Any]]) -> Balance:
    """As scripts tell it."""
    now = now_ms / 1000
    return Balance(now, tuple(_meter(now, *row) for row in rows))


def _meter(now: float, kind: bytes, limit: int, used: int, source: bytes) -> Meter:
    known = Kind(kind.decode())
    return Meter(known, None if limit < 0 else limit, used, Source(source.decode()), _renews_at(known, int(now)))


def _renews_at(kind: Kind, now: int) -> int | None:
    match kind:
        case Kind.TOKENS_PER_DAY:
            return now - now % _DAY + _DAY
        case Kind.TOKENS_PER_MONTH:
            today = datetime.fromtimestamp(now, UTC)
            year, month = divmod(today.year * 12 + today.month, 12)  # months count from 0: this is the next one
            return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp())
        case Kind.REQUESTS_PER_MINUTE:
            return now - now % _MINUTE + _MINUTE
    return None
