"""What becomes of an image in a Responses request: checked, then only that it was there is kept; pure."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.engine import ModelFacts
from gateway.errors import BadRequest, UnknownParameter, UnsupportedParameter

Json = dict[str, Any]

_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_DETAILS = ("auto", "low", "high", "original")
_FIELDS = {"type", "image_url", "file_id", "detail"}


def parse_image(part: Mapping[str, Any], param: str) -> Json:
    """The part without its picture. Raises for one that would have to be fetched, and for what is no picture."""
    if unknown := sorted(str(name) for name, given in part.items() if name not in _FIELDS and given is not None):
        raise UnknownParameter(f"Unknown parameter: `{param}.{unknown[0][:64]}`.", param=f"{param}.{unknown[0][:64]}")
    if part.get("file_id") is not None:
        raise UnsupportedParameter("No files are kept here; send the image as a data: URL.", param=f"{param}.file_id")
    if (detail := part.get("detail") or "auto") not in _DETAILS:
        raise BadRequest(f"`detail` is one of {', '.join(_DETAILS)}.", param=f"{param}.detail")
    if part.get("image_url", "") is not None:  # null: as we show one that came before
        _check_url(part.get("image_url"), f"{param}.image_url")
    return {"type": "input_image", "detail": detail}


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


def images_in(items: Sequence[Mapping[str, Any]]) -> int:
    """How many images the items had."""
    contents = (item.get("output" if item.get("type") == "function_call_output" else "content") for item in items)
    return sum(part["type"] == "input_image" for parts in contents if isinstance(parts, list) for part in parts)


def check_seeing(items: Sequence[Mapping[str, Any]], model: ModelFacts | None) -> None:
    """Raises UnsupportedParameter where an image would be replaced though the model could see it."""
    if model is not None and model.vision and images_in(items):
        raise UnsupportedParameter(
            f"`{model.id}` can see, but not through this route yet: send images to /v1/chat/completions.", param="input"
        )
