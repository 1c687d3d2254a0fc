"""The door of /v1/conversations: translates between HTTP and stored conversations; decides nothing about them."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.response_image import kept
from gateway.api.response_input import check_metadata, parse_input
from gateway.api.response_output import render_item
from gateway.api.shapes import if_match, json_response, page, paging
from gateway.auth import Scope
from gateway.auth.authenticator import Authenticator
from gateway.body import parse_json
from gateway.conversations import Conversation, Conversations, Item
from gateway.errors import BadRequest, UnknownParameter

MOST_ITEMS = 20  # in one request


@dataclass(frozen=True, slots=True)
class ConversationsDoor:
    auth: Authenticator
    store: Conversations

    async def create(self, request: Request) -> Response:
        owner = await self._owner(request)
        body = await _body(request, {"items", "metadata"})
        items = _items(body) if body.get("items") else []
        return json_response(_object(await self.store.create(owner, _metadata(body), items)))

    async def list(self, request: Request) -> Response:
        owner = await self._owner(request)
        limit, _, after = paging(request)
        query = request.query_params
        found, more = await self.store.list(owner, limit, after, query.get("query"), query.get("root"))
        return json_response(page([_object(conversation) for conversation in found], more))

    async def get(self, request: Request) -> Response:
        owner = await self._owner(request)
        return json_response(_object(await self.store.get(owner, request.path_params["id"])))

    async def update(self, request: Request) -> Response:
        owner = await self._owner(request)
        body = await _body(request, {"metadata"})
        if "metadata" not in body:
            raise BadRequest("`metadata` is required.", code="missing_required_parameter", param="metadata")
        id = request.path_params["id"]
        return json_response(_object(await self.store.update(owner, id, _metadata(body), if_match(request))))

    async def delete(self, request: Request) -> Response:
        owner = await self._owner(request)
        id = request.path_params["id"]
        await self.store.delete(owner, id)
        return json_response({"id": id, "object": "conversation.deleted", "deleted": True})

    async def add_items(self, request: Request) -> Response:
        owner = await self._owner(request)
        body = await _body(request, {"items"})
        added = await self.store.add_items(owner, request.path_params["id"], _items(body))
        return json_response(page([render_item(item) for item in added], False))

    async def items(self, request: Request) -> Response:
        owner = await self._owner(request)
        found, more = await self.store.items(owner, request.path_params["id"], *paging(request))
        return json_response(page([{**render_item(item), **_origin(item)} for item in found], more))

    async def item(self, request: Request) -> Response:
        owner = await self._owner(request)
        where = request.path_params
        return json_response(render_item(await self.store.item(owner, where["id"], where["item"])))

    async def delete_item(self, request: Request) -> Response:
        owner = await self._owner(request)
        where = request.path_params
        return json_response(_object(await self.store.delete_item(owner, where["id"], where["item"])))

    async def _owner(self, request: Request) -> str:
        return (await self.auth.requires(Scope.CHAT)(request)).user


def router(door: ConversationsDoor) -> APIRouter:
    one, items = "/v1/conversations/{id}", "/v1/conversations/{id}/items"
    routes = APIRouter()
    routes.add_route("/v1/conversations", door.create, methods=["POST"])
    routes.add_route("/v1/conversations", door.list, methods=["GET"])
    routes.add_route(one, door.get, methods=["GET"])
    routes.add_route(one, door.update, methods=["POST"])
    routes.add_route(one, door.delete, methods=["DELETE"])
    routes.add_route(items, door.add_items, methods=["POST"])
    routes.add_route(items, door.items, methods=["GET"])
    routes.add_route(items + "/{item}", door.item, methods=["GET"])
    routes.add_route(items + "/{item}", door.delete_item, methods=["DELETE"])
    return routes


def _object(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
        "updated_at": conversation.updated_at,
        "version": conversation.version,
        "deskmate:running": conversation.running,
    }


def _origin(item: Item) -> dict[str, Any]:
    """The response an item belongs to: where a branch may begin. Items that came without one have none."""
    return {"deskmate:response": item.turn} if item.turn else {}


async def _body(request: Request, fields: set[str]) -> dict[str, Any]:
    raw = await request.body()
    body = parse_json(raw) if raw else {}
    for name in body:
        if name not in fields:
            raise UnknownParameter(f"Unknown parameter: `{name}`.", param=name)
    return body


def _metadata(body: dict[str, Any]) -> dict[str, str]:
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadRequest("`metadata` is an object whose values are strings.", param="metadata")
    check_metadata(metadata)
    return metadata


def _items(body: dict[str, Any]) -> list[dict[str, Any]]:
    items = body.get("items")
    if not isinstance(items, list) or not items or len(items) > MOST_ITEMS:
        raise BadRequest(f"`items` is a list of 1 to {MOST_ITEMS} items.", param="items")
    return [kept(item, sees=False) for item in parse_input(items, "items")]  # no turn shows them to a model
