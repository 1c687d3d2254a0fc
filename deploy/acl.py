"""Who may do what in the compose stack's Redis, as an ACL file. Knows no server and no container.

The gateway's user may touch its own keys only, with the commands that its code uses: no script it runs can do more
either. Nobody may administer: who must, does it on the machine, with Redis stopped.
"""

from __future__ import annotations

import hashlib

GATEWAY_USER = "deskmate"
KEYS = "~dm:*"
COMMANDS = (
    "ping info time scan eval evalsha "
    "exists del unlink type expire expireat expiretime pexpire pexpireat pexpiretime persist ttl pttl "
    "get set getdel incr decr "
    "hdel hexists hget hgetall hincrby hmget hset hsetnx "
    "lindex llen lpop lpos lrange lrem rpush "
    "sadd scard smembers srem "
    "xadd xrange "
    "zadd zcard zcount zrange zrangebyscore zrem zremrangebyscore zrevrange zrevrank zscore"
)


def users(password: str) -> str:
    """The file's text: the gateway's user, and one that may only ask for a PONG.

    Nobody can be the default user, but Redis itself is when it reads its file: without rights it would leave out there
    what was written in one step, and forget it.
    """
    return (
        "user default off resetpass allkeys allchannels +@all\n"
        "user health on nopass resetkeys resetchannels -@all +ping\n"
        f"{gateway_user(password)}\n"
    )


def gateway_user(password: str) -> str:
    """Its line, which holds the password as a digest only."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    allowed = " ".join(f"+{command}" for command in COMMANDS.split())
    return f"user {GATEWAY_USER} on #{digest} resetkeys {KEYS} resetchannels -@all {allowed}"
