"""The door of /v1/usage: what the caller may use, has used, has left, and when it renews; translates only."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.shapes import json_response
from gateway.auth.authenticator import Authenticator
from gateway.auth.principal import Scope
from gateway.quotas import Quotas
from gateway.quotas.telling import limit_headers, shown


def router(auth: Authenticator, quotas: Quotas) -> APIRouter:
    async def usage(request: Request) -> Response:
        principal = await auth.requires(Scope.CHAT)(request)
        balance = await quotas.balance(principal.user, principal.key)
        return json_response({"object": "usage", **shown(balance)}, limit_headers(balance))

    routes = APIRouter()
    routes.add_route("/v1/usage", usage, methods=["GET"])
    return routes
