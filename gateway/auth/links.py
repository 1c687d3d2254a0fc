"""One-time sign-in links: a random token, good once and for a day; knows nothing of pages.

dm:link:{digest}  string  id of the person it signs in; TTL 24 h, taken by GETDEL
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.auth.secret import Secrets
from gateway.redis_client import RedisClient
from gateway.settings import Settings

GOOD_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    expires_at: int


class Links:
    def __init__(
        self, redis: RedisClient, secrets: Secrets, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._secrets = secrets
        self._address = address(settings)
        self._clock = clock

    async def create(self, user: str) -> Link:
        """The token stands in the URL's fragment: no server, proxy or preview ever sees it."""
        token = secrets.token_urlsafe(32)
        await self._redis.call("SET", f"dm:link:{self._secrets.digest_of_token(token)}", user, "EX", GOOD_SECONDS)
        return Link(f"{self._address}/#link={token}", int(self._clock()) + GOOD_SECONDS)

    async def open(self, token: str) -> str | None:
        """The person whom this link signs in; of many who open it at once, one gets an answer."""
        user = await self._redis.call("GETDEL", f"dm:link:{self._secrets.digest_of_token(token)}")
        return user.decode() if user else None


def address(settings: Settings) -> str:
    """Where people find this gateway, as far as its settings tell."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    return f"{'https' if settings.tls_cert else 'http'}://{host}:{settings.port}"
