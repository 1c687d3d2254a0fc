"""Every call of the official SDKs that applies, against a running stack; the table of them in docs/api.md is true."""

from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import openai
import pytest

from tests.docs import blocks
from tests.fake_worker import FakeWorker
from tests.flow import sdk_calls
from tests.flow.sdk_calls import ELSEWHERE, REFUSED, WORKS, Desk
from tests.gateway_process import GatewayProcess


@pytest.fixture
async def desk(ready: GatewayProcess, scripted: FakeWorker, person: str) -> AsyncIterator[Desk]:
    key = await ready.key(person)
    async with (
        openai.AsyncOpenAI(base_url=f"{ready.url}/v1", api_key=key, max_retries=0, timeout=30) as theirs,
        anthropic.AsyncAnthropic(base_url=ready.url, api_key=key, max_retries=0, timeout=30) as others,
    ):
        yield Desk(theirs, others, scripted)


@pytest.mark.parametrize("name", WORKS)
async def test_a_call_of_an_official_sdk_works(desk: Desk, name: str) -> None:
    await WORKS[name](desk)


async def test_what_is_not_offered_is_refused_by_a_typed_error(desk: Desk) -> None:
    for name, (call, status) in REFUSED.items():
        with pytest.raises(openai.APIStatusError) as refusal:
            await call(desk)
        assert refusal.value.status_code == status, name
        assert refusal.value.type and refusal.value.code, name
        assert isinstance(refusal.value, openai.NotFoundError) == (status == 404), name


async def test_refusals_are_the_anthropic_sdks_own_exceptions(desk: Desk) -> None:
    asked = {"model": "fake", "max_tokens": 1, "messages": sdk_calls.HELLO}
    for changed, kind, type in (
        ({"extra_body": {"priority": 1}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "other"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": 9_999_999}, anthropic.BadRequestError, "invalid_request_error"),
    ):
        with pytest.raises(kind) as refusal:
            await desk.anthropic.messages.create(**{**asked, **changed})
        assert refusal.value.body["error"]["type"] == type
        assert refusal.value.response.headers["x-request-id"]
    with pytest.raises(anthropic.AuthenticationError):
        await desk.anthropic.with_options(api_key="dm_live_none").models.list()


def test_no_call_of_the_sdks_is_left_out() -> None:
    theirs, others = openai.AsyncOpenAI(api_key="none"), anthropic.AsyncAnthropic(api_key="none")
    resources = ("models", "chat.completions", "completions", "responses", "conversations", "embeddings", "files")
    roots = [("openai", theirs, name) for name in (*resources, "vector_stores")]
    roots += [("anthropic", others, name) for name in ("models", "messages")]
    found = []
    for sdk, client, path in roots:
        resource = client
        for step in path.split("."):
            resource = getattr(resource, step)
        found += sdk_calls.calls_of(resource, f"{sdk} {path}")
    assert len(found) > 40
    assert [name for name in found if not sdk_calls.is_known(name)] == []


def test_the_table_in_the_docs_is_the_list_of_calls() -> None:
    assert blocks.read(sdk_calls.PAGE, sdk_calls.BLOCK) == sdk_calls.shown(), "run `python -m tests.flow.sdk_calls`"
    assert all(sdk_calls.told(function) for function in WORKS.values())
    for name, test in ELSEWHERE.items():
        file, _, function = test.partition(": ")
        source = (Path(__file__).parent / file).read_text()
        assert f"def {function}(" in source and f".{name.rpartition('.')[2]}(" in source
