"""What conversations cost in Redis: memory, commands and bytes, and what deleting many of them costs others."""

import asyncio
import time
from collections.abc import Iterator
from itertools import count
from pydoc_data.topics import topics

from gateway.api.response_output import Echo, encode_echo
from gateway.conversations import Append
from gateway.conversations.store import RedisConversations
from gateway.events import Asked, Delta, Finished, Queued, Sampling, Started, Timing, encode_event
from gateway.prompt import Window
from gateway.said import answer_item
from tests.contract.conftest import Desk, said
from tests.servers import RedisServer

BYTES = 400  # of a message
SMALL_CONVERSATION = 20  # messages
WHOLE = Finished(
    "completed", prompt_tokens=1234, cached_tokens=1152, completion_tokens=98, timing=Timing(0.1, 0.2, 3.3)
)
ASKED = Asked("qwen2.5-1.5b", "You are a helpful assistant.", Window(5, truncate=True), Sampling(1024, 0.7, 0.9, 1.1))
STALL_SECONDS = 0.5  # what somebody else may wait on this machine while a thousand conversations go


def prose() -> Iterator[str]:
    """Different slices of Python's own manual."""
    text = " ".join(" ".join(topics.values()).split())
    return (text[start : start + BYTES] for start in count(0, BYTES))


def echo(conversation: str) -> bytes:
    return encode_echo(
        Echo(
            model="qwen2.5-1.5b", temperature=0.7, top_p=0.9, max_output_tokens=1024, truncation="auto",
            background=True, conversation=conversation, created_at=1_764_000_000,
        )
    )  # fmt: skip


class Writer:
    """Whole turns as the gateway writes them: records, log, key."""

    def __init__(self, store: RedisConversations) -> None:
        self.desk = Desk(store)
        self.words = prose()

    async def turn(self, conversation: str, *, log: bool = True) -> None:
        desk = self.desk
        begin, begun = await desk.begins(
            next(self.words), conversation=conversation, request=echo(conversation),
            title="What is the meaning of it?", key=f"key:{next(desk._ids)}", digest="0" * 64,
            entry=encode_event(ASKED) if log else b"",
        )  # fmt: skip
        answer = next(self.words)
        if log:
            events = [Queued(0, 0.0), Started(tuple(range(1000, 1300)))]
            events += [Delta(answer[at : at + 20], tuple(range(at, at + 5))) for at in range(0, BYTES, 20)]
            entries = [encode_event(event) for event in events]
            await desk.store.append([Append(desk.owner, begin.turn, begun.fence, 2, entries)])
        finish = desk.answers(begin, "", begun.fence, output=[answer_item(answer, True)], result=encode_event(WHOLE))
        assert await desk.store.finish(finish) is not None


def used(server: RedisServer, *patterns: str) -> int:
    """Bytes of Redis' memory for keys of these names."""
    keys = {key for pattern in patterns for key in server.admin("KEYS", pattern)}  # type: ignore[attr-defined]
    return sum(int(server.admin("MEMORY", "USAGE", key.decode(), "SAMPLES", 0)) for key in keys)  # type: ignore[call-overload]


async def test_fifty_turns_cost_at_most_two_and_a_half_times_their_text(
    store: RedisConversations, redis_server: RedisServer
) -> None:
    writer = Writer(store)
    conversation = await writer.desk.conversation()
    for _ in range(50):
        await writer.turn(conversation)
    all, logs, keys = used(redis_server, "dm:*"), used(redis_server, "dm:stream:*"), used(redis_server, "dm:idem:*")
    text = 50 * 2 * BYTES
    print(f"50 turns: {text} bytes of text, {(all - logs) / text:.2f} times that in Redis ({keys} of it keys of posts,")
    print(f"for a day); their stream logs {logs / text:.2f} times, for an hour")
    assert all - logs <= 2.5 * text


async def test_a_conversation_of_twenty_messages_takes_at_most_ten_kib(
    store: RedisConversations, redis_server: RedisServer
) -> None:
    words, desk = prose(), Desk(store)
    await desk.store.create(desk.owner, {}, [said(next(words)) for _ in range(SMALL_CONVERSATION)])
    items = used(redis_server, "dm:*") / 1024
    redis_server.admin("FLUSHALL", "SYNC")
    writer = Writer(store)
    conversation = await writer.desk.conversation()
    for _ in range(SMALL_CONVERSATION // 2):
        await writer.turn(conversation)
    all, logs, keys = (used(redis_server, f"dm:{kind}*") / 1024 for kind in ("", "stream", "idem"))
    print(f"20 messages of {BYTES} bytes: {items:.1f} KiB as items; as ten whole turns {all - logs - keys:.1f} KiB,")
    print(f"with the keys of their posts {all - logs:.1f} KiB for a day, with their logs {all:.1f} KiB for an hour")
    assert items <= 10 and all - logs - keys <= 11


async def test_the_fiftieth_turn_costs_what_the_second_does(
    store: RedisConversations, redis_server: RedisServer
) -> None:
    """What its prompt costs is read beside it, and grows; all that is written does not."""
    writer = Writer(store)
    conversations = [await writer.desk.conversation() for _ in range(8)]
    costs: dict[int, dict[str, float]] = {}
    for number in range(1, 51):
        writer.words, before = prose(), spent(redis_server)
        for conversation in conversations:
            await writer.turn(conversation)
        costs[number] = {name: value - before[name] for name, value in spent(redis_server).items()}
    second, last = costs[2], costs[50]
    print(f"8 second turns: {second}; 8 fiftieth turns: {last}")
    for what in ("commands", "bytes in", "bytes out"):
        assert abs(last[what] / second[what] - 1) <= 0.1, what
    early = sum(costs[number]["CPU ms"] for number in range(2, 7))  # the processor's clock is too coarse for one
    late = sum(costs[number]["CPU ms"] for number in range(46, 51))
    assert late <= 2 * early


def spent(server: RedisServer) -> dict[str, float]:
    stats: dict[str, float] = server.admin("INFO", "stats")  # type: ignore[assignment]
    cpu: dict[str, float] = server.admin("INFO", "cpu")  # type: ignore[assignment]
    commands: dict[str, dict[str, int]] = server.admin("INFO", "commandstats")  # type: ignore[assignment]
    calls = sum(told["calls"] for name, told in commands.items() if name not in ("cmdstat_info", "cmdstat_auth"))
    return {
        "commands": calls,
        "bytes in": stats["total_net_input_bytes"],
        "bytes out": stats["total_net_output_bytes"],
        "CPU ms": 1000 * (cpu["used_cpu_user"] + cpu["used_cpu_sys"]),
    }


async def test_deleting_a_thousand_conversations_does_not_stall_others(
    store: RedisConversations, redis_server: RedisServer
) -> None:
    writer = Writer(store)
    mine = [await writer.desk.conversation() for _ in range(1000)]
    for conversation in mine:
        await writer.turn(conversation)
    others = Desk(store, "u_bob")
    theirs, waited, over = await others.conversation(), [0.0], asyncio.Event()

    async def go_on() -> None:
        while not over.is_set():
            began = time.monotonic()
            await others.turn("1", "2", conversation=theirs)
            waited.append(time.monotonic() - began)

    going_on = asyncio.create_task(go_on())
    began = time.monotonic()
    for at in range(0, 1000, 16):
        await asyncio.gather(*(store.delete(writer.desk.owner, conversation) for conversation in mine[at : at + 16]))
    seconds = time.monotonic() - began
    over.set()
    await going_on
    print(f"1,000 conversations deleted in {seconds:.1f} s; {len(waited)} turns beside it, longest {max(waited):.3f} s")
    assert max(waited) < STALL_SECONDS and len(waited) > 10
    left = {key.decode().split(":")[1] for key in redis_server.admin("KEYS", f"dm:*{writer.desk.owner}*")}  # type: ignore[attr-defined]
    assert left <= {"usage", "idem"}
