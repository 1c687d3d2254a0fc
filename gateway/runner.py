"""Runs a turn to its end whoever listens: begin, log, show, finish; leases, cancelling, draining.

Nothing is shown that is not logged: one committer collects what all turns produced since its last write and writes it
in one round trip, so a token costs less the more of them there are. Knows no HTTP and no API.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Protocol

import anyio
import msgspec

from gateway.admission import Admission, Place, Ticket
from gateway.conversations import Append, Attached, Begin, Begun, Conversations, Finish, Lease, StoredResponse
from gateway.engine import Engine
from gateway.errors import Draining, Refusal, Unavailable
from gateway.turn import (
    Delta,
    Finished,
    Prompt,
    Started,
    TurnEvent,
    TurnRequest,
    answer_item,
    build_prompt,
    decode_event,
    encode_event,
    run_turn,
)

LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.0
RETRY_SECONDS = 0.2
GATHER_SECONDS = 0.002  # between two writes while several turns speak: a tenth of the writes for an unseen delay
POLL_SECONDS = 0.5
IDLE_SECONDS = 10.0

log = logging.getLogger("deskmate.runner")


@dataclass(frozen=True, slots=True)
class Order:
    """A turn to be run. `begin` None: nothing of it is stored (`request.items` is then the whole context)."""

    request: TurnRequest
    begin: Begin | None
    background: bool


class Observer(Protocol):
    """Who counts turns; implemented by `metrics.py`."""

    def turn_finished(self, outcome: Finished) -> None: ...


class LiveTurn:
    """A turn that runs in this process: what may be shown of it, and who follows it."""

    def __init__(self, order: Order, begun: Begun | None) -> None:
        self.owner = order.request.person
        self.id = order.request.id
        self.background = order.background
        self.begun = begun
        self.shown: list[TurnEvent] = []
        self.unlogged: list[TurnEvent] = []
        self.text: list[str] = []
        self.prompt_tokens = 0
        self.tokens = 0
        self.outcome: Finished | None = None
        self.task: asyncio.Task[None] | None = None
        self.ending = False  # its answer is being stored; nothing may stop that
        self._listeners = 0
        self._logging = 0
        self._wake: list[asyncio.Future[bool]] = []

    def show(self, events: Sequence[TurnEvent]) -> None:
        self.shown.extend(events)
        self._news()

    def take_unlogged(self) -> list[TurnEvent]:
        """What is to be logged next, tokens that came together as one; `logged` says that it was.

        Until then it is the same at every call: when only the reply was lost, the log has these very entries.
        """
        self._logging = self._logging or len(self.unlogged)
        return _joined(self.unlogged[: self._logging])

    def logged(self, events: Sequence[TurnEvent], ours: bool) -> None:
        del self.unlogged[: self._logging]
        self._logging = 0
        if ours:
            self.show(events)
        else:  # somebody else has the turn now
            self._news()
            self.stop()

    async def flushed(self) -> None:
        while self.unlogged:
            await self._changed()

    def stop(self) -> None:
        """End the turn; what was said is kept. Does nothing when it is ending already."""
        if not self.ending and self.task is not None:
            self.ending = True
            self.task.cancel()

    def stop_if_alone(self) -> None:
        if not self._listeners and not self.background:
            self.stop()

    async def follow(self) -> AsyncGenerator[Sequence[TurnEvent], None]:
        """All events: at each step everything that is new, to the end; an empty step says that nothing came for a
        while. A turn that does not run in the background ends when its last follower leaves."""
        after = 0
        self._listeners += 1
        try:
            while True:
                if new := self.shown[after:]:
                    after += len(new)
                    yield new
                elif self.outcome is not None:
                    return
                elif not await self._changed():
                    yield ()
        finally:
            self._listeners -= 1
            self.stop_if_alone()

    async def ended(self) -> Finished:
        """Wait for the end without being a follower."""
        while self.outcome is None:
            await self._changed()
        return self.outcome

    def tick(self) -> None:
        """Let followers say that they are still there. One clock for all: a timer per token would cost more."""
        self._news(False)

    def _news(self, any: bool = True) -> None:
        waiting, self._wake = self._wake, []
        for future in waiting:
            if not future.done():
                future.set_result(any)

    async def _changed(self) -> bool:
        """Wait for news; False when only the clock has ticked."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._wake.append(future)
        return await future


def _joined(events: Sequence[TurnEvent]) -> list[TurnEvent]:
    """The same events with neighbouring deltas made one."""
    joined: list[TurnEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Delta) and isinstance(last, Delta):
            joined[-1] = Delta(last.text + event.text, last.token_ids + event.token_ids)
        else:
            joined.append(event)
    return joined


class Runner:
    """All turns of this process."""

    def __init__(
        self, store: Conversations, admission: Admission, engine: Engine, observer: Observer, holder: str
    ) -> None:
        self._store = store
        self._admission = admission
        self._engine = engine
        self._observer = observer
        self.holder = holder
        self._live: dict[tuple[str, str], LiveTurn] = {}
        self._beginning: set[Lease] = set()  # written down, not running yet: ours all the same
        self._dirty: dict[LiveTurn, None] = {}
        self._work = asyncio.Event()
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loops = (self._commit, self._keep_leases, self._recover, self._tick)
        self._tasks = [asyncio.create_task(_forever(loop)) for loop in loops]

    async def close(self, drain_seconds: float) -> None:
        """Let running turns go on for a while, then end them with what they have; stop."""
        self._draining = True
        running = [live.task for live in self._live.values() if live.task]
        if running:
            await asyncio.wait(running, timeout=drain_seconds)
            for live in list(self._live.values()):
                live.stop()
            await asyncio.wait(running, timeout=LEASE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def running(self) -> int:
        return len(self._live)

    # a turn -------------------------------------------------------------------------------------------------------
    async def begin(self, order: Order) -> LiveTurn | Attached:
        """Steps 3 to 5 of a turn: write it down, build its prompt, take a place; then it runs by itself.

        It is written first: that locks the conversation, so the history that is read next is the one that will be
        answered. Whatever refuses it afterwards takes it back as if never posted.
        """
        if self._draining:
            raise Draining("The gateway is stopping; ask again in a moment.")
        request, begun = order.request, None
        lease = Lease(request.person, request.id)
        if order.begin is not None:
            answer = await self._store.begin(order.begin)
            if isinstance(answer, Attached):
                return answer
            begun = answer
            self._beginning.add(lease)
        try:
            if order.begin is not None and (order.begin.conversation or order.begin.previous):
                history = await self._store.history(request.person, None, request.id)
                request = replace(request, items=[item.body for item in history])
            prompt = await build_prompt(request, self._engine)
            place = await self._admission.enqueue(Ticket(request.person, prompt.tokens, request.sampling.max_tokens))
        except BaseException:
            if begun is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(LEASE_SECONDS), suppress(Unavailable):
                    await self._store.undo(request.person, request.id, begun.fence)
            raise
        finally:
            self._beginning.discard(lease)
        live = LiveTurn(replace(order, request=request), begun)
        self._live[live.owner, live.id] = live
        live.task = asyncio.create_task(self._run(live, request, prompt, place))
        await asyncio.sleep(0)  # a task that is cancelled before its first step would release and store nothing
        return live

    async def _run(self, live: LiveTurn, request: TurnRequest, prompt: Prompt, place: Place) -> None:
        outcome = Finished("failed", code="internal_error", message="The answer broke off; please report this.")
        try:
            async with aclosing(run_turn(request, prompt, place, self._engine)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        outcome = event
                    else:
                        self._add(live, event)
        except asyncio.CancelledError:
            outcome = Finished("cancelled")
            if self._draining:
                outcome = Finished("failed", code="draining", message="The gateway was stopped; what was said is kept.")
        except Refusal as refusal:
            outcome = Finished("failed", code=refusal.code, message=refusal.message)
        finally:
            live.ending = True
            if not outcome.prompt_tokens and live.tokens:
                counts = {"prompt_tokens": live.prompt_tokens, "completion_tokens": live.tokens}
                outcome = msgspec.structs.replace(outcome, **counts)
            with anyio.CancelScope(shield=True):
                await self._finish(live, msgspec.structs.replace(outcome, completed_at=int(time.time())))

    def _add(self, live: LiveTurn, event: TurnEvent) -> None:
        if isinstance(event, Delta):
            live.text.append(event.text)
            live.tokens += len(event.token_ids) or 1
        elif isinstance(event, Started):
            live.prompt_tokens = len(event.prompt_token_ids)
        if live.begun is None:
            live.show([event])
            return
        live.unlogged.append(event)
        self._dirty[live] = None
        self._work.set()

    async def _finish(self, live: LiveTurn, outcome: Finished) -> None:
        """Store the answer, then show that it has ended: an end that was seen is kept."""
        try:
            if live.begun is not None:
                await live.flushed()
                text = "".join(live.text)
                complete = outcome.status == "completed"
                output = [answer_item(text, complete)] if text or complete else []
                await self._store_finish(_finish_of(live.owner, live.id, live.begun.fence, output, outcome))
        finally:
            live.outcome = outcome
            self._live.pop((live.owner, live.id), None)
            live.show([outcome])
            self._observer.turn_finished(outcome)

    async def _store_finish(self, finish: Finish) -> None:
        while True:
            try:
                await self._store.finish(finish)
                return
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)

    # the log ------------------------------------------------------------------------------------------------------
    async def _commit(self) -> None:
        """The committer: while one write is under way, the next one's entries collect."""
        while True:
            await self._work.wait()
            self._work.clear()
            dirty, self._dirty = self._dirty, {}
            batches = {live: live.take_unlogged() for live in dirty}
            try:
                accepted = await self._store.append([_append(live, events) for live, events in batches.items()])
            except BaseException as error:
                self._dirty = dirty | self._dirty
                self._work.set()
                if not isinstance(error, Unavailable):
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for (live, events), ours in zip(batches.items(), accepted, strict=True):
                live.logged(events, ours)
                if live.unlogged:  # said while an earlier try of this write was under way
                    self._dirty[live] = None
                    self._work.set()
            if len(batches) > 1:
                await asyncio.sleep(GATHER_SECONDS)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            leases = [Lease(live.owner, live.id) for live in self._live.values() if live.begun is not None]
            leases += self._beginning
            if leases:
                with suppress(Unavailable):
                    await self._store.renew(leases, self.holder, LEASE_SECONDS)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            for live in self._live.values():
                live.tick()

    async def _recover(self) -> None:
        """End the turns of a gateway that died, with what they had said."""
        while True:
            with suppress(Unavailable):
                for lease in await self._store.expired():
                    if lease not in self._beginning and (lease.owner, lease.turn) not in self._live:
                        await self._end_orphan(lease)
            await asyncio.sleep(RENEW_SECONDS)

    async def _end_orphan(self, lease: Lease) -> None:
        fence = await self._store.adopt(lease, self.holder, LEASE_SECONDS)
        if fence is None:
            return
        said = [decode_event(entry) for entry in await self._store.log(lease.owner, lease.turn)]
        deltas = [event for event in said if isinstance(event, Delta)]
        text = "".join(delta.text for delta in deltas)
        outcome = Finished(
            "failed",
            prompt_tokens=sum(len(event.prompt_token_ids) for event in said if isinstance(event, Started)),
            completion_tokens=sum(len(delta.token_ids) or 1 for delta in deltas),
            code="gateway_restarted",
            message="The service was restarted while this answer was being written; what was said is kept.",
            completed_at=int(time.time()),
        )
        output = [answer_item(text, complete=False)] if text else []
        await self._store.finish(_finish_of(lease.owner, lease.turn, fence, output, outcome))
        log.warning("ended the turn %s of a gateway that died, with %d characters", lease.turn, len(text))

    # who comes later ------------------------------------------------------------------------------------------------
    def live(self, owner: str, turn: str) -> LiveTurn | None:
        return self._live.get((owner, turn))

    async def follow(self, owner: str, turn: str) -> AsyncGenerator[Sequence[TurnEvent], None]:
        """The events of any turn of `owner`, from the first on: running here, running elsewhere, or finished.

        Raises NotFound. The log of a finished turn is kept for a while only; after that its end alone remains.
        """
        live = self.live(owner, turn)
        if live is not None:
            async with aclosing(live.follow()) as steps:
                async for events in steps:
                    yield events
            return
        seen, quiet = 0, 0.0
        while True:
            response = await self._store.response(owner, turn)
            entries = await self._store.log(owner, turn, after=seen)
            if entries:
                seen, quiet = seen + len(entries), 0.0
                yield [decode_event(entry) for entry in entries]
            if response.result is not None:
                yield [decode_event(response.result)]
                return
            await asyncio.sleep(POLL_SECONDS)
            quiet += POLL_SECONDS
            if quiet >= IDLE_SECONDS:
                quiet = 0.0
                yield ()

    async def cancel(self, owner: str, turn: str) -> StoredResponse:
        """End a running turn; what was said is kept. Repeating it, or cancelling what has ended, changes nothing."""
        live = self.live(owner, turn)
        if live is not None:
            live.stop()
            await live.ended()
        return await self._store.response(owner, turn)

    def stop_all(self, owner: str) -> None:
        """End everything of a person, e.g. one that was disabled."""
        for live in [live for live in self._live.values() if live.owner == owner]:
            live.stop()


async def _forever(loop: Callable[[], Awaitable[None]]) -> None:
    """The outermost edge of a loop of ours: a bug in one round is reported, and the loop goes on."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("a background loop broke off and begins again")
            await asyncio.sleep(RENEW_SECONDS)


def _append(live: LiveTurn, events: Sequence[TurnEvent]) -> Append:
    fence = live.begun.fence if live.begun else 0
    return Append(live.owner, live.id, fence, len(live.shown) + 1, [encode_event(event) for event in events])


def _finish_of(owner: str, turn: str, fence: int, output: Sequence[dict[str, object]], outcome: Finished) -> Finish:
    return Finish(
        owner=owner,
        turn=turn,
        fence=fence,
        status=outcome.status,
        output=output,
        result=encode_event(outcome),
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
    )
