"""Round robin between people, in this process: the first fair queue. Knows nothing of what a request is.

Seats are given to whoever is next in the round, one request a person and round, so nobody is ever behind all of
somebody else's requests. In flight never exceeds the capacity, which is asked anew at every step: while no engine
is ready it is zero and everybody waits.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

from gateway.admission import Ticket, Waiting
from gateway.errors import Busy

UPDATE_SECONDS = 1.0
_NEWEST_WEIGHT = 0.2  # of the moving average of how long a seat is held


def share(seats: int, gateways: int) -> int:
    """What one of several gateways gives out of seats they all see; each has one while there is any."""
    return max(1, seats // max(1, gateways)) if seats else 0


class RoundRobinQueue:
    """An `Admission` for one gateway process. Call `dispatch` whenever the capacity may have grown."""

    def __init__(self, capacity: Callable[[], int], *, per_person: int, max_wait_seconds: float) -> None:
        self._capacity = capacity
        self._per_person = per_person
        self._max_wait_seconds = max_wait_seconds
        self._lines: OrderedDict[str, deque[_Place]] = OrderedDict()  # in the order of the round; no empty line
        self._held_seconds: float | None = None
        self.in_flight = 0

    @property
    def waiting(self) -> int:
        return sum(len(line) for line in self._lines.values())

    async def check(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.person, ())
        eta = self._eta(len(self._lines) + 1) or 0.0  # who has no line yet has one of each other person before them
        if len(line) >= self._per_person:
            raise Busy(
                f"You have {len(line)} requests waiting, which is the limit; wait for some of them to finish.",
                retry_after_seconds=self._eta(len(line)) or 2.0,
            )
        if not line and eta > self._max_wait_seconds:
            raise Busy(f"The wait is about {eta:.0f} s; ask again later.", retry_after_seconds=eta)

    async def enqueue(self, ticket: Ticket) -> "_Place":
        place = _Place(self, ticket.person)
        if ticket.promised:
            self._lines.setdefault(ticket.person, deque()).appendleft(place)
            self._lines.move_to_end(ticket.person, last=False)
        else:
            await self.check(ticket)
            self._lines.setdefault(ticket.person, deque()).append(place)
        self.dispatch()
        return place

    def dispatch(self) -> None:
        """Give out every free seat."""
        while self._lines and self.in_flight < self._capacity():
            person, line = self._lines.popitem(last=False)
            place = line.popleft()
            if line:
                self._lines[person] = line  # to the end of the round
            self.in_flight += 1
            place.take_seat()

    def position(self, place: "_Place") -> int:
        """1 for the place that gets the next free seat."""
        own = self._lines[place.person].index(place)
        before = own + 1
        ahead = True  # people whose turn in the round comes before this one's
        for person, line in self._lines.items():
            if person == place.person:
                ahead = False
            else:
                before += min(len(line), own + ahead)
        return before

    def estimate(self, place: "_Place") -> Waiting:
        position = self.position(place)
        return Waiting(position, self._eta(position))

    def leave(self, place: "_Place") -> None:
        line = self._lines[place.person]
        line.remove(place)
        if not line:
            del self._lines[place.person]

    def free(self, held_seconds: float, produced: bool) -> None:
        self.in_flight -= 1
        if produced:
            old = held_seconds if self._held_seconds is None else self._held_seconds
            self._held_seconds = old + _NEWEST_WEIGHT * (held_seconds - old)
        self.dispatch()

    def _eta(self, position: int) -> float | None:
        capacity = self._capacity()
        if self._held_seconds is None or not capacity:
            return None
        return round(self._held_seconds * position / capacity, 1)


class _Place:
    def __init__(self, queue: RoundRobinQueue, person: str) -> None:
        self.person = person
        self._queue = queue
        self._seated = asyncio.Event()
        self._seated_at = 0.0
        self._released = False

    def take_seat(self) -> None:
        self._seated_at = time.monotonic()
        self._seated.set()

    async def wait(self) -> AsyncIterator[Waiting]:
        while not self._seated.is_set():
            yield self._queue.estimate(self)
            try:
                async with asyncio.timeout(UPDATE_SECONDS):
                    await self._seated.wait()
            except TimeoutError:
                pass
        yield Waiting(0, 0.0)

    async def release(self, tokens: int = 0) -> None:
        if self._released:
            return
        self._released = True
        if self._seated.is_set():
            self._queue.free(time.monotonic() - self._seated_at, tokens > 0)
        else:
            self._queue.leave(self)
