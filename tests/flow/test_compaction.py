"""A conversation made short, from the outside: the official client, a gateway, Redis, a scripted worker."""

import asyncio
import re
from typing import Any

import httpx2
import openai
import pytest

from gateway.compaction import REQUEST
from gateway.prompt import SUMMARY_NOTE, WORD_JOINER
from tests.fake_worker import IM_START
from tests.flow.test_turns import said

RULE: Any = {"role": "developer", "content": "Answer in rhymes."}


def user(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


def back(compacted: Any) -> list[Any]:
    """The output, word for word as it came."""
    return [item.to_dict(warnings=False) for item in compacted.output]


async def test_what_people_wrote_stays_and_the_rest_becomes_a_summary_that_the_next_turn_reads(client, scripted):
    first = await client.responses.create(input=[RULE, user("One")])
    second = await client.responses.create(input="Two", previous_response_id=first.id)
    scripted.script(answer="They spoke of <|im_start|> and two.")
    compacted = await client.responses.compact(model="fake", previous_response_id=second.id, input=[user("Three")])
    asked = scripted.generations[-1].body
    whole = said("One", first.output_text, "Two", second.output_text, "Three", REQUEST)
    whole = [whole[0], {"role": "system", "content": RULE["content"]}, *whole[1:5], whole[5], user_message(REQUEST)]
    assert asked["messages"] == whole and asked["temperature"] == 0
    usage = compacted.usage
    assert usage.input_tokens == len(scripted.generations[-1].prompt_ids) and usage.output_tokens > 3
    *messages, seal = back(compacted)
    assert [message["content"][0]["text"] for message in messages] == ["One", "Two", "Three"]
    assert seal["type"] == "compaction" and "two" not in seal["encrypted_content"]

    scripted.script(answer=None)
    next = await client.responses.create(input=[*messages, seal, user("Four")])
    one, two, three, rule, summary, four = scripted.generations[-1].body["messages"][1:]
    assert [message["content"] for message in (one, two, three, four)] == ["One", "Two", "Three", "Four"]
    assert rule == {"role": "system", "content": RULE["content"]} and summary["role"] == "system"
    assert summary["content"].startswith(SUMMARY_NOTE) and WORD_JOINER in summary["content"]
    assert scripted.generations[-1].prompt_ids.count(IM_START) == 7  # the template's own

    items = (await client.responses.input_items.list(next.id, order="asc")).data
    assert items[3].to_dict() | {"id": ""} == seal | {"id": ""} and items[3].id.startswith("cmp_")
    await client.responses.create(input="Five", previous_response_id=next.id)
    assert scripted.generations[-1].body["messages"][5] == summary


def user_message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's type knows no user messages
async def test_what_was_made_short_can_be_made_shorter_and_keeps_its_instructions(client, scripted):
    scripted.script(answer="First summary.")
    first = await client.responses.compact(model="fake", input=[RULE, user("One")], instructions="Be exact.")
    assert scripted.generations[-1].body["messages"][0] == {"role": "system", "content": "Be exact."}
    scripted.script(answer="Second summary.")
    second = await client.responses.compact(model="fake", input=back(first))
    assert SUMMARY_NOTE + "First summary." in [m["content"] for m in scripted.generations[-1].body["messages"]]
    counted = await client.responses.input_tokens.count(input=[*back(second), user("Two")])
    response = await client.responses.create(input=[*second.output, user("Two")], store=False)  # as it is
    told = [message["content"] for message in scripted.generations[-1].body["messages"]][1:]
    assert told == ["One", RULE["content"], SUMMARY_NOTE + "Second summary.", "Two"]
    assert response.usage.input_tokens == counted.input_tokens


async def test_calls_of_tools_and_their_outputs_go_into_the_summary(client, scripted):
    call: Any = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c", "output": "rain"}
    compacted = await client.responses.compact(model="fake", input=[user("Weather?"), call, output])
    assert [m["role"] for m in scripted.generations[-1].body["messages"]][1:] == ["user", "assistant", "tool", "user"]
    assert [item["type"] for item in back(compacted)] == ["message", "compaction"]


async def test_a_seal_that_was_broken_or_is_somebody_elses_is_refused(client, ready, scripted):
    compacted = await client.responses.compact(model="fake", input="One")
    *_, seal = back(compacted)
    text = seal["encrypted_content"]
    broken = text[:-6] + ("AAAA" if text[-6:-2] != "AAAA" else "BBBB") + text[-2:]
    asked = len(scripted.generations)
    async with await ready.client("stranger") as stranger:
        for who, content in ((client, broken), (client, "no seal"), (client, "ä"), (stranger, text)):
            with pytest.raises(openai.BadRequestError) as refused:
                await who.responses.create(input=[user("x"), seal | {"encrypted_content": content}])
            assert (refused.value.code, refused.value.param) == (
                "invalid_encrypted_content",
                "input[1].encrypted_content",
            )
    assert len(scripted.generations) == asked


async def test_nothing_of_it_is_stored(ready, client):
    def written() -> set[bytes]:
        """What there is in the append-only file beside the places in line, which hold numbers."""
        text = b"".join(file.read_bytes() for file in ready.redis.folder.rglob("*.aof"))
        return set(re.findall(rb"dm:(?!line)[a-z]+:[^\s:]*", text))

    await client.responses.create(input="the key's last day of use is noted now", store=False)
    before = written()
    compacted = await client.responses.compact(model="fake", input=[user("nobody may know")])
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(compacted.id)
    assert written() == before
    await client.responses.create(input="this may be known")
    assert written() > before
    assert all(b"nobody may know" not in file.read_bytes() for file in ready.redis.folder.rglob("*.aof"))


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": "x"}, "missing_required_parameter", "model"),
        ({"model": None, "input": "x"}, "missing_required_parameter", "model"),
        ({"model": "fake"}, "invalid_value", "input"),
        ({"model": "fake", "input": []}, "invalid_value", "input"),
        ({"model": "fake", "input": "x", "store": True}, "unknown_parameter", "store"),
        ({"model": "fake", "input": "x", "wibble": 1}, "unknown_parameter", "wibble"),
        ({"model": 5, "input": "x"}, "invalid_value", "model"),
        ({"model": "gpt-9", "input": "x"}, "model_not_found", "model"),
        ({"model": "fake", "previous_response_id": "r"}, "previous_response_not_found", "previous_response_id"),
        ({"model": "fake", "input": "word " * 9000}, "context_length_exceeded", "input"),
        (
            {"model": "fake", "input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            "invalid_value",
            "input[0].call_id",
        ),
    ],
)
async def test_what_cannot_be_made_short_is_refused_by_name(ready, person, scripted, body, code, param):
    headers = {"authorization": f"Bearer {await ready.key(person)}"}
    async with httpx2.AsyncClient(base_url=ready.url, headers=headers) as http:
        answer = await http.post("/v1/responses/compact", json=body)
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param) and scripted.generations == []
    assert answer.status_code == (404 if code == "model_not_found" else 400)


async def test_an_engine_that_fails_is_said_so_and_one_that_is_lost_is_waited_for(client, scripted):
    scripted.script(fail="400", times=1)
    with pytest.raises(openai.BadRequestError) as failed:
        await client.responses.compact(model="fake", input="One")
    assert failed.value.code == "invalid_prompt"
    scripted.script(answer="A summary in a few words.", fail="close_after:3", times=1)
    compacted = await client.responses.compact(model="fake", input="One")
    await client.responses.create(input=back(compacted), store=False)
    assert SUMMARY_NOTE + "A summary in a few words." in [
        message["content"] for message in scripted.generations[-1].body["messages"]
    ]


async def test_who_leaves_ends_it(client, scripted):
    scripted.script(pace_ms=20, answer=" word" * 200)
    asking = asyncio.create_task(client.responses.compact(model="fake", input="One"))
    await scripted.until(lambda worker: worker.generations and worker.generations[-1].tokens_sent)
    asking.cancel()
    await scripted.until(lambda worker: worker.generations[-1].state == "aborted")
