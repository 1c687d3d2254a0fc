"""Who sent this request: an API key or a session cookie becomes a Principal; knows no route's meaning.

An answer of Redis is kept for half a second, so a key costs no read per request; what is revoked elsewhere is refused
within that time, what is revoked through this process at once (`forget`). Requests being answered are looked at
again (`watch`).
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import HTTPConnection

from gateway.auth.browser import Cookies, SameOrigin
from gateway.auth.delegates import Delegates
from gateway.auth.keys import Key, Keys, has_shape, is_well_formed
from gateway.auth.people import NAMESPACE, People, Person
from gateway.auth.principal import Principal, Role, Scope
from gateway.auth.secret import Secrets
from gateway.auth.sessions import Sessions
from gateway.auth.watch import Watch
from gateway.errors import Forbidden, Unauthenticated
from gateway.redis_client import RedisClient
from gateway.settings import Settings

_KEPT_SECONDS = 0.5
_KEPT_AT_MOST = 4096
_SESSION_SCOPES = {
    Role.MEMBER: frozenset({Scope.CHAT}),
    Role.ADMINISTRATOR: frozenset({Scope.CHAT, Scope.METRICS, Scope.ADMIN}),
}


@dataclass(frozen=True, slots=True)
class _Known:
    """A person, and the key they came with, if any, good until `until` on the monotonic clock."""

    person: Person
    key: Key | None
    until: float


class Authenticator:
    def __init__(self, redis: RedisClient, secrets: Secrets, settings: Settings) -> None:
        self.people = People(redis)
        self.keys = Keys(redis, secrets)
        self.sessions = Sessions(redis, secrets)
        self.cookies = Cookies(settings)
        self.same_origin = SameOrigin(settings)
        self._secrets = secrets
        self._delegates = Delegates(settings)
        self._most_delegates = settings.delegate_people
        # By full digest, never by a part of a token; whom a front end names by its owner and the name.
        self._known: dict[str, _Known] = {}
        self.watch = Watch()

    async def principal(self, request: HTTPConnection) -> Principal:
        """Raises Unauthenticated, or Forbidden for a cookie on a request another page sent."""
        found = await self._identify(request)
        if exchange := request.scope.get("state", {}).get("exchange"):
            self.watch.add(exchange, partial(self._identify, request))
        return found

    async def _identify(self, request: HTTPConnection) -> Principal:
        if (key := bearer_of(request)) is not None:
            return await self._by_key(key, request)
        if token := self.cookies.token(request):
            self.same_origin.require(request)
            return await self._by_session(token)
        raise _unauthenticated("No API key was sent. Send 'Authorization: Bearer KEY', or sign in.", "no_api_key")

    def requires(self, *scopes: Scope) -> Callable[[HTTPConnection], Awaitable[Principal]]:
        """A dependency that yields the principal, or raises Forbidden without any of `scopes`."""

        async def principal(request: HTTPConnection) -> Principal:
            found = await self.principal(request)
            if found.scopes.isdisjoint(scopes):
                raise self._lacks(scopes[0], found)
            return found

        return principal

    def _lacks(self, scope: Scope, found: Principal) -> Forbidden:
        if scope is Scope.CHAT and Scope.DELEGATE in found.scopes:
            return self._delegates.nobody()
        what = "the key" if found.key else "this account"
        return Forbidden(f"This needs the scope '{scope}', which {what} does not have.")

    def forget(self) -> None:
        """Read everybody afresh: something was revoked."""
        self._known.clear()

    async def _by_key(self, text: str, request: HTTPConnection) -> Principal:
        if not has_shape(text):
            raise _unauthenticated("This is not an API key of this server.")
        digest = self._secrets.digest_of_key(text)
        known = self._still_known(digest) or self._keep(digest, *await self._read_key(text, digest))
        key, person = known.key, known.person
        if key is None or self.keys.is_expired(key):
            raise _unauthenticated("This API key has expired.")
        if Scope.DELEGATE not in key.scopes:
            return _principal(person, key.scopes, key.id)
        if (name := self._delegates.named(request)) is not None:
            return await self._delegated(person, name, key)
        return _principal(person, key.scopes - {Scope.CHAT}, key.id)  # it chats for those it names, never as its owner

    async def _by_session(self, token: str) -> Principal:
        digest = self._secrets.digest_of_token(token)
        known = self._still_known(digest) or self._keep(digest, *await self._read_session(digest))
        return _principal(known.person, _SESSION_SCOPES[known.person.role], None)

    async def _read_key(self, text: str, digest: str) -> tuple[Person, Key | None]:
        if not is_well_formed(text):
            raise _unauthenticated("This is not an API key of this server.")
        key = await self.keys.find(digest)
        person = await self.people.get(key.user) if key else None
        if person is None or person.disabled:
            raise _unauthenticated("This API key is unknown, expired or revoked.")
        return person, key

    async def _read_session(self, digest: str) -> tuple[Person, None]:
        user = await self.sessions.user_of(digest)
        person = await self.people.get(user) if user else None
        if person is None or person.disabled:
            raise _unauthenticated("The session has ended; sign in again.", "session_ended")
        return person, None

    def _still_known(self, digest: str) -> _Known | None:
        known = self._known.get(digest)
        return known if known and known.until > time.monotonic() else None

    def _keep(self, digest: str, person: Person, key: Key | None) -> _Known:
        if len(self._known) >= _KEPT_AT_MOST:
            self._known.clear()
        known = self._known[digest] = _Known(person, key, time.monotonic() + _KEPT_SECONDS)
        return known

    async def _delegated(self, owner: Person, name: str, key: Key) -> Principal:
        place = f"{owner.id}{NAMESPACE}{name}"
        if (known := self._still_known(place)) is None:
            known = self._keep(place, await self.people.delegate(owner, name, self._most_delegates), key)
        person = known.person
        if person.disabled:
            raise _unauthenticated("This person's account is disabled.", "account_disabled")
        return replace(_principal(person, frozenset({Scope.CHAT}), key.id), department=owner.department)


_ANTHROPIC = ("/v1/messages", "/v1/models")


def bearer_of(request: HTTPConnection) -> str | None:
    """The key or token a request shows. Anthropic's clients send theirs in `x-api-key`."""
    shown = _values(request, b"authorization")
    if not shown and request.scope["path"].startswith(_ANTHROPIC):
        shown = [b"Bearer " + value for value in _values(request, b"x-api-key")]
    if not shown:
        return None
    scheme, _, key = shown[0].decode("latin-1").partition(" ")
    if len(shown) > 1 or scheme.lower() != "bearer":
        raise _unauthenticated("Send one header 'Authorization: Bearer KEY'.")
    return key.strip()


def _values(request: HTTPConnection, wanted: bytes) -> list[bytes]:
    return [value for name, value in request.scope["headers"] if name == wanted]


def _principal(person: Person, scopes: frozenset[Scope], key: str | None) -> Principal:
    return Principal(person.id, person.name, person.role, scopes, person.department, key)


def _unauthenticated(message: str, code: str | None = None) -> Unauthenticated:
    return Unauthenticated(message, code=code, headers={"www-authenticate": "Bearer"})
