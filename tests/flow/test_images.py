"""Images in the input of Responses, from the outside: the official client, a gateway, Redis, a scripted worker."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from gateway.prompt import IMAGE_NOTE
from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer

PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(5000)).decode()
URL = f"data:image/png;base64,{PICTURE}"


def asking(url: str = URL) -> Any:
    image = {"type": "input_image", "image_url": url, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, image]}]


async def test_a_model_that_reads_text_only_is_told_of_an_image_and_so_is_its_sender(client, scripted):
    conversation = await client.conversations.create()
    response = await client.responses.create(input=asking(), conversation=conversation.id)
    assert response.status == "completed" and response.metadata["deskmate:images_replaced"] == "1"
    question = scripted.generations[-1].body["messages"][-1]
    assert question == {"role": "user", "content": f"What is it?\n{IMAGE_NOTE}\n"}
    assert (await client.responses.retrieve(response.id)) == response
    second = await client.responses.create(input="And now?", conversation=conversation.id)
    assert "deskmate:images_replaced" not in second.metadata
    assert scripted.generations[-1].body["messages"][1] == question


async def test_an_image_is_listed_without_its_picture_and_its_item_may_be_sent_again(client, scripted):
    response = await client.responses.create(input=asking())
    (item,) = (await client.responses.input_items.list(response.id)).data
    assert item.content[1].to_dict() == {"type": "input_image", "detail": "auto", "image_url": None, "file_id": None}
    again = await client.responses.create(input=[item.to_dict()], store=False)
    assert again.metadata["deskmate:images_replaced"] == "1"
    first, second = scripted.generations
    assert first.prompt_ids == second.prompt_ids and PICTURE not in json.dumps(first.body)


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://127.0.0.1:1/a.png", "file:///etc/passwd"])
async def test_nothing_is_fetched_from_elsewhere(client, scripted, url):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(input=asking(url))
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "input[0].content[1].image_url")
    assert scripted.generations == []


@pytest.fixture(scope="module")
def sighted_worker() -> Iterator[FakeWorker]:
    with FakeWorker(plan={"vision": True}) as worker:
        yield worker


@pytest.fixture(scope="module")
def sighted_gateway(one_redis: RedisServer, sighted_worker: FakeWorker) -> Iterator[GatewayProcess]:
    with GatewayProcess(one_redis, sighted_worker.url) as gateway:
        yield gateway


@pytest.fixture
async def sighted(sighted_gateway: GatewayProcess, person: str) -> AsyncIterator[openai.AsyncOpenAI]:
    await sighted_gateway.until_ready()
    async with await sighted_gateway.client(person) as client:
        yield client


SHOWN = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": URL}}]


async def test_a_model_that_sees_is_shown_a_picture_in_this_turn_and_the_next_ones(sighted, sighted_worker):
    response = await sighted.responses.create(input=asking())
    assert response.status == "completed" and "deskmate:images_replaced" not in response.metadata
    (item,) = (await sighted.responses.input_items.list(response.id)).data
    assert item.content[1].image_url == URL
    await sighted.responses.create(input="And now?", previous_response_id=response.id)
    counted = await sighted.responses.input_tokens.count(input=[item.to_dict()])
    asked = [record.body["messages"][1] for record in sighted_worker.requests[-3:] if "messages" in record.body]
    assert asked == [{"role": "user", "content": SHOWN}] * len(asked) and counted.input_tokens > 0
    assert all(record.body["return_token_ids"] is False for record in sighted_worker.generations)


async def test_an_answer_to_a_picture_is_written_again_while_nothing_of_it_was_seen(sighted, sighted_worker):
    sighted_worker.script(fail="close_after:0", times=1)
    response = await sighted.responses.create(input=asking())
    assert response.status == "completed" and response.output_text
    assert [record.state for record in sighted_worker.generations[-2:]] == ["failed", "finished"]


async def test_an_answer_to_a_picture_that_breaks_off_later_fails_and_what_was_said_is_kept(sighted, sighted_worker):
    sighted_worker.script(fail="close_after:5", times=1)
    response = await sighted.responses.create(input=asking())
    assert (response.status, response.error.code) == ("failed", "engine_lost")
    (item,) = response.output
    assert item.status == "incomplete" and item.content[0].text
