"""A turn that runs in this process: what may be shown of it, and who follows it. Knows neither Redis nor the engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from gateway.conversations import Begun
from gateway.errors import Refusal
from gateway.events import Delta, Finished, Thought, TurnEvent
from gateway.quotas import Balance
from gateway.said import Said


class LiveTurn:
    """A turn that runs in this process: what may be shown of it, and who follows it."""

    def __init__(
        self, owner: str, id: str, begun: Begun | None, shown: Sequence[TurnEvent] = (), *, background: bool
    ) -> None:
        self.owner = owner
        self.id = id
        self.background = background
        self.begun = begun
        self.shown = list(shown)
        self.said = Said.of(shown)
        self.unlogged: list[TurnEvent] = []
        self.outcome: Finished | None = None
        self.balance = Balance()  # of its person's limits when it came
        self.began = time.monotonic()
        self.refusal: Refusal | None = None  # why it failed, where this process knows it
        self.task: asyncio.Task[None] | None = None
        self.ending = False  # its answer is being stored; nothing may stop that
        self.gone = False  # it is another process's now, or will be: nothing more is shown or written here
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

    def logged(self, events: Sequence[TurnEvent]) -> None:
        del self.unlogged[: self._logging]
        self._logging = 0
        self.show(events)

    async def flushed(self) -> None:
        while self.unlogged and not self.gone:
            await self._changed()

    def let_go(self) -> None:
        """It is no longer ours to run: stop, keep quiet, and let followers look for it elsewhere."""
        self.gone = True
        if not self.ending and self.task is not None:
            self.task.cancel()
        self._news()

    def stop(self) -> None:
        """End the turn; what was said is kept. Does nothing when it is ending already."""
        if not self.ending and self.task is not None:
            self.ending = True
            self.task.cancel()

    def stop_if_alone(self) -> None:
        if not self._listeners and not self.background:
            self.stop()

    async def follow(self) -> AsyncGenerator[Sequence[TurnEvent], None]:
        """All events: at each step everything that is new, to the end, or until the turn is gone; an empty step says
        that nothing came for a while. A turn that does not run in the background ends when its last follower leaves."""
        after = 0
        self._listeners += 1
        try:
            while True:
                if new := self.shown[after:]:
                    after += len(new)
                    yield new
                elif self.outcome is not None or self.gone:
                    return
                elif not await self._changed():
                    yield ()
        finally:
            self._listeners -= 1
            self.stop_if_alone()

    async def ended(self) -> Finished | None:
        """Wait for the end without being a follower; None when the turn is gone."""
        while self.outcome is None and not self.gone:
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
            joined[-1] = _join(last, event)
        elif isinstance(event, Thought) and isinstance(last, Thought):
            joined[-1] = Thought(last.text + event.text, last.token_ids + event.token_ids)
        else:
            joined.append(event)
    return joined


def _join(one: Delta, next: Delta) -> Delta:
    logprobs = one.logprobs
    if next.logprobs is not None:
        logprobs = (one.logprobs or ()) + next.logprobs
    return Delta(one.text + next.text, one.token_ids + next.token_ids, logprobs)
