"""How often one may fail to sign in with a password; knows neither passwords nor people.

    dm:try:{account}:{address}    string  failures of this address at this account
    dm:try:address:{address}      string  failures of this address
    dm:try:account:{account}      string  failures at this account
    dm:trusted:{account}:{address} string  this account has signed in from there; TTL 30 days

Counters live 15 minutes from the first failure. An address an account has signed in from is held to its own counter
only: who guesses passwords elsewhere, or beside it behind the same router, locks nobody out.
"""

import ipaddress
from dataclasses import dataclass

from gateway.auth.secret import Secrets
from gateway.errors import Busy
from gateway.redis_client import RedisClient

_WINDOW_SECONDS = 900
_PAIR, _ADDRESS, _ACCOUNT = 5, 100, 100
_TRUST_SECONDS = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try, counted as a failure until it is settled."""

    keys: tuple[str, str, str, str]


class Throttle:
    def __init__(self, redis: RedisClient, secrets: Secrets) -> None:
        self._redis = redis
        self._secrets = secrets

    async def begin(self, account: str, address: str) -> Attempt:
        """Count a try before it is made, so that a burst gets no more than its due. Raises Busy."""
        who, where = self._short(account), self._short(_network(address))
        pair = f"{who}:{where}"
        attempt = Attempt((f"dm:try:{pair}", f"dm:try:address:{where}", f"dm:try:account:{who}", f"dm:trusted:{pair}"))
        wait = await self._redis.run("begin_attempt", attempt.keys, [_PAIR, _ADDRESS, _ACCOUNT, _WINDOW_SECONDS])
        if wait:
            raise Busy(
                f"Too many failed attempts to sign in; try again in {wait} seconds, or ask for a sign-in link.",
                retry_after_seconds=wait,
                code="too_many_attempts",
            )
        return attempt

    async def succeeded(self, attempt: Attempt) -> None:
        await self._redis.run("settle_attempt", attempt.keys, [_TRUST_SECONDS])

    async def withdraw(self, attempt: Attempt) -> None:
        """The try was not made after all."""
        await self._redis.run("settle_attempt", attempt.keys, [0])

    def _short(self, text: str) -> str:
        return self._secrets.digest_of_token(text)[:24]  # neither names nor addresses stand in Redis


def _network(address: str) -> str:
    """What one client commands: an IPv4 address, an IPv6 /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
