"""Judges a run: the invariants I1 to I10, from what clients saw, what is stored, and what the workers did.

Breaches are sentences that begin with the invariant's name. Reads the store through the gateway's own `Conversations`,
so a dump is what a gateway would answer from; what the workers did is their own journal. Changes nothing.

    I1  nothing acknowledged is missing            I6  nobody received another's byte
    I2  no question is there twice                 I7  nothing is left behind: leases, locks, seats, connections
    I3  groups in order, versions grow by one      I8  every refusal is typed and prompt, nothing hangs in silence
    I4  what was seen is a prefix of what is kept  I9  usage is charged once, for what was produced
    I5  one generation at a time per turn          (I10, no-trace: test_no_trace.py)
"""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from gateway.conversations import Item, StoredResponse
from gateway.conversations.store import RedisConversations
from gateway.events import Finished, decode_event
from gateway.redis_client import RedisClient
from gateway.said import Said
from tests.fake_worker import answer
from tests.fault.desk import Desk, Generation
from tests.fault.history import Call, Question
from tests.gateway_process import SYSTEM

SETTLE_SECONDS = 20.0
HEARTBEAT_SECONDS = 12.0
OVERLAP_SECONDS = 0.5  # a cut connection is seen by the worker a moment after the gateway has asked again
PROMPT_SECONDS = 10.0  # for a refusal
ENDS = {
    "completed": "response.completed",
    "failed": "response.failed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
}


@dataclass(frozen=True)
class Turn:
    stored: StoredResponse
    said: Said
    outcome: Finished | None

    @property
    def text(self) -> str:
        return "".join(_text(item) for item in self.stored.output)


@dataclass(frozen=True)
class Kept:
    """One conversation as stored."""

    id: str
    version: int
    running: str | None
    items: Sequence[Item]
    turns: Sequence[Turn]


@dataclass
class Dump:
    conversations: dict[str, Kept]
    turns: dict[str, Turn]
    usage: dict[str, dict[str, int]]  # user → prompt, completion, requests
    leases: int
    owners: set[str]


async def settle(desk: Desk) -> None:
    """Until every turn has ended and no worker works. Raises TimeoutError when some never do."""
    async with asyncio.timeout(SETTLE_SECONDS):
        while await _busy(desk):  # noqa: ASYNC110 - they are other processes
            await asyncio.sleep(0.05)


async def check(desk: Desk, *, expected_answers: bool = True) -> list[str]:
    """Every breach, by name. `expected_answers`: the worker was not told other words, so each answer is known."""
    breaches: list[str] = []
    try:
        await settle(desk)
    except TimeoutError:
        running = [str(name) for name in desk.redis.admin("ZRANGE", "dm:leases", 0, -1)]  # type: ignore[attr-defined]
        breaches.append(f"I7: after {SETTLE_SECONDS:.0f} s turns still run: {running[:3]}")
    dump = await read(desk)
    history = desk.history
    for question in history.questions:
        breaches += _of_question(question, dump, question.conversation in history.deleted)
    for kept in dump.conversations.values():
        breaches += _of_conversation(kept, dump, expected_answers)
    breaches += _generations(desk)
    breaches += [breach for call in history.calls for breach in _of_call(call, desk)]
    breaches += _usage(desk, dump)
    strangers = dump.owners - history.everybody
    if strangers:
        breaches.append(f"I6: somebody who never came has data: {sorted(strangers)[:3]}")
    return breaches


async def _busy(desk: Desk) -> bool:
    told = [await worker.tell() for worker in desk.workers]
    return bool(desk.redis.admin("ZCARD", "dm:leases")) or any(one["running"] for one in told)


async def read(desk: Desk) -> Dump:
    client = RedisClient(f"unix://{desk.redis.socket}?db=0", desk.redis.password)  # as one who may see everything
    store = RedisConversations(client, retention_days=0, log_ttl_seconds=3600)
    try:
        dump = Dump({}, {}, {}, int(await client.call("ZCARD", "dm:leases")), set())
        for user in set(desk.history.people.values()):
            await _read_person(client, store, user, dump)
        async for names in client.scan("dm:conv:*"):
            dump.owners |= {name.decode().split(":")[2] for name in names}
        return dump
    finally:
        await client.aclose()


async def _read_person(client: RedisClient, store: RedisConversations, user: str, dump: Dump) -> None:
    after, more = None, True
    while more:
        found, more = await store.list(user, 100, after, None)
        for conversation in found:
            after = conversation.id
            items = await store.history(user, conversation.id, None)
            names = await client.call("LRANGE", f"dm:turns:{user}:{conversation.id}", 0, -1)
            turns = [await _read_turn(store, user, name.decode()) for name in names]
            dump.turns |= {turn.stored.id: turn for turn in turns}
            dump.conversations[conversation.id] = Kept(
                conversation.id, conversation.version, conversation.running, items, turns
            )
    total: Counter[str] = Counter()
    async for names in client.scan(f"dm:usage:{user}:*"):
        for name in names:
            flat = await client.call("HGETALL", name)
            total.update({k.decode(): int(v) for k, v in zip(flat[::2], flat[1::2], strict=True)})
    dump.usage[user] = dict(total)


async def _read_turn(store: RedisConversations, user: str, turn: str) -> Turn:
    stored = await store.response(user, turn)
    said = Said.of(decode_event(entry) for entry in await store.log(user, turn))
    outcome = decode_event(stored.result) if stored.result is not None else None
    assert outcome is None or isinstance(outcome, Finished)
    return Turn(stored, said, outcome)


# one question -----------------------------------------------------------------------------------------------------
def _of_question(question: Question, dump: Dump, deleted: bool) -> Iterator[str]:
    name = f"the question {question.text!r}"
    if len(question.turns) > 1:
        yield f"I2: {name} became {len(question.turns)} turns: {sorted(question.turns)}"
    for changed in question.changed:
        yield f"I4: {name}: {changed}"
    if deleted or question.deleted:
        return
    kept = dump.conversations.get(question.conversation)
    asked = [item for item in kept.items if _text(item) == question.text] if kept else []
    if len(asked) > 1:
        yield f"I2: {name} stands {len(asked)} times in its conversation"
    if not question.acknowledged:
        return
    if kept is None or not asked:
        yield f"I1: {name} was acknowledged and is not there"
        return
    if (turn := dump.turns.get(question.turn)) is None:
        yield f"I1: {name} was acknowledged, its turn {question.turn} is not there"
        return
    yield from _of_what_was_seen(question, turn)


def _of_what_was_seen(question: Question, turn: Turn) -> Iterator[str]:
    name = f"the question {question.text!r}"
    seen = "".join(_delta(question.events[number]) for number in sorted(question.events))
    if not turn.text.startswith(seen):
        yield f"I4: {name}: seen {seen[-60:]!r}, kept {turn.text[:200]!r}"
    if question.end is None:
        yield f"I1: {name}: nobody ever told its end; it is {turn.stored.status}"
        return
    if seen != turn.text:
        yield f"I4: {name}: its end was seen with {len(seen)} characters, {len(turn.text)} are kept"
    if ENDS.get(turn.stored.status) != question.end:
        yield f"I1: {name}: {question.end} was seen, {turn.stored.status} is kept"


# one conversation -------------------------------------------------------------------------------------------------
def _of_conversation(kept: Kept, dump: Dump, expected_answers: bool) -> Iterator[str]:
    name = f"conversation {kept.id}"
    if kept.running is not None:
        yield f"I7: {name} is still locked by {kept.running}"
    if kept.version != 1 + 2 * len(kept.turns):
        yield f"I3: {name} is at version {kept.version} after {len(kept.turns)} turns"
    roles = [item.body["role"] for item in kept.items]
    shared = len(kept.items) - sum(len(turn.stored.input) + len(turn.stored.output) for turn in kept.turns)
    expected = [item.id for turn in kept.turns for item in (*turn.stored.input, *turn.stored.output)]
    if [item.id for item in kept.items[shared:]] != expected:
        yield f"I3: {name}: its items are not its turns' items in their order ({roles})"
    history = [(item.body["role"], _text(item)) for item in kept.items[:shared]]
    for turn in kept.turns:
        history += [("user", _text(item)) for item in turn.stored.input]
        yield from _of_turn(turn, history if expected_answers else None)
        if turn.stored.output:
            history.append(("assistant", turn.text))


def _of_turn(turn: Turn, history: list[tuple[str, str]] | None) -> Iterator[str]:
    name, outcome, text = f"turn {turn.stored.id}", turn.outcome, turn.text
    if outcome is None or turn.stored.status == "in_progress":
        yield f"I7: {name} never ended"
        return
    if turn.said.text != text:
        yield f"I4: {name}: its log says {turn.said.text[-60:]!r}, its item {text[-60:]!r}"
    if outcome.status == "completed" and outcome.completion_tokens < turn.said.tokens:
        yield f"I9: {name}: {outcome.completion_tokens} tokens are charged, {turn.said.tokens} were said"
    if history is None:
        return
    whole = answer([{"role": "system", "content": SYSTEM}, *({"role": r, "content": t} for r, t in history)])
    if not whole.startswith(text) or (outcome.status == "completed" and text != whole):
        yield f"I4: {name} ({outcome.status}): kept {text!r}, the worker's answer is {whole!r}"


# all together -----------------------------------------------------------------------------------------------------
def _generations(desk: Desk) -> Iterator[str]:
    by_turn: dict[str, list[Generation]] = defaultdict(list)
    for generation in desk.generations():
        by_turn[generation.turn].append(generation)
    for turn, made in by_turn.items():
        made.sort(key=lambda one: one.began)
        for first, second in itertools.pairwise(made):
            ended = first.ended or second.began  # a killed worker says nothing more
            if ended - second.began > OVERLAP_SECONDS and not _stood_still(desk, first.began, ended):
                yield f"I5: turn {turn} was generated twice at once for {ended - second.began:.1f} s"


def _stood_still(desk: Desk, begin: float, end: float) -> bool:
    """Whoever is frozen, or behind a wire that passes nothing, neither says nor hears anything."""
    faults = [fault for fault in desk.history.faults if fault.kind.endswith(("frozen", "stalled"))]
    return any(fault.at <= end and (fault.until or end) >= begin for fault in faults)


def _of_call(call: Call, desk: Desk) -> Iterator[str]:
    name = f"{call.what} of {call.person}"
    if not call.typed:
        yield f"I8: {name} was answered {call.status} without a code and a sentence"
    if call.status in (429, 503) and call.retry_after is None:
        yield f"I8: {name} was refused with {call.status} and no Retry-After"
    if call.status is not None and call.status >= 400 and call.request_id is None:
        yield f"I8: {name} was refused with {call.status} and no request id"
    if call.status == 500:
        yield f"I8: {name} met a mistake of ours (500, {call.code})"
    silent = max(call.silence, call.seconds if call.what.startswith("GET /v1/conv") else 0.0)
    if silent > HEARTBEAT_SECONDS and not _stood_still(desk, call.at - call.seconds, call.at):
        yield f"I8: {name} heard nothing for {silent:.1f} s"


def _usage(desk: Desk, dump: Dump) -> Iterator[str]:
    """Charged is what the ended turns used; what was deleted had been charged too and is not known here any more."""
    of_user: dict[str, list[Finished]] = defaultdict(list)
    for turn in dump.turns.values():
        if turn.outcome is not None:
            of_user[turn.stored.owner].append(turn.outcome)
    deleters = {q.user for q in desk.history.questions if q.conversation in desk.history.deleted}
    for user, outcomes in of_user.items():
        charged = dump.usage.get(user, {})
        used = {
            "requests": len(outcomes),
            "completion": sum(outcome.completion_tokens for outcome in outcomes),
            "prompt": sum(outcome.prompt_tokens for outcome in outcomes),
        }
        for what, count in used.items():
            if charged.get(what, 0) < count or (user not in deleters and charged.get(what, 0) != count):
                yield f"I9: {user} is charged {charged.get(what, 0)} {what}, their turns have {count}"


def _text(item: Item) -> str:
    content = item.body.get("content", "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _delta(event: bytes) -> str:
    if not event.startswith(b"event: response.output_text.delta"):
        return ""
    delta: str = msgspec.json.decode(event.partition(b"data: ")[2])["delta"]
    return delta
