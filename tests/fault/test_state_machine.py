"""Anything in any order: people and faults drawn by Hypothesis, and after every run all invariants are checked.

A run that fails is shrunk to the shortest sequence of steps that still does. The long form has more of them.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fault.checker import check
from tests.fault.desk import Desk, desk
from tests.fault.history import Question
from tests.fault.people import Person, people

EXAMPLES, STEPS = 14, 20
LONG_STEPS = 50
PATIENCE_SECONDS = 0.7
PEOPLE = 3


class Installation:
    """One desk for all examples, on a loop that runs while a step does."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.desk: Desk = self.runner.run(self.stack.enter_async_context(desk(workers=2)))

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def close(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()


class Machine(RuleBasedStateMachine):
    """The model: which conversations there are, who asked what; the checker knows what must hold."""

    installation: Installation

    def __init__(self) -> None:
        super().__init__()
        self.run = self.installation.run
        self.desk = self.installation.desk
        self.stack = AsyncExitStack()
        self.conversations: list[tuple[Person, str]] = []
        self.asked: list[tuple[Person, Question]] = []
        self.following: set[asyncio.Task[None]] = set()
        self.starting: dict[int, asyncio.Task[None]] = {}
        self.run(self.desk.fresh())
        self.crowd: list[Person] = self.run(self.stack.enter_async_context(people(self.desk, PEOPLE)))

    @initialize()
    def everybody_has_a_conversation(self) -> None:
        for person in self.crowd:
            self.conversations.append((person, self.run(person.converse())))

    # people -------------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.conversations)
    @rule(luck=st.randoms(use_true_random=False), events=st.integers(1, 30))
    def post(self, luck: Any, events: int) -> None:
        """Ask and leave after a few events; the answer goes on."""
        person, conversation = luck.choice(self.conversations)
        question = person.question(conversation)
        self.run(self._tried(person.post(question, leave_after=events)))
        self.asked.append((person, question))

    @precondition(lambda self: self.asked)
    @rule(luck=st.randoms(use_true_random=False))
    def retry(self, luck: Any) -> None:
        """The same post once more, as if nothing had been heard."""
        person, question = luck.choice(self.asked)
        self.run(self._tried(person.post(question, leave_after=1)))

    @precondition(lambda self: self.asked)
    @rule(luck=st.randoms(use_true_random=False), events=st.integers(1, 30))
    def resume(self, luck: Any, events: int) -> None:
        person, question = luck.choice(self.asked)
        self.run(self._tried(person.follow(question, leave_after=events)))

    @precondition(lambda self: self.asked)
    @rule(luck=st.randoms(use_true_random=False))
    def new_tab(self, luck: Any) -> None:
        """Somebody follows on another device while the rest goes on."""
        person, question = luck.choice(self.asked)

        self.following.add(self.run(self._begun(self._tried(person.follow(question)))))

    @precondition(lambda self: any(question.turns for _, question in self.asked))
    @rule(luck=st.randoms(use_true_random=False))
    def stop(self, luck: Any) -> None:
        person, question = luck.choice([pair for pair in self.asked if pair[1].turns])
        self.run(self._tried(person.stop(question)))

    @precondition(lambda self: any(question.end for _, question in self.asked))
    @rule(luck=st.randoms(use_true_random=False))
    def edit(self, luck: Any) -> None:
        """Branch from an answer; where it was deleted meanwhile there is no branch."""
        person, question = luck.choice([pair for pair in self.asked if pair[1].end])

        async def branch() -> None:
            try:
                self.conversations.append((person, await person.branch(question)))
            except LookupError:
                assert question.conversation in self.desk.history.deleted

        self.run(self._tried(branch()))

    @precondition(lambda self: len(self.conversations) > 1)
    @rule(luck=st.randoms(use_true_random=False))
    def delete(self, luck: Any) -> None:
        person, conversation = luck.choice(self.conversations)
        self.run(self._tried(person.delete(conversation)))

    # faults -------------------------------------------------------------------------------------------------------
    @rule(number=st.integers(0, 1))
    def cut(self, number: int) -> None:
        self.desk.nemesis.cut(self.desk.doors[number], "client")
        self.desk.nemesis.cut(self.desk.redis_wire, "Redis", 2)

    @rule(number=st.integers(0, 1))
    def kill_gateway(self, number: int) -> None:
        """It is started again at once; until it is there, the other one has everything."""
        if (starting := self.starting.get(number)) is None or starting.done():
            self.run(self.desk.nemesis.kill_gateway(number, back=False))
            self.starting[number] = self.run(self._begun(self.desk.nemesis.start_gateway(number)))

    @rule(number=st.integers(0, 1))
    def kill_worker(self, number: int) -> None:
        if self.desk.workers[number].process.poll() is None:  # type: ignore[union-attr]
            self.run(self.desk.nemesis.kill_worker(number, back=False))

    @precondition(lambda self: self.desk.redis.process is not None)
    @rule()
    def kill_redis(self) -> None:
        self.run(self.desk.nemesis.kill_redis(back=False))

    @rule()
    def heal(self) -> None:
        self.run(self._healed())

    # the end ------------------------------------------------------------------------------------------------------
    async def _begun(self, doing: Any) -> "asyncio.Task[None]":
        return asyncio.create_task(doing)

    async def _healed(self) -> None:
        await asyncio.gather(*self.starting.values())
        await self.desk.heal()

    async def _tried(self, doing: Any) -> None:
        """People do not wait for ever for what is broken: after a moment they do something else."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await doing
        except TimeoutError:
            pass

    @invariant()
    def everything_seen_fits_together(self) -> None:
        assert [changed for _, question in self.asked for changed in question.changed] == []

    def teardown(self) -> None:
        try:
            self.run(self._to_the_end())
        finally:
            self.run(self.stack.aclose())

    async def _to_the_end(self) -> None:
        await self._healed()
        await asyncio.gather(*self.following)
        for person, question in self.asked:
            if question.conversation not in self.desk.history.deleted:
                await person.follow(question)
        assert await check(self.desk) == []


def test_whatever_people_and_faults_do_in_whatever_order_every_invariant_holds(pytestconfig: pytest.Config):
    examples = pytestconfig.getoption("--fault-examples")
    Machine.installation = Installation()
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Machine,
            settings=settings(
                max_examples=examples or EXAMPLES,
                stateful_step_count=LONG_STEPS if examples else STEPS,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                derandomize=not examples,
            ),
        )
    finally:
        Machine.installation.close()
