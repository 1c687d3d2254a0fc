"""/openapi.json says what is there: the routes that the application has, the answers that it really gives."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.api import openapi, response_output
from gateway.app import build
from gateway.settings import Settings
from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess

HELLO = [{"role": "user", "content": "hello there"}]
TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object"}, "description": None, "strict": None}
DESCRIBED = openapi.document("deskmate_sid")


def check(shape: str, value: Any) -> Any:
    """That the value has the described shape; the value."""
    schema = {"$ref": f"#/components/schemas/{shape}", "components": DESCRIBED["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        path = re.sub(r":\w+}", "}", getattr(route, "path", ""))
        if path.startswith("/v1/") and getattr(route.endpoint, "__name__", "") != "not_here":
            yield from ((method, path) for method in getattr(route, "methods", ()) if method != "HEAD")


def test_every_route_is_described_and_none_is_made_up(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 32)
    settings = Settings.from_environment(
        {"DESKMATE_REDIS_URL": "unix:///unused", "DESKMATE_SECRET_FILE": str(tmp_path / "secret")}
    )
    there = {*routes_of(build(settings)._asgi.app)}
    described = {(method.upper(), path) for path, methods in DESCRIBED["paths"].items() for method in methods}
    assert described == there, "the table of operations in gateway/api/openapi.py is not the routes that there are"


def test_the_description_is_valid_and_each_operation_has_a_name_of_its_own() -> None:
    OpenAPIV31SpecValidator(DESCRIBED).validate()
    names = [operation.id for operation in openapi.OPERATIONS]
    assert len(set(names)) == len(names)


def test_every_event_that_is_sent_is_described() -> None:
    source = Path(response_output.__file__).read_text()
    sent = set(re.findall(r'(?:_event|_state)\(\s*"([\w:.]+)"', source))
    sent |= {f"response.{part.name}.{step}" for part in response_output._PARTS.values() for step in ("delta", "done")}
    assert len(sent) >= 15
    assert sent - {shape["const"] for shape in types_of_events()} == set(), "describe them in openapi_schemas.py"


def types_of_events() -> Iterator[Mapping[str, Any]]:
    shapes = DESCRIBED["components"]["schemas"]
    for one in shapes["ResponseStreamEvent"]["anyOf"]:
        yield shapes[one["$ref"].rpartition("/")[2]]["properties"]["type"]


@pytest.fixture
async def http(ready: GatewayProcess, person: str):
    headers = {"authorization": f"Bearer {await ready.key(person)}"}
    async with httpx2.AsyncClient(base_url=ready.url, headers=headers, timeout=30) as http:
        yield http


async def test_it_is_shown_to_people_who_are_known_and_to_nobody_else(ready: GatewayProcess, http) -> None:
    assert (await http.get("/openapi.json")).json() == json.loads(json.dumps(DESCRIBED))
    async with httpx2.AsyncClient(base_url=ready.url) as nobody:
        refused = await nobody.get("/openapi.json")
    assert refused.status_code == 401
    check("Error", refused.json())


def events_in(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


@pytest.mark.parametrize("tools", [[], [TOOL]])
async def test_an_answer_and_its_events_are_as_described(http, scripted: FakeWorker, tools: list[Any]) -> None:
    scripted.script(tools=[{"name": "look_up", "arguments": {"a": 1}}] if tools else None)
    asked = check("CreateResponse", {"input": "hello", "tools": tools, "stream": True})
    events = events_in((await http.post("/v1/responses", json=asked)).text)
    for event in events:
        check("ResponseStreamEvent", event)
    response = events[-1]["response"]
    assert check("Response", (await http.get(f"/v1/responses/{response['id']}")).json()) == response
    check("Response", (await http.post(f"/v1/responses/{response['id']}/cancel")).json())
    check("ItemList", (await http.get(f"/v1/responses/{response['id']}/input_items")).json())
    check("InputTokens", (await http.post("/v1/responses/input_tokens", json={"input": "hello"})).json())
    short = check("CompactResponse", {"model": "fake", "input": "hello"})
    short = check("CompactedResponse", (await http.post("/v1/responses/compact", json=short)).json())["output"]
    again = check("CreateResponse", {"input": [*short, *HELLO]})
    again = check("Response", (await http.post("/v1/responses", json=again)).json())
    check("ItemList", (await http.get(f"/v1/responses/{again['id']}/input_items")).json())
    check("ResponseDeleted", (await http.delete(f"/v1/responses/{response['id']}")).json())


async def test_a_conversation_and_its_items_are_as_described(http) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "found"}
    answer = {"role": "assistant", "content": "hi", "phase": "final_answer"}
    seen = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]}
    asked = check("CreateConversation", {"items": [*HELLO, answer, call, output, seen], "metadata": {"a": "b"}})
    made = check("Conversation", (await http.post("/v1/conversations", json=asked)).json())
    where = f"/v1/conversations/{made['id']}"
    check("ConversationList", (await http.get("/v1/conversations")).json())
    check("Conversation", (await http.get(where)).json())
    check("Conversation", (await http.post(where, json=check("UpdateConversation", {"metadata": {"a": "c"}}))).json())
    check("ItemList", (await http.post(f"{where}/items", json=check("AddItems", {"items": HELLO}))).json())
    items = check("ItemList", (await http.get(f"{where}/items")).json())["data"]
    assert len(items) == 6
    check("Item", (await http.get(f"{where}/items/{items[0]['id']}")).json())
    check("Conversation", (await http.delete(f"{where}/items/{items[0]['id']}")).json())
    check("ConversationDeleted", (await http.delete(where)).json())
    check("Error", (await http.get(where)).json())


RELAYED = [
    ("/v1/chat/completions", {"messages": HELLO}, "CreateChatCompletion", "ChatCompletion", "ChatCompletionChunk"),
    ("/v1/completions", {"prompt": "hello"}, "CreateCompletion", "Completion", "Completion"),
    ("/v1/messages", {"messages": HELLO}, "CreateMessage", "AnthropicMessage", "AnthropicStreamEvent"),
]


@pytest.mark.parametrize(("path", "asked", "takes", "gives", "streams"), RELAYED)
async def test_what_is_relayed_is_as_described(http, path: str, asked: Any, takes: str, gives: str, streams: str):
    asked = check(takes, {"model": "fake", "max_tokens": 4, **asked})
    check(gives, (await http.post(path, json=asked)).json())
    events = events_in((await http.post(path, json={**asked, "stream": True})).text)
    assert [check(streams, event) for event in events]
    refused = await http.post(path, json={**asked, "priority": 1})
    assert refused.status_code == 400
    check("AnthropicError" if path == "/v1/messages" else "Error", refused.json())


async def test_models_and_counted_tokens_are_as_described(http) -> None:
    check("ModelList", (await http.get("/v1/models")).json())
    check("Model", (await http.get("/v1/models/fake")).json())
    asked = check("CountTokens", {"model": "fake", "messages": HELLO})
    check("AnthropicTokens", (await http.post("/v1/messages/count_tokens", json=asked)).json())
