"""Limits and what was used of them in Redis (see lua/parts/quota.lua); the line counts by the same keys."""

from collections.abc import Mapping

from gateway.quotas import USUAL_WEIGHT, Allowance, Balance, Kind, Wish
from gateway.quotas.packing import balance_of, limits_of
from gateway.redis_client import Argument, RedisClient


class RedisQuotas:
    """`Quotas`. `now_ms` 0 is Redis' own clock."""

    def __init__(self, redis: RedisClient, everybody: Allowance) -> None:
        self._redis = redis
        self._everybody = everybody

    async def balance(self, person: str, key: str | None = None, *, now_ms: int = 0) -> Balance:
        args = (now_ms, person, key or "", *limits_of(self._everybody))
        return balance_of(*await self._redis.run("read_usage", args=args))

    async def set(self, id: str, wishes: Mapping[Kind, Wish], expires_at: int | None = None) -> None:
        pairs: list[Argument] = []
        for kind, wish in wishes.items():
            pairs += (kind, "" if wish == "default" else wish)
        await self._redis.run("set_limits", [f"dm:limits:{id}"], [expires_at or "", *pairs])

    async def weight(self, person: str) -> float:
        return float(await self._redis.call("HGET", f"dm:limits:{person}", "weight") or USUAL_WEIGHT)

    async def set_weight(self, person: str, weight: float) -> None:
        usual = weight == USUAL_WEIGHT
        await self._redis.run("set_limits", [f"dm:limits:{person}"], ["", "weight", "" if usual else weight])
