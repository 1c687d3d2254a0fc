"""The doors of /auth: a link or a password becomes a session cookie, and back; translates only."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gateway.auth.authenticator import Authenticator
from gateway.auth.login import Login
from gateway.auth.people import Person
from gateway.auth.principal import Principal
from gateway.body import checked, parse_json
from gateway.errors import Forbidden, Unauthenticated


def router(authenticator: Authenticator, login: Login) -> APIRouter:
    router = APIRouter(prefix="/auth")
    people, sessions, cookies = authenticator.people, authenticator.sessions, authenticator.cookies

    @router.post("/link")
    async def open_link(request: Request) -> Response:
        authenticator.same_origin.refuse_foreign(request)
        body = checked(parse_json(await request.body()), required={"token": str})
        return await _signed_in(request, await login.by_link(body["token"]))

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        authenticator.same_origin.refuse_foreign(request)
        body = checked(parse_json(await request.body()), required={"name": str, "password": str})
        return await _signed_in(request, await login.by_password(body["name"], body["password"], _address(request)))

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        authenticator.same_origin.require(request)
        if token := cookies.token(request):
            await sessions.end(token)
            authenticator.forget()
        return JSONResponse({"user": None}, headers=cookies.clear())

    @router.get("/me")
    async def me(request: Request) -> Response:
        return JSONResponse({"user": _shown(await _person(await authenticator.principal(request)))})

    @router.post("/password")
    async def change_password(request: Request) -> Response:
        principal = await authenticator.principal(request)
        if principal.key is not None:
            raise Forbidden("A password is changed by the person, signed in; not with an API key.")
        body = checked(parse_json(await request.body()), required={"new": str}, optional={"current": str})
        person = await _person(principal)
        await login.change_password(person, body.get("current"), body["new"], _address(request))
        await sessions.end_all(person.id)  # whoever else was signed in with the old one
        return await _signed_in(request, await _person(principal))

    async def _signed_in(request: Request, person: Person) -> Response:
        """A new session, whatever one the browser had."""
        if token := cookies.token(request):
            await sessions.end(token)
        authenticator.forget()
        return JSONResponse({"user": _shown(person)}, headers=cookies.set(await sessions.open(person.id)))

    async def _person(principal: Principal) -> Person:
        person = await people.get(principal.user)
        if person is None:
            raise Unauthenticated("This account is gone.")
        return person

    return router


def _shown(person: Person) -> dict[str, Any]:
    return {
        "id": person.id,
        "name": person.name,
        "role": person.role,
        "department": person.department,
        "has_password": person.password_hash is not None,
    }


def _address(request: Request) -> str:
    return request.client.host if request.client else "local"
