"""The door of /openapi.json: every route under /v1 with what it takes and answers; knows none of their doors.

Made once, from the table of operations below, the shapes beside it and the tree of refusals. A test holds the table
against the routes that the application has, another one the shapes against what is really answered.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import VERSION
from gateway.api.openapi_schemas import Schema, schemas, type_of
from gateway.auth.authenticator import Authenticator
from gateway.errors import Refusal

_ANYBODY = (400, 401, 403, 404, 408, 500, 503)
_WITH_BODY = (413, 415)
_OF_THE_ENGINE = (429, 502)
_OF_A_CONVERSATION = (409, 412)
_TITLES = {
    400: "The request is wrong", 401: "Nobody we know", 403: "Not allowed", 404: "Not there", 405: "Not possible here",
    408: "Too slow", 409: "In conflict with what runs", 412: "Another version", 413: "Too large",
    415: "Not sent as JSON", 429: "Too much is waiting, or a limit is reached", 500: "A mistake of ours",
    502: "The engine's answer was none", 503: "Not now",
}  # fmt: skip
_LISTED = ("limit", "order", "after")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path; `takes`, `gives` and `streams` name shapes."""

    method: str
    path: str
    summary: str
    gives: str
    takes: str | None = None
    streams: str | None = None
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    beyond: tuple[int, ...] = ()  # statuses of refusals beside everybody's
    body_needed: bool = True
    anthropic: bool = False
    takes_anthropic_key: bool = False

    @property
    def id(self) -> str:
        words = re.findall(r"\w+", self.path.removeprefix("/v1"))
        return "_".join([self.method.lower(), *words])


OPERATIONS = (
    Operation("GET", "/v1/models", "The served model", "ModelList", takes_anthropic_key=True),
    Operation(
        "GET", "/v1/models/{id}", "One model, by its name or another name of it", "Model", takes_anthropic_key=True
    ),
    Operation(
        "POST",
        "/v1/chat/completions",
        "An answer to a chat; fields that are not honoured are named in x-deskmate-ignored",
        "ChatCompletion",
        takes="CreateChatCompletion",
        streams="ChatCompletionChunk",
        beyond=_OF_THE_ENGINE,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "The continuation of a text; fields that are not honoured are named in x-deskmate-ignored",
        "Completion",
        takes="CreateCompletion",
        streams="Completion",
        beyond=_OF_THE_ENGINE,
    ),
    Operation(
        "POST",
        "/v1/messages",
        "Anthropic's Messages; fields that are not honoured are named in x-deskmate-ignored",
        "AnthropicMessage",
        takes="CreateMessage",
        streams="AnthropicStreamEvent",
        beyond=_OF_THE_ENGINE,
        anthropic=True,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        "The tokens of such a request",
        "AnthropicTokens",
        takes="CountTokens",
        beyond=_OF_THE_ENGINE,
        anthropic=True,
    ),
    Operation(
        "POST",
        "/v1/responses",
        "An answer that is stored; the same path speaks WebSocket",
        "Response",
        takes="CreateResponse",
        streams="ResponseStreamEvent",
        headers=("Idempotency-Key", "If-Match"),
        beyond=(*_OF_THE_ENGINE, *_OF_A_CONVERSATION),
    ),
    Operation(
        "POST",
        "/v1/responses/input_tokens",
        "What the prompt of such a request would hold, history and window included",
        "InputTokens",
        takes="CreateResponse",
        beyond=_OF_THE_ENGINE,
    ),
    Operation(
        "POST",
        "/v1/responses/compact",
        "A conversation made short: an input that goes on in its place",
        "CompactedResponse",
        takes="CompactResponse",
        beyond=_OF_THE_ENGINE,
    ),
    Operation(
        "GET",
        "/v1/responses/{id}",
        "A stored response; with `stream=true` its events, from `starting_after` on, also while it is written",
        "Response",
        streams="ResponseStreamEvent",
        query=("stream", "starting_after"),
    ),
    Operation("DELETE", "/v1/responses/{id}", "Delete a response", "ResponseDeleted"),
    Operation("POST", "/v1/responses/{id}/cancel", "End a running response; what was said is kept", "Response"),
    Operation(
        "GET", "/v1/responses/{id}/input_items", "What a response was asked", "ItemList", query=_LISTED
    ),
    Operation(
        "POST",
        "/v1/conversations",
        "A new conversation, with items in it or empty",
        "Conversation",
        takes="CreateConversation",
        body_needed=False,
    ),
    Operation(
        "GET",
        "/v1/conversations",
        "Conversations, newest first; `query` searches titles, `root` finds one with its branches",
        "ConversationList",
        query=("limit", "after", "query", "root"),
    ),
    Operation("GET", "/v1/conversations/{id}", "One conversation", "Conversation"),
    Operation(
        "POST",
        "/v1/conversations/{id}",
        "Other metadata for a conversation",
        "Conversation",
        takes="UpdateConversation",
        headers=("If-Match",),
        beyond=_OF_A_CONVERSATION,
    ),
    Operation(
        "DELETE",
        "/v1/conversations/{id}",
        "Delete a conversation with its items and responses",
        "ConversationDeleted",
    ),
    Operation(
        "POST",
        "/v1/conversations/{id}/items",
        "Append items to a conversation",
        "ItemList",
        takes="AddItems",
        beyond=_OF_A_CONVERSATION,
    ),
    Operation("GET", "/v1/conversations/{id}/items", "What was said", "ItemList", query=_LISTED),
    Operation("GET", "/v1/conversations/{id}/items/{item}", "One item", "Item"),
    Operation(
        "DELETE",
        "/v1/conversations/{id}/items/{item}",
        "Delete an item; the answer is its conversation",
        "Conversation",
        beyond=_OF_A_CONVERSATION,
    ),
    Operation(
        "GET", "/v1/usage", "What the caller may use, has used and has left, and when it renews (seconds)", "Usage"
    ),
)  # fmt: skip

_QUERY: dict[str, Schema] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    "order": {"enum": ["asc", "desc"], "default": "desc"},
    "after": {"type": "string"},
    "query": {"type": "string"},
    "root": {"type": "string"},
    "stream": {"type": "boolean", "default": False},
    "starting_after": {"type": "integer", "minimum": -1},
}
_HEADERS: dict[str, Schema] = {
    "Idempotency-Key": {"type": "string", "maxLength": 255},
    "If-Match": {"type": "string", "pattern": r'^"?\d+"?$'},
}


def router(auth: Authenticator) -> APIRouter:
    async def described(request: Request) -> Response:
        await auth.principal(request)
        return Response(encoded(auth.cookies.name), media_type="application/json")

    routes = APIRouter()
    routes.add_route("/openapi.json", described, methods=["GET"])
    return routes


@cache
def encoded(cookie: str) -> bytes:
    return msgspec.json.encode(document(cookie))


def document(cookie: str) -> Schema:
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Deskmate",
            "version": VERSION,
            "description": "OpenAI's Responses, Conversations and Chat Completions, and Anthropic's Messages.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "responses": _refusals(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: dm_live_…"},
                "anthropicKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "session": {"type": "apiKey", "in": "cookie", "name": cookie, "description": "Our own pages only"},
            },
        },
    }


def _described(operation: Operation) -> Schema:
    made: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [*_parameters(operation)],
        "responses": _responses(operation),
    }
    if operation.takes:
        body = {"application/json": {"schema": type_of(operation.takes)}}
        made["requestBody"] = {"required": operation.body_needed, "content": body}
    if operation.anthropic or operation.takes_anthropic_key:
        made["security"] = [{"key": []}, {"anthropicKey": []}, {"session": []}]
    return made


def _parameters(operation: Operation) -> Iterator[Schema]:
    for name in re.findall(r"{(\w+)}", operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name in operation.query:
        yield {"name": name, "in": "query", "schema": _QUERY[name]}
    for name in operation.headers:
        yield {"name": name, "in": "header", "schema": _HEADERS[name]}


def _responses(operation: Operation) -> Schema:
    content: Schema = {"application/json": {"schema": type_of(operation.gives)}}
    if operation.streams:
        content["text/event-stream"] = {"schema": type_of(operation.streams)}
    statuses = {*_ANYBODY, *operation.beyond, *(_WITH_BODY if operation.takes else ())}
    kind = "Anthropic" if operation.anthropic else "Refused"
    refusals = {str(status): {"$ref": f"#/components/responses/{kind}{status}"} for status in sorted(statuses)}
    return {"200": {"description": operation.summary, "content": content}, **refusals}


def _refusals() -> Schema:
    """A refusal of each status, in both shapes, with the codes that it may have."""
    made: Schema = {}
    for status, title in _TITLES.items():
        codes = sorted({kind.default_code for kind in _tree(Refusal) if kind.status == status})
        for name, shape in (("Refused", "Error"), ("Anthropic", "AnthropicError")):
            content: Schema = {"application/json": {"schema": type_of(shape)}}
            made[f"{name}{status}"] = {"description": f"{title}: {', '.join(codes)}", "content": content}
    return made


def _tree(kind: type[Refusal]) -> Iterator[type[Refusal]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
