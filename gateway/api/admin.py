"""The doors of /admin: people, sign-in links and keys, for administrators; translates only."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from gateway.auth.authenticator import Authenticator
from gateway.auth.keys import Key
from gateway.auth.links import Links
from gateway.auth.people import Person, refuse_delegate
from gateway.auth.principal import Role, Scope
from gateway.body import checked, parse_json
from gateway.errors import BadRequest, NotFound
from gateway.quotas import Quotas, Source
from gateway.quotas.asked import of_a_key, of_a_person, of_a_weight
from gateway.quotas.telling import managed

LONGEST_KEY_NAME = 128
MOST_DAYS = 3650
MOST_LISTED = 100  # of a front end's people; who is not among them is searched for


def router(authenticator: Authenticator, links: Links, quotas: Quotas, end_answers: Callable[[str], None]) -> APIRouter:
    """`end_answers` ends what is being answered to a person who may no longer ask."""
    administrator = authenticator.requires(Scope.ADMIN)
    router = APIRouter(prefix="/admin", dependencies=[Depends(administrator)])
    people, keys = authenticator.people, authenticator.keys

    @router.get("/users")
    async def list_users() -> Response:
        return JSONResponse({"data": [person.shown() for person in await people.all()]})

    @router.post("/users")
    async def create_user(request: Request) -> Response:
        kinds: dict[str, type] = {"role": str, "department": str}
        body = checked(parse_json(await request.body()), required={"name": str}, optional=kinds)
        role = _role(body.get("role", Role.MEMBER))
        return JSONResponse((await people.create(body["name"], role, body.get("department"))).shown())

    @router.get("/users/{id}/speaks_for")
    async def list_delegates(id: str, query: str = "") -> Response:
        """The newest of those whom the front ends of that person name, or of those whose names hold `query`."""
        owner, found = await _person(id), list[dict[str, Any]]()
        async for person in people.delegates(owner.id):
            if query.casefold() in person.name[len(owner.name) + 1 :].casefold():
                found.append(person.shown())
            if len(found) > MOST_LISTED:
                break
        return JSONResponse({"data": found[:MOST_LISTED], "has_more": len(found) > MOST_LISTED})

    @router.post("/users/{id}/disable")
    async def disable_user(id: str, request: Request) -> Response:
        person = await _person(id)
        if person.id == (await administrator(request)).user:
            raise BadRequest("You cannot disable yourself; another administrator can.", code="own_account")
        await people.disable(person.id)
        authenticator.forget()
        end_answers(person.id)
        return JSONResponse((await _person(id)).shown())

    @router.post("/users/{id}/enable")
    async def enable_user(id: str) -> Response:
        await people.enable((await _person(id)).id)
        authenticator.forget()
        return JSONResponse((await _person(id)).shown())

    @router.post("/users/{id}/link")
    async def create_link(id: str) -> Response:
        person = await _person(id)
        refuse_delegate(person)
        if person.disabled:
            raise BadRequest(f"'{person.name}' is disabled; enable the account first.", code="account_disabled")
        link = await links.create(person.id)
        return JSONResponse({"url": link.url, "expires_at": link.expires_at})

    @router.get("/users/{id}/limits")
    async def show_limits(id: str) -> Response:
        return await _limits(await _person(id))

    @router.post("/users/{id}/limits")
    async def set_limits(id: str, request: Request) -> Response:
        person, wishes = await _person(id), of_a_person(parse_json(await request.body()))
        await quotas.set(person.id, wishes)
        return await _limits(person)

    @router.get("/users/{id}/weight")
    async def show_weight(id: str) -> Response:
        return await _weight(await _person(id))

    @router.post("/users/{id}/weight")
    async def set_weight(id: str, request: Request) -> Response:
        person, wished = await _person(id), of_a_weight(parse_json(await request.body()))
        await quotas.set_weight(person.id, wished)
        return await _weight(person)

    async def _weight(person: Person) -> Response:
        return JSONResponse({"weight": await quotas.weight(person.id)})

    @router.get("/keys")
    async def list_keys() -> Response:
        names = {person.id: person.name for person in await people.all()}
        return JSONResponse({"data": [key.shown(names.get(key.user, "")) for key in await keys.all()]})

    @router.post("/keys")
    async def create_key(request: Request) -> Response:
        kinds: dict[str, type] = {"name": str, "scopes": list, "expires_in_days": int}
        body = checked(parse_json(await request.body()), required={"user": str}, optional=kinds)
        name, scopes, days = body.get("name", ""), _scopes(body.get("scopes")), body.get("expires_in_days")
        _check_key(name, days)
        person = await people.ensure(body["user"])
        key, text = await keys.create(person.id, name, scopes, days)
        return JSONResponse({**key.shown(person.name), "key": text})

    @router.delete("/keys/{id}")
    async def revoke_key(id: str) -> Response:
        if not await keys.revoke(id):
            raise NotFound("There is no such key.")
        authenticator.forget()
        return JSONResponse({"id": id, "deleted": True})

    @router.get("/keys/{id}/limits")
    async def show_limits_of_key(id: str) -> Response:
        return await _limits_of_key(await _key(id))

    @router.post("/keys/{id}/limits")
    async def set_limits_of_key(id: str, request: Request) -> Response:
        key, wishes = await _key(id), of_a_key(parse_json(await request.body()))
        await quotas.set(key.id, wishes, key.goes_at)
        return await _limits_of_key(key)

    async def _limits(person: Person) -> Response:
        return JSONResponse(managed(await quotas.balance(person.id), Source.PERSON))

    async def _limits_of_key(key: Key) -> Response:
        return JSONResponse(managed(await quotas.balance(key.user, key.id), Source.KEY))

    async def _key(id: str) -> Key:
        key = await keys.get(id)
        if key is None:
            raise NotFound("There is no such key.")
        return key

    async def _person(id: str) -> Person:
        person = await people.get(id)
        if person is None:
            raise NotFound("There is no such person.")
        return person

    return router


def _role(text: str) -> Role:
    if text not in list(Role):
        raise BadRequest(f"'role' must be one of: {', '.join(Role)}.", param="role")
    return Role(text)


def _scopes(given: list[Any] | None) -> frozenset[Scope]:
    if given is None:
        return frozenset({Scope.CHAT})
    if not given or any(scope not in list(Scope) for scope in given):
        raise BadRequest(f"'scopes' must be some of: {', '.join(Scope)}.", param="scopes")
    return frozenset(map(Scope, given))


def _check_key(name: str, days: int | None) -> None:
    if len(name) > LONGEST_KEY_NAME or not (name.isprintable() or not name):
        raise BadRequest(f"A key's name has at most {LONGEST_KEY_NAME} printable characters.", param="name")
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise BadRequest(f"'expires_in_days' must be from 1 to {MOST_DAYS}.", param="expires_in_days")
