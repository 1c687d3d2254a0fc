"""The doors of people only, on a real Redis, for the tests of signing in and administration."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.api import admin, pages, sign_in
from gateway.auth.authenticator import Authenticator
from gateway.auth.links import Links
from gateway.auth.login import Login
from gateway.auth.passwords import Passwords
from gateway.auth.people import People, Person
from gateway.auth.principal import Principal, Role, Scope
from gateway.auth.secret import Secrets
from gateway.auth.throttle import Throttle
from gateway.errors import Refusal
from gateway.limits import Limits, render_plainly
from gateway.quotas import UNLIMITED
from gateway.quotas.store import RedisQuotas
from gateway.redis_client import RedisClient
from gateway.settings import Settings

ORIGIN = "http://localhost:8000"
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


@dataclass
class Desk:
    app: Limits
    authenticator: Authenticator
    links: Links
    quotas: RedisQuotas
    passwords: Passwords
    origin: str
    ended: list[str]  # whose answers were ended

    @property
    def people(self) -> People:
        return self.authenticator.people

    def browser(self, **headers: str) -> httpx2.AsyncClient:
        """A client with a cookie jar of its own."""
        transport = httpx2.ASGITransport(self.app)
        return httpx2.AsyncClient(transport=transport, base_url=self.origin, headers=headers or SAME_ORIGIN)

    async def token(self, person: Person) -> str:
        return (await self.links.create(person.id)).url.partition("#link=")[2]

    async def signed_in(self, name: str, role: Role = Role.MEMBER) -> tuple[httpx2.AsyncClient, Person]:
        person = await self.people.ensure(name, role)
        browser = self.browser()
        answer = await browser.post("/auth/link", json={"token": await self.token(person)})
        assert answer.status_code == 200, answer.text
        return browser, person

    async def key(self, name: str, *scopes: Scope) -> tuple[str, str]:
        """Id and text of a new key."""
        person = await self.people.ensure(name)
        key, text = await self.authenticator.keys.create(person.id, scopes=frozenset(scopes or {Scope.CHAT}))
        return key.id, text


@asynccontextmanager
async def open_desk(redis: RedisClient, **given: str) -> AsyncIterator[Desk]:
    settings = Settings.from_environment(
        {"DESKMATE_REDIS_URL": "unix:///unused", "DESKMATE_SECRET_FILE": "/unused"}
        | {f"DESKMATE_{name.upper()}": value for name, value in given.items()}
    )
    secrets = Secrets(b"s" * 32)
    authenticator = Authenticator(redis, secrets, settings)
    links, passwords, quotas = Links(redis, secrets, settings), Passwords(), RedisQuotas(redis, UNLIMITED)
    login = Login(authenticator.people, links, passwords, Throttle(redis, secrets))
    app = FastAPI(openapi_url=None)
    app.include_router(sign_in.router(authenticator, login))
    ended: list[str] = []
    app.include_router(admin.router(authenticator, links, quotas, ended.append))
    app.include_router(pages.router())

    @app.exception_handler(Refusal)
    async def render(request: Request, refusal: Refusal) -> Response:
        return render_plainly(request.scope, refusal)

    @app.api_route("/v1/whoami", methods=["GET", "POST", "DELETE"])
    @app.post("/v1/messages/whoami")
    async def whoami(principal: Principal = Depends(authenticator.requires(Scope.CHAT))) -> Response:  # noqa: B008
        return JSONResponse({"name": principal.name, "user": principal.user, "key": principal.key})

    yield Desk(Limits(app, settings), authenticator, links, quotas, passwords, given.get("public_url", ORIGIN), ended)
    passwords.close()
