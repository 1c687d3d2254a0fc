"""Runs turns to their end whoever listens: begin, log, finish; leases, adopting, cancelling, draining.

Nothing is shown that is not logged: one committer collects what all turns produced since its last write and writes it
in one round trip, so a token costs less the more of them there are. A turn whose gateway died is adopted by any other
one and goes on from its log. Knows no HTTP and no API.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import anyio
import msgspec

from gateway.admission import Admission, Place, Ticket
from gateway.context import Prompt, TurnRequest, build_prompt, check_outputs
from gateway.conversations import (
    Append,
    Attached,
    Begin,
    Begun,
    Conversations,
    Finish,
    Lease,
    Standing,
    StoredResponse,
)
from gateway.engine import Engine
from gateway.errors import Draining, Overloaded, Refusal, Unavailable
from gateway.events import (
    Asked,
    Compacted,
    Delta,
    Finished,
    Progress,
    Rest,
    Thought,
    TurnEvent,
    decode_event,
    encode_event,
)
from gateway.live import LiveTurn
from gateway.turn import run_turn, shortened

LEASE_SECONDS = 2.0
RENEW_SECONDS = 0.5
GIVE_BACK_SECONDS = 5.0  # for undoing a begin, or ending at a drain: then it is left to whoever adopts it
RETRY_SECONDS = 0.2
GATHER_SECONDS = 0.002  # between two writes while several turns speak: a tenth of the writes for an unseen delay
POLL_SECONDS = 0.1
IDLE_SECONDS = 10.0
CANCEL_SECONDS = 10.0  # a turn elsewhere that has not ended by then has no living gateway yet
BEHIND_EVENTS = 4096  # said and not logged yet: with more, the engine is not listened to until Redis is back
MOST_ADOPTIONS = 20  # without a word in between, and with an engine there: the turn may be what ends the gateways

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


class Runner:
    """All turns of this process."""

    def __init__(
        self,
        store: Conversations,
        admission: Admission,
        engine: Engine,
        observer: Observer,
        *,
        holder: str,
        salt_of: Callable[[str], str],
        seal: Callable[[str, bytes], str],
    ) -> None:
        self._store = store
        self._admission = admission
        self._engine = engine
        self._observer = observer
        self.holder = holder
        self._salt_of = salt_of  # a person's cache salt
        self._seal = seal  # for a person, who cannot read it
        self._live: dict[Lease, LiveTurn] = {}
        self._beginning: set[Lease] = set()  # written down, not running yet: ours all the same
        self._dirty: dict[LiveTurn, None] = {}
        self._work = asyncio.Event()
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loops = (self._commit, self._keep_leases, self._recover, self._tick)
        self._tasks = [asyncio.create_task(_forever(loop)) for loop in loops]

    async def close(self, drain_seconds: float) -> None:
        """Let running turns go on for a while; then what is stored is handed over, the rest ends. Stop."""
        self._draining = True
        running = [live.task for live in self._live.values() if live.task]
        if running:
            await asyncio.wait(running, timeout=drain_seconds)
            await self._hand_over()
            await asyncio.wait(running, timeout=GIVE_BACK_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hand_over(self) -> None:
        """What was said is logged already, or will be said again by whoever goes on."""
        stored = {lease: live for lease, live in self._live.items() if live.begun is not None and not live.ending}
        for live in list(self._live.values()):
            if live in stored.values():
                live.let_go()
            else:
                live.stop()
        with suppress(Unavailable):
            await self._store.hand_over(list(stored), self.holder)

    @property
    def running(self) -> int:
        return len(self._live)

    # a turn -------------------------------------------------------------------------------------------------------
    async def begin(self, order: Order) -> LiveTurn | Attached:
        """Steps 3 to 5 of a turn: write it down, build its prompt, take a place; then it runs by itself.

        It is written first: that locks the conversation, so the history that is read next is the one that will be
        answered. Whatever refuses it afterwards takes it back as if never posted. An overloaded machine refuses
        what is no repeat before that.
        """
        if self._draining:
            raise Draining("The gateway is stopping; ask again in a moment.")
        request, begun, shown, came = order.request, None, [], time.monotonic()
        await self._refuse_if_overloaded(order)
        lease = Lease(request.person, request.id)
        if order.begin is not None:
            asked = _asked(request)
            answer = await self._store.begin(
                replace(order.begin, entry=encode_event(asked), lease_seconds=LEASE_SECONDS)
            )
            if isinstance(answer, Attached):
                return answer
            begun, shown = answer, [asked]
            request = replace(request, thread=begun.shelf)
            self._beginning.add(lease)
        try:
            if order.begin is not None and (order.begin.conversation or order.begin.previous):
                history = await self._store.history(request.person, None, request.id)
                request = replace(request, items=[item.body for item in history])
            if order.begin is not None:
                check_outputs(request.items, len(request.items) - len(order.begin.input))
            prompt = await build_prompt(request, self._engine)
            most = request.sampling.max_tokens
            ticket = Ticket(request.person, prompt.tokens, most, flex=request.flex, key=request.key)
            place = await self._admission.enqueue(ticket)
        except BaseException:
            if begun is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(GIVE_BACK_SECONDS), suppress(Unavailable):
                    await self._store.undo(request.person, request.id, begun.fence)
            raise
        finally:
            self._beginning.discard(lease)
        live = LiveTurn(request.person, request.id, begun, shown, background=order.background)
        live.balance, live.began = place.balance, came
        await self._set_going(live, request, prompt, place)
        return live

    async def _refuse_if_overloaded(self, order: Order) -> None:
        """Raises Overloaded, but not for the repeat of a post whose answer has begun."""
        try:
            self._admission.check(flex=order.request.flex)
        except Overloaded:
            begin = order.begin
            if begin is None or not (begin.attach and begin.key and await self._store.has_come(begin.owner, begin.key)):
                raise

    async def _set_going(self, live: LiveTurn, request: TurnRequest, prompt: Prompt | None, place: Place) -> None:
        self._live[Lease(live.owner, live.id)] = live
        live.task = asyncio.create_task(self._run(live, request, prompt, place))
        await asyncio.sleep(0)  # a task that is cancelled before its first step would release and store nothing

    async def _run(self, live: LiveTurn, request: TurnRequest, prompt: Prompt | None, place: Place) -> None:
        outcome = Finished("failed", code="internal_error", message="The answer broke off; please report this.")
        try:
            seal = partial(self._seal, request.person)
            turn = run_turn(request, prompt, place, self._engine, live.said, seal=seal, began=live.began)
            async with aclosing(turn) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        outcome = event
                    else:
                        self._add(live, event)
                        if len(live.unlogged) > BEHIND_EVENTS:
                            await live.flushed()
        except asyncio.CancelledError:
            outcome = Finished("cancelled")
            if self._draining:
                outcome = Finished("failed", code="draining", message="The gateway was stopped; what was said is kept.")
        except Refusal as refusal:
            live.refusal = refusal
            outcome = Finished("failed", code=refusal.code, message=refusal.message)
        finally:
            live.ending = True
            if not outcome.prompt_tokens and (counts := live.said.counts())["completion_tokens"]:
                outcome = msgspec.structs.replace(outcome, **counts)
            with anyio.CancelScope(shield=True):
                await self._finish(live, msgspec.structs.replace(outcome, completed_at=int(time.time())))

    def _add(self, live: LiveTurn, event: TurnEvent) -> None:
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
                if live.gone or not await self._store_finish(live, _finish_of(live, outcome)):
                    live.let_go()
                    return
        finally:
            self._live.pop(Lease(live.owner, live.id), None)
        live.outcome = outcome
        live.show([outcome])
        self._observer.turn_finished(outcome)

    async def _store_finish(self, live: LiveTurn, finish: Finish) -> bool:
        """False when the turn is somebody else's now."""
        while not live.gone:
            try:
                return await self._store.finish(finish) is not None
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
        return False

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
            for (live, events), standing in zip(batches.items(), accepted, strict=True):
                if standing is Standing.LOST:
                    live.let_go()
                    continue
                live.logged(events)
                if standing is Standing.STOP:
                    live.stop()
                if live.unlogged:  # said while an earlier try of this write was under way
                    self._dirty[live] = None
                    self._work.set()
            if len(batches) > 1:
                await asyncio.sleep(GATHER_SECONDS)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            held = {lease: live for lease, live in self._live.items() if live.begun is not None and not live.gone}
            leases = [*held, *self._beginning]
            with suppress(Unavailable):
                standings = await self._store.renew(leases, self.holder, LEASE_SECONDS)
                for lease, standing in zip(leases, standings, strict=True):
                    if (live := held.get(lease)) is None or standing is Standing.OURS or live.ending:
                        continue
                    live.stop() if standing is Standing.STOP else live.let_go()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            for live in self._live.values():
                live.tick()

    # turns of a gateway that died ---------------------------------------------------------------------------------
    async def _recover(self) -> None:
        while True:
            try:
                for lease in await self._store.expired():
                    if not self._draining and lease not in self._beginning and lease not in self._live:
                        await self._adopt(lease)
            except Unavailable:
                await asyncio.sleep(LEASE_SECONDS)  # once it is back, those who live renew before anybody adopts
            await asyncio.sleep(RENEW_SECONDS)

    async def _adopt(self, lease: Lease) -> None:
        """Go on with a turn from its log, as if its gateway had not died."""
        fence = await self._store.adopt(lease, self.holder, LEASE_SECONDS)
        if fence is None:
            return
        self._beginning.add(lease)
        try:
            stored = await self._store.response(lease.owner, lease.turn)
            said = [decode_event(entry) for entry in await self._store.log(lease.owner, lease.turn)]
            begun = Begun(fence, stored.input, stored.shelf, stored.first_output)
            live = LiveTurn(lease.owner, lease.turn, begun, said, background=True)
            asked = said[0] if said else None
            if not isinstance(asked, Asked) or not live.said.can_go_on or _tries(said) >= MOST_ADOPTIONS:
                await self._end_orphan(live)
                return
            await self._go_on(live, asked)
        finally:
            self._beginning.discard(lease)
        log.warning("goes on with the turn %s of a gateway that died, after %d tokens", live.id, live.said.tokens)

    async def _go_on(self, live: LiveTurn, asked: Asked) -> None:
        request = TurnRequest(
            id=live.id,
            person=live.owner,
            cache_salt=self._salt_of(live.owner),
            model=asked.model,
            system=asked.system,
            items=[item.body for item in await self._store.history(live.owner, None, live.id)],
            window=asked.window,
            sampling=asked.sampling,
            form=asked.form,
            compact_at=asked.compact_at,
            resumes=True,
            flex=asked.flex,
            thread=live.begun.shelf if live.begun else "",
            key=asked.key,
        )
        prompt = None
        try:
            if not live.said.prompt_token_ids:
                prompt = await build_prompt(shortened(request, live.said), self._engine)
            tokens = prompt.tokens if prompt else len(live.said.prompt_token_ids)
            ticket = Ticket(
                live.owner,
                tokens,
                asked.sampling.max_tokens,
                promised=bool(live.said.tokens),
                flex=asked.flex,
                key=asked.key,
                accepted=True,
            )
            place = await self._admission.enqueue(ticket)
        except Refusal as refusal:
            await self._end(live, refusal.code, refusal.message)
            return
        await self._set_going(live, request, prompt, place)

    async def _end_orphan(self, live: LiveTurn) -> None:
        message = "The service was restarted while this answer was being written; what was said is kept."
        await self._end(live, "gateway_restarted", message)
        log.warning("ended the turn %s of a gateway that died, after %d tokens", live.id, live.said.tokens)

    async def _end(self, live: LiveTurn, code: str, message: str) -> None:
        outcome = Finished("failed", code=code, message=message, completed_at=int(time.time()))
        await self._store.finish(_finish_of(live, msgspec.structs.replace(outcome, **live.said.counts())))

    # who comes later ------------------------------------------------------------------------------------------------
    def live(self, owner: str, turn: str) -> LiveTurn | None:
        return self._live.get(Lease(owner, turn))

    async def follow(self, owner: str, turn: str) -> AsyncGenerator[Sequence[TurnEvent], None]:
        """The events of any turn of `owner`, from the first on: running here, running elsewhere, or finished.

        Raises NotFound. The log of a finished turn is kept for a while only; after that its end alone remains.
        """
        live = self.live(owner, turn)
        steps = self._tail(owner, turn, 0) if live is None else self.show(live)
        async with aclosing(steps):
            async for events in steps:
                yield events

    async def show(self, live: LiveTurn) -> AsyncGenerator[Sequence[TurnEvent], None]:
        """The events of a turn of this process; when it is not ours any more, of whoever has it then."""
        async with aclosing(live.follow()) as steps:
            async for events in steps:
                yield events
        if live.gone and not self._draining:
            async with aclosing(self._tail(live.owner, live.id, len(live.shown))) as steps:
                async for events in steps:
                    yield events

    async def _tail(self, owner: str, turn: str, seen: int) -> AsyncGenerator[Sequence[TurnEvent], None]:
        """What another process logs of a turn, after its first `seen` entries."""
        heard = time.monotonic()
        while not self._draining:
            entries, result = await self._store.tail(owner, turn, seen)
            if entries:
                seen, heard = seen + len(entries), time.monotonic()
                yield [decode_event(entry) for entry in entries]
            if result is not None:
                yield [decode_event(result)]
                return
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() - heard >= IDLE_SECONDS:
                heard = time.monotonic()
                yield ()

    async def cancel(self, owner: str, turn: str) -> StoredResponse:
        """End a running turn; what was said is kept. Repeating it, or cancelling what has ended, changes nothing."""
        live = self.live(owner, turn)
        if live is not None:
            live.stop()
            await live.ended()
        response = await self._store.response(owner, turn)
        if response.result is None:
            await self._store.ask_to_stop(owner, turn)
        with anyio.move_on_after(CANCEL_SECONDS):
            while response.result is None:
                await asyncio.sleep(POLL_SECONDS)
                response = await self._store.response(owner, turn)
        return response

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


def _tries(said: Sequence[TurnEvent]) -> int:
    """How often gateways went on with this turn since it last said something."""
    words = Compacted | Thought | Delta | Rest
    since = itertools.takewhile(lambda event: not isinstance(event, words), reversed(said))
    return sum(isinstance(event, Progress) and event.state == "resuming" for event in since)


def _asked(request: TurnRequest) -> Asked:
    return Asked(
        request.model,
        request.system,
        request.window,
        request.sampling,
        request.form,
        compact_at=request.compact_at,
        flex=request.flex,
        key=request.key,
    )


def _append(live: LiveTurn, events: Sequence[TurnEvent]) -> Append:
    fence = live.begun.fence if live.begun else 0
    return Append(live.owner, live.id, fence, len(live.shown) + 1, [encode_event(event) for event in events])


def _finish_of(live: LiveTurn, outcome: Finished) -> Finish:
    return Finish(
        owner=live.owner,
        turn=live.id,
        fence=live.begun.fence if live.begun else 0,
        status=outcome.status,
        output=live.said.output(outcome.status == "completed"),
        result=encode_event(outcome),
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
    )
