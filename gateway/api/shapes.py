"""What the doors' requests and answers have in common: JSON, pages of a list, conditions. Knows no route."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import BadRequest


def if_match(request: Request) -> int | None:
    value = request.headers.get("if-match")
    return None if value is None else integer(value.strip('"'), "If-Match", 0)


def integer(value: str | None, name: str, default: int) -> int:
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise BadRequest(f"`{name}` is a whole number.", param=name) from None


def paging(request: Request) -> tuple[int, str, str | None]:
    """`limit`, `order` and `after` of a list."""
    query = request.query_params
    limit, order = integer(query.get("limit"), "limit", 20), query.get("order", "desc")
    if not 1 <= limit <= 100:
        raise BadRequest(f"`limit` is {limit}; it must be from 1 to 100.", param="limit")
    if order not in ("asc", "desc"):
        raise BadRequest("`order` is asc or desc.", param="order")
    return limit, order, query.get("after")


def page(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list envelope."""
    ids = [item["id"] for item in items]
    return {
        "object": "list",
        "data": items,
        "has_more": has_more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def json_response(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")
