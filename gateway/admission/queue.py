"""A gateway's part of the shared line: who of its people waits, who has a seat, and what Redis must be told of them.

Who is next is decided in Redis (`line.py`); here is what a process must keep: an event for each place, a lease, and
what could not be told yet because Redis was away. Knows nothing of what a request is.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress

from gateway.admission import LineState, Ticket, Waiting
from gateway.admission.line import Capacity, How, Line, Lost
from gateway.errors import Busy, QuotaSpent, Unavailable
from gateway.overload import Ladder
from gateway.quotas import Balance

LEASE_SECONDS = 2.0
STEP_SECONDS = 0.25  # between two signs of life, and two reports of what was produced
LISTEN_SECONDS = 0.03  # while somebody waits here for a seat that another gateway may give back
UPDATE_SECONDS = 1.0  # between two looks at the places in line
FIRST_LOOK_SECONDS = 0.1  # for those that came just now, together
RETRY_SECONDS = 0.2

log = logging.getLogger("deskmate.queue")


class FairQueue:
    """An `Admission`. Start it, call `changed` whenever the capacity may have, close it.

    `ladder`: refuses what is too much for the machine; None: nothing is.
    """

    def __init__(self, line: Line, capacity: Callable[[], Capacity], ladder: Ladder | None = None) -> None:
        self._line = line
        self._capacity = capacity
        self._ladder = ladder
        self._waiting: dict[str, _Place] = {}
        self._seated: dict[str, _Place] = {}
        self._left: dict[str, tuple[int, int | None]] = {}  # not told yet
        self._heard: set[str] = set()
        self._registered = False
        self._alone = True
        self._look_at = 0.0
        self._wake = asyncio.Event()
        self._entering = asyncio.Lock()  # registering anew, with all that is held
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._forever())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        return len(self._seated)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def changed(self) -> None:
        self._wake.set()

    async def look(self) -> LineState:
        """The line over all gateways. Raises StorageDown."""
        return await self._line.look(self._capacity())

    # a place ----------------------------------------------------------------------------------------------------------
    def check(self, *, flex: bool) -> None:
        if self._ladder is not None:
            self._ladder.check(flex=flex)

    async def enqueue(self, ticket: Ticket) -> "_Place":
        if not (ticket.promised or ticket.accepted):
            self.check(flex=ticket.flex)
        place = _Place(self, secrets.token_hex(8), ticket)
        how = How.PROMISED if ticket.promised else How.NEW
        try:
            while True:
                if not self._registered:
                    await self._register()
                if not place.seated:
                    self._waiting[place.id] = place  # the reply to another step may tell of its seat before this one
                try:
                    seats, place.balance = await self._line.join(self._capacity(), place.id, ticket, how)
                    break
                except Lost:
                    self._registered = False
                    self._waiting.pop(place.id, None)
        except BaseException as fault:
            self._waiting.pop(place.id, None)
            self._seated.pop(place.id, None)
            if not isinstance(fault, Busy | QuotaSpent):
                self._left[place.id] = (0, 0)  # whether it came into the line is not known
                self._wake.set()
            raise
        self._give(seats)
        if not place.seated:
            self._look_at = min(self._look_at, time.monotonic() + FIRST_LOOK_SECONDS)
            self._wake.set()
        return place

    async def leave(self, place: "_Place", produced: int, prompt: int | None) -> None:
        self._waiting.pop(place.id, None)
        self._seated.pop(place.id, None)
        self._heard.discard(place.id)
        self._left[place.id] = (produced, prompt)
        with suppress(Unavailable):  # then it is told again later
            await self._tell([place.id])
        self._wake.set()

    async def _tell(self, gone: Sequence[str]) -> None:
        if gone:
            self._give(await self._line.leave(self._capacity(), {id: self._left[id] for id in gone}))
            for id in gone:
                self._left.pop(id, None)

    def _give(self, seats: Collection[str]) -> None:
        for id in seats:
            self._heard.add(id)
            if (place := self._waiting.pop(id, None)) is not None:
                self._seated[id] = place
                place.take_seat()
            elif id not in self._seated:
                self._left.setdefault(id, (0, 0))  # whoever wanted it has gone

    # the lease --------------------------------------------------------------------------------------------------------
    async def _forever(self) -> None:
        while True:
            try:
                await self._step()
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # the outermost edge of a loop of ours
                log.exception("the queue's loop broke off and begins again")
                await asyncio.sleep(RETRY_SECONDS)
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()

    def _pause(self) -> float:
        if not self._waiting:
            return STEP_SECONDS
        until_look = max(0.0, self._look_at - time.monotonic())
        return min(STEP_SECONDS if self._alone else LISTEN_SECONDS, until_look)

    async def _step(self) -> None:
        if not self._registered:
            await self._register()
        await self._tell(list(self._left))
        heard = list(self._heard)
        produced = {id: place.produced for id, place in self._seated.items()}
        try:
            others, seats = await self._line.step(self._capacity(), LEASE_SECONDS, heard=heard, produced=produced)
        except Lost:
            self._registered = False
            return
        self._alone = not others
        self._heard.difference_update(heard)
        self._give(seats)
        if self._waiting and time.monotonic() >= self._look_at:
            await self._look()

    async def _register(self) -> None:
        """Come in as a new gateway, and bring back what is held: what is in flight at once, the rest in its order."""
        async with self._entering:
            if self._registered:
                return
            capacity = self._capacity()
            await self._line.step(capacity, LEASE_SECONDS, register=True)
            for places, how in ((self._seated, How.SEATED), (self._waiting, How.PROMISED)):
                for place in list(places.values()):
                    with suppress(Lost):  # it took longer than the lease: the next step begins again
                        seats, _ = await self._line.join(capacity, place.id, place.ticket, how)
                        self._give(seats)
            self._registered = True

    async def _look(self) -> None:
        self._look_at = time.monotonic() + UPDATE_SECONDS
        for id, waiting in (await self._line.places(self._capacity())).items():
            if (place := self._waiting.get(id)) is not None:
                place.now_at(waiting)


class _Place:
    """`produced` grows with the answer: it is what a death in the middle would charge."""

    def __init__(self, queue: FairQueue, id: str, ticket: Ticket) -> None:
        self.id = id
        self.ticket = ticket
        self.produced = 0
        self.seated = False
        self.balance = Balance()
        self._queue = queue
        self._at: Waiting | None = None
        self._moved = asyncio.Event()
        self._released = False

    def take_seat(self) -> None:
        self.seated = True
        self._moved.set()

    def now_at(self, waiting: Waiting) -> None:
        self._at = waiting
        self._moved.set()

    async def wait(self) -> AsyncIterator[Waiting]:
        while True:
            if not self.seated:
                await self._moved.wait()
                self._moved.clear()
            if self.seated:
                break
            if self._at is not None:
                yield self._at
        yield Waiting(0, 0.0)

    async def release(self, tokens: int = 0, prompt: int | None = None) -> None:
        if self._released:
            return
        self._released = True
        await self._queue.leave(self, tokens, prompt)
