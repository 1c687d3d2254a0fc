"""Browser sessions: a random token in a cookie, its digest in Redis; knows nothing of cookies.

dm:session:{digest}  hash  v user created_at; TTL: 7 days without use, never past 30 days of age
dm:sessions:{user}   set   digests of that person's sessions; TTL 30 days from the last sign-in
"""

import secrets
import time
from collections.abc import Callable

from gateway.auth.secret import Secrets
from gateway.redis_client import RedisClient

IDLE_SECONDS = 7 * 86_400
ABSOLUTE_SECONDS = 30 * 86_400
_WRITE_SECONDS = 3600  # how stale the idle limit may be, to spare a write per request


class Sessions:
    def __init__(self, redis: RedisClient, secrets: Secrets, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._secrets = secrets
        self._clock = clock

    async def open(self, user: str) -> str:
        """A new session's token: 256 random bits, told only here."""
        token = secrets.token_urlsafe(32)
        digest = self._secrets.digest_of_token(token)
        await self._redis.run(
            "open_session",
            [f"dm:session:{digest}", f"dm:sessions:{user}", f"dm:user:{user}"],
            [digest, user, int(self._clock()), IDLE_SECONDS, ABSOLUTE_SECONDS],
        )
        return token

    async def user_of(self, digest: str) -> str | None:
        """Whose session is stored under `digest`, if it is still good; puts its idle limit off."""
        user = await self._redis.run(
            "touch_session",
            [f"dm:session:{digest}"],
            [int(self._clock()), IDLE_SECONDS, ABSOLUTE_SECONDS, _WRITE_SECONDS],
        )
        return user.decode() if user else None

    async def end(self, token: str) -> None:
        await self._redis.call("DEL", f"dm:session:{self._secrets.digest_of_token(token)}")

    async def end_all(self, user: str) -> None:
        await self._redis.run("end_sessions", [f"dm:sessions:{user}"])
