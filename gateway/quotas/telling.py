"""How limits are told to clients: OpenAI's and Anthropic's headers, refusals, JSON. Counts and decides nothing."""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.errors import QuotaSpent, RateLimited, Refusal
from gateway.quotas import OF_A_KEY, TOKENS, Balance, Kind, Meter, Source

ANTHROPIC = "anthropic-ratelimit-"
_PERIODS = {Kind.TOKENS_PER_DAY: "today", Kind.TOKENS_PER_MONTH: "this month"}
_UNKNOWN_SECONDS = 2.0  # until one of somebody's requests ends, while nobody can tell


def limit_headers(balance: Balance) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*`, for those who have such limits; of two the one that is nearer."""
    headers: dict[str, str] = {}
    for name, meter, renews_at in _limited(balance):
        headers[f"x-ratelimit-limit-{name}"] = str(meter.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(meter.left)
        headers[f"x-ratelimit-reset-{name}"] = _duration(renews_at - balance.now)
    return headers


def anthropic_limit_headers(balance: Balance) -> dict[str, str]:
    """The same, and beside them Anthropic's names: a reset is a moment there."""
    headers = limit_headers(balance)
    for name, meter, renews_at in _limited(balance):
        headers[f"{ANTHROPIC}{name}-limit"] = str(meter.limit)
        headers[f"{ANTHROPIC}{name}-remaining"] = str(meter.left)
        headers[f"{ANTHROPIC}{name}-reset"] = f"{datetime.fromtimestamp(renews_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return headers


def _limited(balance: Balance) -> Iterator[tuple[str, Meter, int]]:
    """What is told: name, limit, and when it renews."""
    for name, kinds in (("requests", (Kind.REQUESTS_PER_MINUTE,)), ("tokens", TOKENS)):
        meter = balance.nearest(*kinds)
        if meter is not None and meter.limit is not None and meter.renews_at is not None:
            yield name, meter, meter.renews_at


def refusal_of(balance: Balance, meter: Meter, wait_seconds: float | None) -> Refusal:
    """Why a request is refused at this limit. `wait_seconds`: until one of theirs ends, where that is known.

    With the headers of every kind of client; who renders it leaves out those of the other kind.
    """
    told, by_key = anthropic_limit_headers(balance), meter.source is Source.KEY
    who, have = ("This key", "has") if by_key else ("You", "have")
    if meter.kind in TOKENS:
        renews = datetime.fromtimestamp(meter.renews_at or 0, UTC)
        return QuotaSpent(
            f"{who} {have} used {meter.used:,} of {meter.limit:,} tokens {_PERIODS[meter.kind]}; "
            f"they renew at {renews:%Y-%m-%d %H:%M} UTC. An administrator can raise the limit.",
            headers=told,
        )
    if meter.kind is Kind.REQUESTS_PER_MINUTE:
        seconds = (meter.renews_at or 0) - balance.now
        message = f"{who} may make {meter.limit:,} requests a minute; ask again in {math.ceil(seconds)} s."
        return RateLimited(message, retry_after_seconds=seconds, headers=told)
    message = f"You have {meter.used:,} requests under way, which is the limit; wait for some of them to end."
    return RateLimited(message, retry_after_seconds=wait_seconds or _UNKNOWN_SECONDS, headers=told)


def shown(balance: Balance) -> dict[str, Any]:
    """For each kind the limit that would refuse first: whose it is, what was used, what is left, when it renews."""
    nearest = {kind: balance.nearest(kind) for kind in Kind}
    return {kind.value: _shown(meter) for kind, meter in nearest.items() if meter is not None}


def managed(balance: Balance, whose: Source) -> dict[str, Any]:
    """The same for whoever sets them: with `own`, the limit that is set for that person or that key."""
    own: dict[str, Any] = {meter.kind.value: meter.limit for meter in balance.meters if meter.source is whose}
    kinds = OF_A_KEY if whose is Source.KEY else tuple(Kind)
    return {
        kind: {**row, "own": ("none" if own[kind] is None else own[kind]) if kind in own else "default"}
        if kind in kinds
        else row
        for kind, row in shown(balance).items()
    }


def _shown(meter: Meter) -> Mapping[str, Any]:
    return {
        "limit": meter.limit,
        "used": meter.used,
        "left": meter.left,
        "renews_at": meter.renews_at,
        "source": meter.source.value,
    }


def _duration(seconds: float) -> str:
    """As OpenAI writes them: 6h0m12s, 42s; never less than there is."""
    left = max(0, math.ceil(seconds))
    hours, minutes = left // 3600, left % 3600 // 60
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{left % 60}s"
