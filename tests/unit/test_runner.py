"""Running turns: what is shown is logged, what ends is stored, whoever leaves gives their place back.

Storage, queue and engine are small doubles in memory that can be held and broken at every step.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from gateway import runner as module
from gateway import turn
from gateway.admission import Ticket, Waiting
from gateway.context import TurnRequest
from gateway.conversations import Append, Attached, Begin, Begun, Finish, Item, Lease, Standing, StoredResponse
from gateway.engine import ChatChoice, ChatChunk, ChatDelta, Defaults, EngineState, ModelFacts, Usage
from gateway.errors import (
    Busy,
    ContextLengthExceeded,
    ConversationLocked,
    Draining,
    EngineAway,
    EngineError,
    EngineLost,
    Overloaded,
    StorageDown,
)
from gateway.events import (
    Asked,
    Delta,
    Finished,
    Progress,
    Queued,
    Sampling,
    Started,
    TurnEvent,
    decode_event,
    encode_event,
)
from gateway.live import LiveTurn
from gateway.prompt import Window
from gateway.quotas import Balance
from gateway.runner import Order, Runner

FENCE = 3


class Gate:
    """A place where the code under test is held until the test opens it."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self.opened.set()

    def close(self) -> None:
        self.reached.clear()
        self.opened.clear()

    async def __call__(self) -> None:
        self.reached.set()
        await self.opened.wait()


class Store:
    """Conversations in memory, as far as a runner needs them."""

    def __init__(self) -> None:
        self.logs: dict[str, list[bytes]] = {}
        self.finished: dict[str, Finish] = {}
        self.undone: list[tuple[str, int]] = []
        self.begins: list[Begin] = []
        self.keys: set[str] = set()  # under which a post came before
        self.calls: Counter[str] = Counter()
        self.renewed: set[Lease] = set()
        self.taken: set[Lease] = set()  # by another gateway
        self.stopped: set[str] = set()
        self.handed_over: list[Lease] = []
        self.leases: list[Lease] = []
        self.fence = FENCE
        self.down: set[str] = set()  # verbs that answer StorageDown
        self.lost: set[str] = set()  # verbs that are done, but whose reply is lost
        self.gates = {verb: Gate() for verb in ("begin", "append", "finish", "history")}
        self.answer: Any = Begun(FENCE, [], "shelf", 1)

    async def call(self, verb: str) -> None:
        self.calls[verb] += 1
        if verb in self.gates:
            await self.gates[verb]()
        if verb in self.down:
            raise StorageDown("down")

    def reply(self, verb: str) -> None:
        if verb in self.lost:
            raise StorageDown("the reply was lost")

    async def begin(self, begin: Begin) -> Begun | Attached:
        await self.call("begin")
        if isinstance(self.answer, Exception):
            raise self.answer
        self.begins.append(begin)
        self.logs[begin.turn] = [begin.entry]
        self.leases.append(Lease(begin.owner, begin.turn))
        return self.answer

    async def has_come(self, owner: str, key: str) -> bool:
        await self.call("has_come")
        return key in self.keys

    async def undo(self, owner: str, turn: str, fence: int) -> None:
        await self.call("undo")
        self.undone.append((turn, fence))

    async def history(self, owner: str, conversation: str | None, previous: str | None) -> list[Item]:
        await self.call("history")
        return [Item("msg_1", {"type": "message", "role": "user", "content": "from the store"})]

    async def append(self, appends: list[Append]) -> list[Standing]:
        await self.call("append")
        for append in appends:
            log = self.logs.setdefault(append.turn, [])
            assert append.first <= len(log) + 1, "a gap in the log"
            if append.fence == self.fence:
                log.extend(append.entries[max(0, len(log) + 1 - append.first) :])
        self.reply("append")
        return [self.standing(append.turn, append.fence == self.fence) for append in appends]

    def standing(self, turn: str, ours: bool) -> Standing:
        return (Standing.STOP if turn in self.stopped else Standing.OURS) if ours else Standing.LOST

    async def finish(self, finish: Finish) -> list[Item] | None:
        await self.call("finish")
        if finish.fence != self.fence:
            return None
        self.finished.setdefault(finish.turn, finish)
        self.reply("finish")
        return []

    async def renew(self, leases: list[Lease], holder: str, seconds: float) -> list[Standing]:
        await self.call("renew")
        self.renewed.update(leases)
        return [self.standing(lease.turn, lease not in self.taken) for lease in leases]

    async def hand_over(self, leases: list[Lease], holder: str) -> None:
        self.handed_over += leases

    async def ask_to_stop(self, owner: str, turn: str) -> None:
        self.stopped.add(turn)

    async def tail(self, owner: str, turn: str, after: int) -> tuple[list[bytes], bytes | None]:
        done = self.finished.get(turn)
        return self.logs.get(turn, [])[after:], done.result if done else None

    async def expired(self, limit: int = 100) -> list[Lease]:
        await self.call("expired")
        return list(self.leases)

    async def adopt(self, lease: Lease, holder: str, seconds: float) -> int | None:
        self.calls["adopt"] += 1
        if lease not in self.leases or lease.turn in self.finished:
            return None
        self.leases.remove(lease)
        self.fence += 1
        return self.fence

    async def log(self, owner: str, turn: str, after: int = 0) -> list[bytes]:
        return self.logs.get(turn, [])[after:]

    async def response(self, owner: str, turn: str) -> StoredResponse:
        done = self.finished.get(turn)
        status, result = (done.status, done.result) if done else ("in_progress", None)
        return StoredResponse(turn, owner, 0, status, None, None, b"", result, [], [], "shelf", 1)

    def said(self, turn: str) -> list[TurnEvent]:
        return [decode_event(entry) for entry in self.logs.get(turn, [])]


class Place:
    produced = 0
    balance = Balance()

    def __init__(self, seated: bool) -> None:
        self.seat = asyncio.Event()
        if seated:
            self.seat.set()
        self.releases = 0
        self.tokens = 0
        self.watched = asyncio.Event()

    async def wait(self) -> AsyncIterator[Waiting]:
        self.watched.set()
        if not self.seat.is_set():
            yield Waiting(1, None)
            await self.seat.wait()
        yield Waiting(0, 0.0)

    async def release(self, tokens: int = 0, prompt: int | None = None) -> None:
        self.releases += 1
        self.tokens += tokens


class Admission:
    def __init__(self) -> None:
        self.places: list[Place] = []
        self.seated = True
        self.refusal: Exception | None = None
        self.tickets: list[Ticket] = []

    def check(self, *, flex: bool) -> None:
        if isinstance(self.refusal, Overloaded):
            raise self.refusal

    async def enqueue(self, ticket: Ticket) -> Place:
        if self.refusal is not None:
            raise self.refusal
        self.tickets.append(ticket)
        self.places.append(Place(self.seated))
        return self.places[-1]


def word(text: str, number: int) -> ChatChunk:
    return ChatChunk((ChatChoice(ChatDelta(text), None, (number,)),))


OPENING = ChatChunk(prompt_token_ids=(1, 2, 3))
CLOSING = ChatChunk((ChatChoice(ChatDelta(None), "stop", (9,)),), Usage(3, 5))
TEXT = [f" w{n}" for n in range(4)]


class Engine:
    """Says four words, each behind a gate."""

    def __init__(self) -> None:
        self.state = EngineState.READY
        self.model: ModelFacts | None = ModelFacts("m", 1000, 4, Defaults())
        self.tokens = 10
        self.gates = {name: Gate() for name in ("count", "open", "middle", "end", "resume", "ready")}
        self.breaks: Exception | None = None
        self.breaks_again: Exception | None = None
        self.closed = 0
        self.counted: list[Any] = []
        self.asked: list[Any] = []
        self.continued: list[Any] = []  # bodies of completions
        self.max_tokens = 0

    async def count(self, body: bytes, request_id: str) -> int:
        self.counted.append(json.loads(body)["messages"])
        await self.gates["count"]()
        return self.tokens

    async def chat(self, body: bytes, request_id: str, thread: str = "") -> AsyncGenerator[list[ChatChunk], None]:
        self.asked.append(json.loads(body)["messages"])
        self.max_tokens = json.loads(body)["max_tokens"]
        try:
            await self.gates["open"]()
            yield [OPENING]
            for number, text in enumerate(TEXT):
                if number == 2:
                    await self.gates["middle"]()
                    if self.breaks is not None:
                        raise self.breaks
                yield [word(text, number)]
            await self.gates["end"]()
            yield [CLOSING]
        finally:
            self.closed += 1

    async def complete(self, body: bytes, request_id: str, thread: str = "") -> AsyncGenerator[list[ChatChunk], None]:
        """What is missing of the four words after the prompt's three tokens."""
        asked = json.loads(body)
        self.continued.append(asked)
        await self.gates["resume"]()
        if self.breaks_again is not None:
            raise self.breaks_again
        said = len(asked["prompt"]) - 3
        for number in range(said, len(TEXT)):
            yield [ChatChunk((ChatChoice(text=TEXT[number], token_ids=(number,)),))]
        yield [ChatChunk((ChatChoice(text="", finish_reason="stop"),), Usage(3 + said, 5 - said))]

    async def until_ready(self) -> None:
        await self.gates["ready"]()

    async def text_of(self, token_ids: list[int], request_id: str) -> str:
        return "".join(TEXT[number] for number in token_ids)


class Observer:
    def __init__(self) -> None:
        self.outcomes: list[Finished] = []

    def turn_finished(self, outcome: Finished) -> None:
        self.outcomes.append(outcome)


class World:
    """A runner with all its parts."""

    def __init__(self) -> None:
        self.store, self.admission, self.engine, self.observer = Store(), Admission(), Engine(), Observer()
        self.runner = Runner(
            self.store,  # type: ignore[arg-type]
            self.admission,
            self.engine,  # type: ignore[arg-type]
            self.observer,
            holder="gw_1",
            salt_of=lambda person: "salt",
            seal=lambda person, content: f"sealed for {person}",
        )

    def narrow(self) -> None:
        """A context so small that the engine is asked to count."""
        self.engine.model = ModelFacts("m", 60, 4, Defaults())

    async def begin(self, *, stored: bool = True, background: bool = True, id: str = "resp_1") -> LiveTurn:
        live = await self.runner.begin(order(stored, background, id))
        assert isinstance(live, LiveTurn)
        return live

    @property
    def place(self) -> Place:
        return self.admission.places[-1]

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110 - many things may make it true
                await asyncio.sleep(0.001)


def order(
    stored: bool = True, background: bool = True, id: str = "resp_1", max_tokens: int = 50, **begin: Any
) -> Order:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.5, top_p=0.9, repetition_penalty=1.1)
    items = [{"type": "message", "role": "user", "content": "hi"}]
    request = TurnRequest(id, "ada", "salt", "m", None, items, Window(), sampling)
    written = Begin(owner="ada", turn=id, created_at=0, input=items, request=b"", **begin) if stored else None
    return Order(request, written, background)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(turn, "AWAY_PAUSE_SECONDS", 0.001)


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    await world.runner.start()
    try:
        async with asyncio.timeout(20):
            yield world
    finally:
        for gate in (*world.store.gates.values(), *world.engine.gates.values()):
            gate.opened.set()
        world.store.down.clear()
        world.store.lost.clear()
        await world.runner.close(1.0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running() as world:
        yield world


async def followed(live: LiveTurn) -> list[TurnEvent]:
    return shown([event async for step in live.follow() for event in step])


def shown(events: list[TurnEvent]) -> list[TurnEvent]:
    """Without what is only for whoever goes on with the turn."""
    return [event for event in events if not isinstance(event, Asked)]


def text_of(events: list[TurnEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


# the way of a turn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
async def test_a_turn_waits_is_read_speaks_and_ends_and_its_place_is_released_once(world, stored):
    events = await followed(await world.begin(stored=stored))
    assert [type(event) for event in events if not isinstance(event, Delta)] == [Queued, Started, Finished]
    assert text_of(events) == "".join(TEXT)
    assert world.place.releases == 1 and world.place.tokens == 5 and world.engine.closed == 1
    assert world.runner.running == 0 and world.observer.outcomes == [events[-1]]
    assert (events[-1].status, events[-1].prompt_tokens, events[-1].completion_tokens) == ("completed", 3, 5)


async def test_what_is_shown_is_what_is_in_the_log_and_the_answer_is_stored_before_its_end_is_seen(world):
    world.store.gates["finish"].close()
    live = await world.begin()
    await world.store.gates["finish"].reached.wait()
    assert live.shown == world.store.said("resp_1") and live.outcome is None
    world.store.gates["finish"].opened.set()
    events = await followed(live)
    finish = world.store.finished["resp_1"]
    assert decode_event(finish.result) == events[-1] and events[:-1] == shown(world.store.said("resp_1"))
    assert [item["content"] for item in finish.output] == ["".join(TEXT)]
    assert (finish.status, finish.fence, finish.completion_tokens) == ("completed", FENCE, 5)


async def test_the_prompt_is_made_of_what_the_store_has_after_the_turn_was_written(world):
    world.narrow()
    for written in ({"conversation": "conv_1"}, {"previous": "resp_0"}):
        live = await world.runner.begin(order(**written))
        await live.ended()
        assert world.engine.counted[-1] == world.engine.asked[-1] == [{"role": "user", "content": "from the store"}]
    assert world.admission.tickets == [Ticket("ada", 10, 50)] * 2


@pytest.mark.parametrize("max_tokens", [10, 499, 501, 700, 990, 5000])
@pytest.mark.parametrize("length", [2, 150, 350])
async def test_prompt_and_answer_never_exceed_the_context_also_when_nobody_has_counted(world, max_tokens, length):
    """A prompt may have as many tokens as bytes; what the engine is asked for must fit beside it."""
    world.engine.tokens = length + 40
    asked = order(stored=False, max_tokens=max_tokens)
    asked.request.items[0]["content"] = "x" * length  # type: ignore[index]
    live = await world.runner.begin(asked)
    await live.ended()
    assert world.engine.max_tokens == min(max_tokens, 1000 - world.engine.tokens)


async def test_a_short_prompt_is_not_sent_to_be_counted(world):
    await followed(await world.begin())
    assert world.engine.counted == []


async def test_nothing_of_a_turn_that_is_not_stored_reaches_the_store(world):
    live = await world.begin(stored=False)
    await followed(live)
    touched = set(world.store.calls) - {"expired", "renew"}
    assert touched == set() and world.store.logs == {} and world.store.renewed == set()


async def test_a_repeated_post_gives_the_first_turn_and_begins_none(world):
    world.store.answer = Attached("resp_0")
    assert await world.runner.begin(order()) == Attached("resp_0")
    assert world.runner.running == 0 and world.admission.places == [] and world.store.calls["undo"] == 0


async def test_two_followers_see_the_same_from_the_first_event_on_whenever_they_come(world):
    world.engine.gates["middle"].close()
    live = await world.begin()
    first = asyncio.create_task(followed(live))
    await world.engine.gates["middle"].reached.wait()
    second = asyncio.create_task(followed(live))
    world.engine.gates["middle"].opened.set()
    assert await first == await second
    assert [event async for step in world.runner.follow("ada", "resp_1") for event in step][-1] == (await first)[-1]


# refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [Busy("full", retry_after_seconds=3), Draining("stopping"), ContextLengthExceeded("long"), RuntimeError("a bug")],
    ids=lambda refusal: type(refusal).__name__,
)
async def test_whatever_refuses_a_turn_after_it_was_written_takes_it_back(world, refusal):
    world.admission.refusal = refusal
    with pytest.raises(type(refusal)):
        await world.runner.begin(order())
    assert world.store.undone == [("resp_1", FENCE)] and world.runner.running == 0


async def test_what_is_overloaded_writes_nothing_but_lets_a_repeat_find_its_answer(world):
    world.admission.refusal = Overloaded("The server is short of memory; ask again.", retry_after_seconds=5)
    for refused in (order(), order(key="new"), order(stored=False), order(key="again", attach=False)):
        with pytest.raises(Overloaded):
            await world.runner.begin(refused)
    assert world.store.begins == [] and world.store.undone == []
    world.store.keys.add("again")
    world.store.answer = Attached("resp_0")
    assert await world.runner.begin(order(key="again")) == Attached("resp_0")


async def test_a_prompt_that_is_too_long_is_taken_back_before_it_takes_a_place(world):
    world.narrow()
    world.engine.tokens = 5000
    with pytest.raises(ContextLengthExceeded):
        await world.runner.begin(order())
    assert world.store.undone == [("resp_1", FENCE)] and world.admission.places == []


async def test_a_turn_that_could_not_be_written_leaves_nothing_to_take_back(world):
    world.store.answer = ConversationLocked("busy")
    with pytest.raises(ConversationLocked):
        await world.runner.begin(order())
    assert world.store.undone == [] and world.admission.places == []


async def test_when_even_taking_back_fails_the_first_refusal_is_what_is_told(world):
    world.admission.refusal = Busy("full", retry_after_seconds=3)
    world.store.down.add("undo")
    with pytest.raises(Busy):
        await world.runner.begin(order())


async def test_a_client_that_leaves_while_the_turn_begins_leaves_nothing_behind(world):
    world.narrow()
    world.engine.gates["count"].close()
    beginning = asyncio.create_task(world.runner.begin(order()))
    await world.engine.gates["count"].reached.wait()
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert world.store.undone == [("resp_1", FENCE)] and world.runner.running == 0


async def test_a_turn_that_takes_long_to_begin_is_not_taken_for_one_whose_gateway_died(world):
    world.narrow()
    world.engine.gates["count"].close()
    beginning = asyncio.create_task(world.runner.begin(order()))
    await world.engine.gates["count"].reached.wait()
    seen = world.store.calls["expired"]
    await world.until(lambda: world.store.calls["expired"] > seen + 1 and world.store.renewed)
    assert world.store.calls["adopt"] == 0 and world.store.renewed == {Lease("ada", "resp_1")}
    world.engine.gates["count"].opened.set()
    live = await beginning
    assert (await live.ended()).status == "completed"


# cancelled in every phase --------------------------------------------------------------------------------------------


async def reach(world: World, phase: str) -> LiveTurn:
    """A turn that stands in `phase`."""
    if phase == "waiting":
        world.admission.seated = False
        live = await world.begin()
        await world.place.watched.wait()
        return live
    gate = world.store.gates[phase] if phase in world.store.gates else world.engine.gates[phase]
    gate.close()
    live = await world.begin()
    await gate.reached.wait()
    return live


@pytest.mark.parametrize(
    ("phase", "status", "words"),
    [("waiting", "cancelled", 0), ("open", "cancelled", 0), ("middle", "cancelled", 2), ("end", "cancelled", 4)],
)
async def test_a_turn_cancelled_in_any_phase_releases_its_place_and_is_stored_with_what_it_said(
    world, phase, status, words
):
    live = await reach(world, phase)
    stored = await world.runner.cancel("ada", "resp_1")
    assert stored.status == status == live.outcome.status and world.place.releases == 1
    finish = world.store.finished["resp_1"]
    assert [item["content"] for item in finish.output] == (["".join(TEXT[:words])] if words else [])
    assert world.place.tokens == words == live.outcome.completion_tokens
    assert world.runner.running == 0 and text_of(live.shown) == "".join(TEXT[:words])
    assert (await world.runner.cancel("ada", "resp_1")).status == status  # again


async def test_an_answer_that_is_being_stored_is_not_stopped_any_more(world):
    live = await reach(world, "finish")
    cancelling = asyncio.create_task(world.runner.cancel("ada", "resp_1"))
    await asyncio.sleep(0.01)
    world.store.gates["finish"].opened.set()
    assert (await cancelling).status == "completed" == live.outcome.status


async def test_stopping_twice_while_the_end_is_stored_does_not_lose_it(world):
    live = await reach(world, "middle")
    world.store.gates["finish"].close()
    live.stop()
    await world.store.gates["finish"].reached.wait()
    live.stop()
    live.stop_if_alone()
    world.store.gates["finish"].opened.set()
    assert (await live.ended()).status == "cancelled" and "resp_1" in world.store.finished


@pytest.mark.parametrize("stored", [True, False])
async def test_a_foreground_turn_ends_when_its_last_follower_leaves_and_a_background_turn_does_not(world, stored):
    world.engine.gates["middle"].close()
    front = await world.begin(background=False, stored=stored, id="resp_f")
    back = await world.begin(background=True, stored=stored, id="resp_b")
    for live in (front, back):
        first, second = live.follow(), live.follow()
        await anext(first)
        await anext(second)
        await first.aclose()
        assert not live.ending
        await second.aclose()
    assert (await front.ended()).status == "cancelled" and back.outcome is None
    world.engine.gates["middle"].opened.set()
    assert (await back.ended()).status == "completed"


async def test_everything_of_a_person_is_ended_and_nothing_of_others(world):
    live = await reach(world, "middle")
    world.runner.stop_all("bob")
    assert not live.ending
    world.runner.stop_all("ada")
    assert (await live.ended()).status == "cancelled"


async def test_an_engine_that_refuses_in_the_middle_fails_the_turn_and_what_was_said_is_kept(world):
    world.engine.breaks = EngineError("no")
    events = await followed(await world.begin())
    assert (events[-1].status, events[-1].code, events[-1].completion_tokens) == ("failed", "engine_error", 2)
    assert world.store.finished["resp_1"].output[0]["status"] == "incomplete"
    assert text_of(events) == "".join(TEXT[:2]) and world.place.releases == 1


@pytest.mark.parametrize("stored", [True, False])
async def test_an_engine_that_dies_is_waited_for_and_the_same_answer_goes_on(world, stored):
    world.engine.breaks = EngineLost("gone")
    world.engine.gates["ready"].close()
    live = await world.begin(stored=stored)
    await world.engine.gates["ready"].reached.wait()
    await world.until(lambda: Progress("engine_lost") in live.shown)
    assert text_of(live.shown) == "".join(TEXT[:2]) and live.outcome is None
    world.engine.gates["ready"].opened.set()
    events = await followed(live)
    assert text_of(events) == "".join(TEXT) and world.engine.continued[0]["prompt"] == [1, 2, 3, 0, 1]
    kinds = [type(event) for event in events if not isinstance(event, Delta)]
    assert kinds == [Queued, Started, Progress, Progress, Finished] and world.place.releases == 1
    assert (events[-1].status, events[-1].prompt_tokens, events[-1].completion_tokens) == ("completed", 3, 5)


async def test_an_engine_that_takes_nothing_for_a_while_is_asked_again_and_says_so_once(world):
    world.engine.breaks, world.engine.breaks_again = EngineLost("gone"), EngineAway("it drains")
    live = await world.begin()
    await world.until(lambda: len(world.engine.continued) > 5)
    world.engine.breaks_again = None
    events = await followed(live)
    assert text_of(events) == "".join(TEXT)
    assert [event.state for event in events if isinstance(event, Progress)] == ["engine_lost", "resuming"]


async def test_a_request_that_breaks_every_engine_at_the_same_token_is_given_up(world):
    world.engine.breaks = world.engine.breaks_again = EngineLost("gone")
    events = await followed(await world.begin())
    assert (events[-1].status, events[-1].code) == ("failed", "engine_lost") and len(world.engine.continued) == 2
    assert text_of(events) == "".join(TEXT[:2]) and world.place.releases == 1


async def test_an_engine_that_stays_away_too_long_fails_the_turn(world, monkeypatch):
    monkeypatch.setattr(turn, "AWAY_SECONDS", 0.05)
    world.engine.breaks = EngineLost("gone")
    world.engine.gates["ready"].close()
    events = await followed(await world.begin())
    assert (events[-1].status, events[-1].code) == ("failed", "engine_lost") and text_of(events) == "".join(TEXT[:2])


async def test_an_answer_does_not_go_on_with_another_model(world):
    world.engine.breaks = EngineLost("gone")
    world.engine.gates["ready"].close()
    live = await world.begin()
    await world.engine.gates["ready"].reached.wait()
    world.engine.model = ModelFacts("another", 1000, 4, Defaults())
    world.engine.gates["ready"].opened.set()
    outcome = await live.ended()
    assert (outcome.status, outcome.code) == ("failed", "engine_error") and "another" in outcome.message


async def test_text_that_a_dead_engine_kept_back_for_a_stop_string_is_said_before_the_answer_goes_on(
    world, monkeypatch
):
    monkeypatch.setattr(world.engine, "chat", behind)
    asked = order()
    asked.request.sampling.extra["stop"] = ["zzz"]  # type: ignore[index]
    live = await world.runner.begin(asked)
    assert text_of(await followed(live)) == "".join(TEXT)


async def behind(body: bytes, request_id: str, thread: str = "") -> AsyncGenerator[list[ChatChunk], None]:
    """An engine whose text is a little behind its tokens."""
    yield [OPENING, ChatChunk((ChatChoice(ChatDelta(" w0 "), None, (0, 1)),))]
    raise EngineLost("gone")


async def test_a_bug_in_a_turn_still_ends_it_with_a_typed_failure(world, monkeypatch):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    world.engine.breaks = RuntimeError("a bug")
    live = await world.begin()
    outcome = await live.ended()
    assert (outcome.status, outcome.code) == ("failed", "internal_error") and world.place.releases == 1
    with pytest.raises(RuntimeError, match="a bug"):
        await live.task


async def test_who_waits_while_the_engine_loads_is_told_why(world):
    world.engine.state, world.engine.model = EngineState.LOADING, None
    live = await reach(world, "waiting")
    world.engine.state, world.engine.model = EngineState.READY, ModelFacts("m", 1000, 4, Defaults())
    world.place.seat.set()
    assert [event for event in await followed(live) if isinstance(event, Progress)] == [Progress("loading")]


async def test_a_prompt_that_was_only_estimated_is_counted_at_the_seat_and_refused_there(world):
    world.engine.state, world.engine.model = EngineState.LOADING, None
    live = await reach(world, "waiting")
    world.engine.state = EngineState.READY
    world.narrow()
    world.engine.tokens = 5000
    world.place.seat.set()
    outcome = await live.ended()
    assert (outcome.status, outcome.code) == ("failed", "context_length_exceeded") and world.place.releases == 1


# trouble with the storage --------------------------------------------------------------------------------------------


async def test_while_the_storage_is_down_nothing_is_shown_and_then_everything_is(world):
    world.store.down.add("append")
    live = await world.begin()
    await world.until(lambda: world.store.calls["append"] > 3)
    assert shown(live.shown) == [] and live.said.text == "".join(TEXT)
    world.store.down.clear()
    events = await followed(live)
    assert text_of(events) == "".join(TEXT) == text_of(world.store.said("resp_1")) and events[-1].status == "completed"


@pytest.mark.parametrize("gate", ["open", "middle", "end"])
async def test_a_log_whose_reply_was_lost_is_still_what_is_shown(world, gate):
    """The entries were written; what is written again must be the same, whatever was said since."""
    world.engine.gates[gate].close()
    world.store.lost.add("append")
    live = await world.begin()
    await world.until(lambda: world.store.calls["append"] > 2)
    assert shown(live.shown) == []
    world.engine.gates[gate].opened.set()
    await world.until(lambda: len(live.said.pieces) == len(TEXT))
    world.store.lost.clear()
    events = await followed(live)
    assert events[:-1] == shown(world.store.said("resp_1")) and text_of(events) == "".join(TEXT)


@pytest.mark.parametrize("trouble", ["down", "lost"])
async def test_an_end_that_could_not_be_stored_is_tried_again_and_not_shown_before(world, trouble):
    getattr(world.store, trouble).add("finish")
    live = await world.begin()
    await world.until(lambda: world.store.calls["finish"] > 3)
    assert live.outcome is None and not any(isinstance(event, Finished) for event in live.shown)
    getattr(world.store, trouble).clear()
    assert (await live.ended()).status == "completed"


async def test_what_was_said_between_two_tries_of_a_write_is_written_after_it_without_more_being_said(world):
    world.store.gates["append"].close()
    world.store.down.add("append")
    live = await world.begin()
    await world.store.gates["append"].reached.wait()
    await world.until(lambda: len(live.said.pieces) == len(TEXT))  # the write under way has less
    world.store.down.clear()
    world.store.gates["append"].opened.set()
    assert text_of(await followed(live)) == "".join(TEXT)


async def test_what_comes_while_one_write_is_under_way_is_one_entry_of_the_next(world):
    world.store.gates["append"].close()
    live = await world.begin()
    await world.store.gates["append"].reached.wait()
    await world.until(lambda: len(live.said.pieces) == len(TEXT))
    world.store.gates["append"].opened.set()
    await live.ended()
    assert [event for event in world.store.said("resp_1") if isinstance(event, Delta)] == [
        Delta("".join(TEXT), (0, 1, 2, 3))
    ]


async def test_a_turn_that_somebody_else_took_over_stops_and_shows_no_more(world):
    world.engine.gates["middle"].close()
    live = await world.begin()
    await world.until(lambda: text_of(live.shown))
    seen = list(live.shown)
    world.store.fence += 1
    world.engine.gates["middle"].opened.set()
    world.engine.gates["end"].close()
    assert await live.ended() is None and live.shown == seen
    await live.task
    assert world.place.releases == 1 and world.store.finished == {} and world.observer.outcomes == []


async def test_who_follows_a_turn_that_somebody_else_took_over_goes_on_with_what_they_write(world):
    world.engine.gates["middle"].close()
    live = await world.begin()
    await world.until(lambda: text_of(live.shown))
    following = asyncio.create_task(collected(world.runner.show(live)))
    await asyncio.sleep(0)
    world.store.fence += 1
    world.store.logs["resp_1"].append(encode_event(Delta(" theirs", (7,))))
    await world.store.finish(finish_of("resp_1", world.store.fence, Finished("completed")))
    world.engine.gates["middle"].opened.set()
    events = await following
    assert text_of(events) == "".join(TEXT[:2]) + " theirs" and events[-1] == Finished("completed")


async def test_a_turn_whose_owner_asked_for_its_end_elsewhere_ends_here_and_keeps_what_it_said(world):
    world.engine.gates["middle"].close()
    live = await world.begin()
    await world.until(lambda: text_of(live.shown))
    world.store.stopped.add("resp_1")
    assert (await live.ended()).status == "cancelled" and text_of(live.shown) == "".join(TEXT[:2])


async def test_a_turn_that_runs_elsewhere_is_asked_to_end_and_its_end_is_waited_for(world):
    world.store.logs["resp_7"] = []
    cancelling = asyncio.create_task(world.runner.cancel("ada", "resp_7"))
    await world.until(lambda: "resp_7" in world.store.stopped)
    await world.store.finish(finish_of("resp_7", FENCE, Finished("cancelled")))
    assert (await cancelling).status == "cancelled"


def finish_of(turn: str, fence: int, outcome: Finished) -> Finish:
    return Finish("ada", turn, fence, outcome.status, [], encode_event(outcome), 0, 0)


async def collected(steps: AsyncGenerator[Any, None]) -> list[TurnEvent]:
    return [event async for step in steps for event in step]


# a gateway that died --------------------------------------------------------------------------------------------------

SAMPLING = Sampling(max_tokens=50, temperature=0.5, top_p=0.9, repetition_penalty=1.1)
ASKED = Asked("m", "be brief", Window(), SAMPLING)
BEFORE = [ASKED, Queued(0), Started((1, 2, 3)), Delta(TEXT[0] + TEXT[1], (0, 1))]


@asynccontextmanager
async def orphaned(*log: TurnEvent) -> AsyncIterator[World]:
    """A runner that finds a turn whose gateway died after it had logged this."""
    world = World()
    world.store.logs["resp_9"] = [encode_event(event) for event in log]
    world.store.leases.append(Lease("ada", "resp_9"))
    await world.runner.start()
    try:
        async with asyncio.timeout(20):
            yield world
    finally:
        await world.runner.close(0.0)


async def test_an_answer_goes_on_from_its_tokens_when_its_gateway_died():
    async with orphaned(*BEFORE) as world:
        await world.until(lambda: "resp_9" in world.store.finished)
        [asked] = world.engine.continued
        assert asked["prompt"] == [1, 2, 3, 0, 1] and asked["max_tokens"] == 48 and asked["cache_salt"] == "salt"
        assert (asked["temperature"], asked["repetition_penalty"]) == (0.5, 1.1) and world.engine.asked == []
        finish = world.store.finished["resp_9"]
        assert finish.output[0]["content"] == "".join(TEXT) and finish.fence == FENCE + 1
        outcome = decode_event(finish.result)
        assert (outcome.status, outcome.prompt_tokens, outcome.completion_tokens) == ("completed", 3, 5)
        events = await collected(world.runner.follow("ada", "resp_9"))
        assert events[:4] == BEFORE and Progress("resuming") in events and text_of(events) == "".join(TEXT)
        assert world.admission.tickets == [Ticket("ada", 3, 50, promised=True, accepted=True)]


async def test_a_turn_that_had_said_nothing_is_asked_again_from_what_is_stored():
    async with orphaned(ASKED) as world:
        await world.until(lambda: "resp_9" in world.store.finished)
        system, stored = world.engine.asked[0]
        assert (system["content"], stored["content"]) == ("be brief", "from the store")
        assert text_of(world.store.said("resp_9")) == "".join(TEXT) and not world.admission.tickets[0].promised


TAKEN_OVER = [Progress("resuming")] * module.MOST_ADOPTIONS


@pytest.mark.parametrize(
    "log",
    [
        [Queued(0), Started((1,)), Delta("half an", (1, 2))],  # nothing tells what was asked
        [ASKED, Queued(0), Started(()), Delta("half an", ())],  # its tokens are not known
        [ASKED, Queued(0), Started((1,)), Delta("half an", (1, 2)), *TAKEN_OVER],
    ],
)
async def test_what_cannot_go_on_is_ended_with_what_it_had_said(log):
    async with orphaned(*log) as world:
        await world.until(lambda: "resp_9" in world.store.finished)
        outcome = decode_event(world.store.finished["resp_9"].result)
        assert (outcome.status, outcome.code) == ("failed", "gateway_restarted") and outcome.completion_tokens
        assert world.store.finished["resp_9"].output[0]["content"] == "half an"


async def test_an_answer_that_speaks_in_between_may_be_taken_over_any_number_of_times():
    early = [*BEFORE[:-1], *TAKEN_OVER, BEFORE[-1], *TAKEN_OVER[1:], Progress("engine_lost")]
    async with orphaned(*early) as world:
        world.store.fence = 1000
        await world.until(lambda: "resp_9" in world.store.finished)
        assert decode_event(world.store.finished["resp_9"].result).status == "completed"


async def test_the_answer_ends_as_cut_when_a_dead_gateway_had_used_up_its_tokens():
    asked = Asked("m", None, Window(), Sampling(2, 0.5, 0.9, 1.1))
    async with orphaned(asked, *BEFORE[1:]) as world:
        await world.until(lambda: "resp_9" in world.store.finished)
        outcome = decode_event(world.store.finished["resp_9"].result)
        assert (outcome.status, outcome.reason, outcome.completion_tokens) == ("incomplete", "max_output_tokens", 2)


async def test_a_running_turn_keeps_its_lease_and_is_no_orphan(world):
    await reach(world, "middle")
    seen = world.store.calls["expired"]
    await world.until(lambda: world.store.calls["expired"] > seen + 1 and world.store.renewed)
    assert world.store.renewed == {Lease("ada", "resp_1")} and world.store.calls["adopt"] == 0


async def test_a_follower_of_a_quiet_turn_hears_that_nothing_came(world):
    live = await reach(world, "open")
    async with aclosing(live.follow()) as steps:
        quiet = 0
        async for step in steps:
            quiet += not step
            if quiet == 2:
                break
    assert quiet == 2


# draining ------------------------------------------------------------------------------------------------------------


async def test_while_it_drains_nothing_new_begins_and_what_runs_may_end(world):
    live = await reach(world, "middle")
    closing = asyncio.create_task(world.runner.close(5.0))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await world.runner.begin(order(id="resp_2"))
    world.engine.gates["middle"].opened.set()
    await closing
    assert live.outcome.status == "completed" and world.store.calls["begin"] == 1


@pytest.mark.parametrize("phase", ["waiting", "middle"])
async def test_what_has_not_ended_when_the_time_is_over_is_handed_over_and_its_followers_are_let_go(world, phase):
    live = await reach(world, phase)
    following = asyncio.create_task(collected(world.runner.show(live)))
    await asyncio.sleep(0)
    await world.runner.close(0.01)
    assert world.store.handed_over == [Lease("ada", "resp_1")] and world.store.finished == {}
    assert world.place.releases == 1 and not any(isinstance(event, Finished) for event in await following)


async def test_what_is_not_stored_cannot_be_handed_over_and_says_so(world):
    world.engine.gates["middle"].close()
    live = await world.begin(stored=False)
    await world.engine.gates["middle"].reached.wait()
    await world.runner.close(0.01)
    assert (live.outcome.status, live.outcome.code) == ("failed", "draining") and world.place.releases == 1
