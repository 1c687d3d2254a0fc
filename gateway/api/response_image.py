"""What becomes of an image in a Responses request: checked, and kept with its picture where the model sees it; pure."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import BadRequest, UnknownParameter, UnsupportedParameter

Json = dict[str, Any]

_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_DETAILS = ("auto", "low", "high", "original")
_FIELDS = {"type", "image_url", "file_id", "detail"}


def parse_image(part: Mapping[str, Any], param: str) -> Json:
    """The part, compact. Raises for one that would have to be fetched, and for what is no picture."""
    if unknown := sorted(str(name) for name, given in part.items() if name not in _FIELDS and given is not None):
        raise UnknownParameter(f"Unknown parameter: `{param}.{unknown[0][:64]}`.", param=f"{param}.{unknown[0][:64]}")
    if part.get("file_id") is not None:
        raise UnsupportedParameter("No files are kept here; send the image as a data: URL.", param=f"{param}.file_id")
    if (detail := part.get("detail") or "auto") not in _DETAILS:
        raise BadRequest(f"`detail` is one of {', '.join(_DETAILS)}.", param=f"{param}.detail")
    parsed = {"type": "input_image", "detail": detail}
    if part.get("image_url", "") is None:  # as we show one whose picture was not kept
        return parsed
    _check_url(part.get("image_url"), f"{param}.image_url")
    return {**parsed, "image_url": part["image_url"]}


def _check_url(url: Any, param: str) -> None:
    if not isinstance(url, str) or not url:
        raise BadRequest("`image_url` is a string: a data: URL with the image in base64.", param=param)
    if (head := _DATA.match(url)) is None:
        raise UnsupportedParameter(
            "An image is sent as `data:image/…;base64,…`; nothing is fetched from elsewhere.", param=param
        )
    try:
        is_empty = not base64.b64decode(url[head.end() :], validate=True)
    except ValueError:  # also characters that are not ASCII
        is_empty = True
    if is_empty:
        raise BadRequest("What follows `base64,` in this image's URL is no base64.", param=param)


def kept(item: Mapping[str, Any], sees: bool) -> Json:
    """The item as it is kept: of an image only that it was there, unless a person shows it to a model that sees."""
    field = "output" if item["type"] == "function_call_output" else "content"
    if (sees and item.get("role") == "user") or not isinstance(parts := item.get(field), list):
        return dict(item)
    return {**item, field: [_without_picture(part) for part in parts]}


def _without_picture(part: Mapping[str, Any]) -> Json:
    return {name: value for name, value in part.items() if name != "image_url"}


def images_replaced(items: Sequence[Mapping[str, Any]]) -> int:
    """How many images of the items the model is only told of."""
    contents = (item.get("output" if item.get("type") == "function_call_output" else "content") for item in items)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return sum(part["type"] == "input_image" and "image_url" not in part for part in parts)
