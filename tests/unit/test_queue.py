"""The round robin: seats, fairness, places in line. The machine compares every step with what was promised."""

import asyncio
from contextlib import aclosing, suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from gateway.admission import Ticket, Waiting
from gateway.admission import queue as module
from gateway.admission.queue import RoundRobinQueue, share
from gateway.errors import Busy

PER_PERSON = 5


def at_once(coroutine):
    """What a coroutine that never waits returns, or raises."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


def ticket(person: str) -> Ticket:
    return Ticket(person, prompt_tokens=10, max_tokens=10)


class Seats:
    """A queue whose capacity a test changes."""

    def __init__(self, capacity: int, **limits) -> None:
        self.capacity = capacity
        self.queue = RoundRobinQueue(lambda: self.capacity, **{"per_person": 99, "max_wait_seconds": 600.0} | limits)

    def enter(self, person: str):
        return at_once(self.queue.enqueue(ticket(person)))

    def shown(self, place) -> int:
        """The position that is shown; 0 is a seat."""
        return at_once(anext(place.wait())).position


class QueueMachine(RuleBasedStateMachine):
    places = Bundle("places")

    def __init__(self) -> None:
        super().__init__()
        self.seats = Seats(2, per_person=PER_PERSON)
        self.queue = self.seats.queue
        self.waiting: list = []  # in the order they came
        self.seated: list = []

    def positions(self) -> dict:
        return {place: self.queue.position(place) for place in self.waiting}

    def settle(self) -> list:
        """Who has got a seat in this step."""
        lucky = [place for place in self.waiting if self.seats.shown(place) == 0]
        self.waiting = [place for place in self.waiting if place not in lucky]
        self.seated += lucky
        return lucky

    @rule(target=places, person=st.sampled_from("abcd"))
    def join(self, person):
        before, busy = self.positions(), [place.person for place in self.waiting]
        try:
            place = self.seats.enter(person)
        except Busy as refused:
            assert busy.count(person) == PER_PERSON and int(refused.headers["retry-after"]) >= 1
            return multiple()
        assert busy.count(person) < PER_PERSON
        self.waiting.append(place)
        if place in self.settle():
            return place
        assert self.queue.position(place) <= len({p.person for p in self.waiting}) * (busy.count(person) + 1)
        for other, position in before.items():
            own = sum(p.person == other.person for p in self.waiting[: self.waiting.index(other)])
            lighter = busy.count(person) <= own and other.person != person
            assert self.queue.position(other) - position in ((0, 1) if lighter else (0,))
        return place

    @rule(place=consumes(places), tokens=st.integers(0, 3))
    def release(self, place, tokens):
        before, was_waiting = self.positions(), place in self.waiting
        for _ in range(2):  # safe to repeat
            at_once(place.release(tokens))
        (self.waiting if was_waiting else self.seated).remove(place)
        self.settle()
        assert all(position <= before[other] for other, position in self.positions().items())

    @rule(capacity=st.integers(0, 5))
    def change_capacity(self, capacity):
        before = self.positions()
        self.seats.capacity = capacity
        self.queue.dispatch()
        lucky = self.settle()
        assert sorted(before[place] for place in lucky) == list(range(1, len(lucky) + 1))
        assert all(position == before[place] - len(lucky) for place, position in self.positions().items())

    @invariant()
    def counts_are_right_and_no_seat_is_free_while_somebody_waits(self):
        assert self.queue.in_flight == len(self.seated) and self.queue.waiting == len(self.waiting)
        assert not self.waiting or self.queue.in_flight >= self.seats.capacity

    @invariant()
    def every_place_is_one_of_a_line_without_gaps_and_ones_own_come_in_their_order(self):
        positions = self.positions()
        assert sorted(positions.values()) == list(range(1, len(positions) + 1))
        for person in "abcd":
            own = [positions[place] for place in self.waiting if place.person == person]
            assert own == sorted(own)

    @invariant()
    def nobody_is_behind_all_of_anothers(self):
        firsts = {}
        for place in self.waiting:
            firsts.setdefault(place.person, self.queue.position(place))
        assert all(position <= len(firsts) for position in firsts.values())


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTheRoundRobin = QueueMachine.TestCase


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_in_flight_never_exceeds_the_capacity_however_many_come(capacity):
    seats = Seats(capacity)
    places = [seats.enter(person) for person in "aabbccdd"]
    assert seats.queue.in_flight == capacity == sum(seats.shown(place) == 0 for place in places)


def test_the_seat_of_one_who_leaves_goes_to_the_next_person_not_to_the_next_request():
    seats = Seats(1)
    running, *others = [seats.enter("heavy") for _ in range(5)]
    light = seats.enter("light")
    assert [seats.queue.position(place) for place in (*others, light)] == [1, 3, 4, 5, 2]
    at_once(running.release(1))
    at_once(others[0].release(1))
    assert seats.shown(light) == 0


def test_a_smaller_capacity_takes_no_seat_away_and_gives_none_until_it_is_reached():
    seats = Seats(3)
    running = [seats.enter(person) for person in "abc"]
    waiting = seats.enter("d")
    seats.capacity = 1
    for place in running[:2]:
        at_once(place.release())
        assert seats.shown(waiting) == 1
    at_once(running[2].release())
    assert seats.shown(waiting) == 0


async def test_each_change_of_place_is_told_and_at_last_the_seat(monkeypatch):
    monkeypatch.setattr(module, "UPDATE_SECONDS", 0.001)
    seats = Seats(1)
    first, second = seats.enter("a"), seats.enter("b")
    told = []
    async with asyncio.timeout(5), aclosing(seats.enter("c").wait()) as changes:
        async for waiting in changes:
            told.append(waiting.position)
            await (first if waiting.position == 2 else second).release(1)
    assert told == [2, 1, 0]


async def test_a_free_seat_gives_one_last_word_at_once():
    place = Seats(1).enter("a")
    assert [waiting async for waiting in place.wait()] == [Waiting(0, 0.0)]


async def test_who_leaves_while_waiting_is_forgotten_and_gets_no_seat():
    seats = Seats(1)
    running, leaver, patient = (seats.enter(person) for person in "aab")
    following = asyncio.create_task(anext(aiter(leaver.wait())))
    await following
    await leaver.release()
    await running.release(1)
    assert seats.shown(patient) == 0 and seats.queue.waiting == 0 and seats.queue.in_flight == 1


@pytest.mark.parametrize(
    ("seats", "gateways", "each"), [(16, 1, 16), (16, 2, 8), (7, 2, 3), (2, 3, 1), (0, 2, 0), (16, 0, 16)]
)
def test_gateways_that_share_the_engines_give_out_no_seat_twice_and_each_has_one(seats: int, gateways: int, each: int):
    assert share(seats, gateways) == each


def test_a_person_whose_line_is_full_is_refused_with_the_time_to_wait_and_others_are_not():
    seats = Seats(1, per_person=2)
    for _ in range(3):
        seats.enter("heavy")
    for attempt in (seats.queue.check, seats.queue.enqueue):
        with pytest.raises(Busy, match="2 requests waiting") as refused:
            at_once(attempt(ticket("heavy")))
        assert int(refused.value.headers["retry-after"]) >= 1 and int(refused.value.headers["retry-after-ms"]) >= 1
    seats.enter("light")
    assert seats.queue.waiting == 3


def test_asking_whether_there_is_room_takes_no_place():
    seats = Seats(1)
    at_once(seats.queue.check(ticket("a")))
    assert (seats.queue.in_flight, seats.queue.waiting) == (0, 0)


def slow(seats: Seats, seconds: float) -> None:
    """Let the queue learn that a seat is held for so long."""
    seats.queue.in_flight += 1
    seats.queue.free(seconds, produced=True)


def test_a_wait_that_is_too_long_is_refused_with_its_estimate():
    seats = Seats(1, max_wait_seconds=150.0)
    slow(seats, 100.0)
    seats.enter("a")
    seats.enter("b")
    with pytest.raises(Busy, match="about 200 s") as refused:
        seats.enter("c")
    assert refused.value.headers["retry-after"] == "200"


def test_the_flood_of_one_person_does_not_make_the_wait_of_another_too_long():
    seats = Seats(1, max_wait_seconds=250.0)
    slow(seats, 100.0)
    for _ in range(20):
        with suppress(Busy):
            seats.enter("heavy")
    place = seats.enter("light")
    assert seats.queue.estimate(place) == Waiting(2, 200.0)


def test_the_estimate_is_the_place_times_what_a_seat_takes_over_all_seats_and_nothing_while_nothing_is_known():
    seats = Seats(2)
    for person in "ab":
        seats.enter(person)
    waiting = seats.enter("c")
    assert seats.queue.estimate(waiting) == Waiting(1, None)
    slow(seats, 10.0)
    seats.capacity = 0
    again = seats.enter("d")
    assert seats.queue.estimate(again).eta_seconds is None
    seats.capacity = 2
    assert seats.queue.estimate(again).eta_seconds == seats.queue.position(again) * 5.0


def test_answers_that_broke_off_before_a_word_teach_nothing_about_the_wait():
    seats = Seats(1)
    at_once(seats.enter("a").release(0))
    seats.enter("a")
    assert seats.queue.estimate(seats.enter("b")).eta_seconds is None
