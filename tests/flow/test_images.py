"""Images in the input of Responses, from the outside: the official client, a gateway, Redis, a scripted worker."""

import base64
import json
from typing import Any

import openai
import pytest

from gateway.prompt import IMAGE_NOTE
from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess

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


async def test_a_model_that_sees_is_not_told_that_it_cannot(one_redis):
    with FakeWorker(plan={"vision": True}) as worker, GatewayProcess(one_redis, worker.url) as gateway:
        await gateway.until_ready()
        async with await gateway.client("seeing") as client:
            with pytest.raises(openai.BadRequestError, match="/v1/chat/completions") as refused:
                await client.responses.create(input=asking())
        assert refused.value.code == "unsupported_parameter" and worker.generations == []
