"""The line in Redis against its model: whatever gateways and people do, in whatever order, both say and hold the same.

After each step everything that is in Redis is compared, and what docs/fairness.md promises is asserted of it. Limits of
people and keys are not part of the model: they have tests of their own (test_quotas.py).
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from gateway.admission import Ticket
from gateway.admission.line import Capacity, How, Line, Lost
from gateway.errors import Busy
from gateway.redis_client import RedisClient
from tests.line_model import AHEAD, DESK, FLEX, KINDS, Model, ModelLine, Person, Request
from tests.servers import RedisServer, some_redis

EXAMPLES, STEPS = 36, 40
LONG_STEPS = 150
GATEWAYS = ("gw_one", "gw_two", "gw_three")
WEIGHTS = {"ada": 1.0, "bob": 1.0, "cem": 2.0, "dia": 0.5}  # halves and doubles: sums are exact in any order
MOST_PROMPT, MOST_OUTPUT = 100, 40
LARGE = "eva"  # asks more than all the others: nobody's share may depend on it
LARGE_PROMPT = 3000
LEASE_SECONDS = 2.0
LIMITS = {"longest": 3, "longest_wait_seconds": 2.0}
CLOCK = {"v": DESK, "v_flex": FLEX}
OF_LIMITS = ("key", "read", "paid")  # what is kept of a request for them

gateways = st.sampled_from(GATEWAYS)
later = st.sampled_from([0, 0, 1, 40, 250, 1000, 1900, 2100, 30_000])  # ms
luck = st.randoms(use_true_random=False)
State = dict[str, Any]


# what is there --------------------------------------------------------------------------------------------------------
def in_redis(client: "redis.Redis[bytes]") -> State:
    """All of the line, in the words of the model."""
    plain = client.pipeline(transaction=False)
    plain.hgetall("dm:line:clock").hgetall("dm:line:people").hgetall("dm:line:requests")
    plain.lrange("dm:line:promised", 0, -1).zrange("dm:line:light", 0, -1, withscores=True)
    plain.zrange("dm:line:gateways", 0, -1, withscores=True).hgetall("dm:line:hungry").keys("dm:line:*")
    clock, people, requests, promised, light, leases, hungry, keys = plain.execute()
    names = sorted(key.decode() for key in keys if key.count(b":") > 2 and not key.startswith(b"dm:line:paid:"))
    more = client.pipeline(transaction=False)
    for name in names:
        kind = name.split(":")[2]
        if kind == "ready":
            more.zrange(name, 0, -1, withscores=True)
        else:
            (more.smembers if kind in ("gateway", "granted") else lambda key: more.lrange(key, 0, -1))(name)
    return {
        "clock": {name.decode(): float(value) for name, value in clock.items()},
        "people": {who.decode(): msgspec.msgpack.decode(packed) for who, packed in people.items()},
        "requests": {id.decode(): unlimited(msgspec.msgpack.decode(packed)) for id, packed in requests.items()},
        "promised": [id.decode() for id in promised],
        "light": {who.decode(): when for who, when in light},
        "hungry": {who.decode(): float(counter) for who, counter in hungry.items()},
        "leases": {name.decode(): end for name, end in leases},
        **{name: readable(found) for name, found in zip(names, more.execute(), strict=True)},
    }


def unlimited(request: State) -> State:
    return {name: value for name, value in request.items() if name not in OF_LIMITS}


def readable(found: Any) -> Any:
    if isinstance(found, set):
        return {id.decode() for id in found}
    return [(one[0].decode(), one[1]) if isinstance(one, tuple) else one.decode() for one in found]


def in_model(model: Model) -> State:
    """The same, of the model."""
    clock = {name: model.clocks[kind] for name, kind in CLOCK.items()} | model.given
    clock |= {
        "flying": len(model.seated),
        "reserved": model.reserved,
        "served": model.served,
        "came": model.came,
        "mean": model.mean,
    }
    clock |= {"rate": model.rate, "rate_at": model.rate_at, "rate_served": model.rate_served}
    clock |= dict(zip(("jain", "largest", "among"), model.even, strict=True)) | {"compared_at": model.compared_at}
    requests = model.waiting | model.seated
    state: State = {
        "clock": clock,
        "people": {who: packed_person(model, who, person) for who, person in model.people.items()},
        "requests": {id: packed_request(request) for id, request in requests.items()},
        "promised": [id for id, request in model.waiting.items() if request.promised],
        "light": model.light,
        "hungry": model.hungry,
        "leases": model.leases,
    }
    for kind in KINDS:
        lines = model.lines(kind)
        ready = sorted((model.person(who).counters[kind], f"{line[0].came:013}{who}") for who, line in lines.items())
        state |= {f"dm:line:ready:{kind}": [(member, counter) for counter, member in ready]} if ready else {}
        state |= {f"dm:line:{kind}:{who}": [request.id for request in line] for who, line in lines.items()}
    for gateway in GATEWAYS:
        mine = {id for id, request in requests.items() if request.gateway == gateway}
        held = {"gateway": mine, "granted": set(model.untold(gateway))}
        state |= {f"dm:line:{what}:{gateway}": ids for what, ids in held.items() if ids}
    return state


def packed_person(model: Model, who: str, person: Person) -> State:
    guess = {} if person.guess is None else {"e": person.guess}
    first = {f"{kind}_first": line[0].came for kind in KINDS if (line := model.lines(kind).get(who))}
    return {**person.counters, "n": model.in_flight(who)} | guess | first


def packed_request(request: Request) -> State:
    packed: State = {"who": request.who, "class": request.kind, "gateway": request.gateway, "max": request.most}
    packed |= {"prompt": request.prompt, "weight": request.weight, "since": request.since}
    packed |= {"charged": request.charged, "produced": request.produced}
    packed |= {"promised": True} if request.promised else {}
    packed |= {} if request.came is None else {"came": request.came}
    packed |= {} if request.seated is None else {"seated": request.seated, "reserved": request.reserved}
    return packed | ({} if request.passed is None else {"passed": request.passed})


def known(people: State) -> State:
    """Less those of whom nothing is known: one that was only asked about may stand there or not."""
    return {who: one for who, one in people.items() if one != {DESK: 0, FLEX: 0, "n": 0}}


# both at once ---------------------------------------------------------------------------------------------------------
class Installation:
    """One Redis for all examples."""

    def __init__(self) -> None:
        self.runner, self.stack = asyncio.Runner(), AsyncExitStack()
        self.server: RedisServer = self.stack.enter_context(some_redis())
        self.client = RedisClient(self.server.url, self.server.password)
        self.eye = redis.Redis(unix_socket_path=str(self.server.socket), password=self.server.password)
        self.stack.callback(self.eye.close)
        self.stack.push_async_callback(self.client.aclose)

    def close(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()


class Machine(RuleBasedStateMachine):
    installation: Installation

    def __init__(self) -> None:
        super().__init__()
        self.installation.server.reset()
        self.now = 1_000
        self.ids = (f"r{number:04}" for number in itertools.count())
        self.model = Model()
        self.capacity = Capacity(2)
        self.lines = {
            name: (Line(self.installation.client, name, **LIMITS), ModelLine(self.model, name, **LIMITS))  # type: ignore[arg-type]
            for name in GATEWAYS
        }
        self.held: dict[str, dict[str, tuple[Ticket, bool]]] = {name: {} for name in GATEWAYS}  # and whether seated
        self.apart: dict[tuple[str, str], tuple[float, int]] = {}  # since two wait; the most seats since then

    def both(self, gateway: str, ask: Callable[[Any], Awaitable[Any]], *, fills: bool = True) -> Any:
        """The answer of both, or None when both refused in the same way."""

        async def answer(line: Any) -> tuple[str, Any]:
            try:
                return "said", await ask(line)
            except Busy as refused:
                return "busy", refused.headers
            except Lost:
                return "lost", None

        async def answers() -> list[tuple[str, Any]]:
            return [await answer(line) for line in self.lines[gateway]]

        before = set(self.model.seated)
        of_redis, of_model = self.installation.runner.run(answers())
        assert of_redis == of_model
        state, expected = in_redis(self.installation.eye), in_model(self.model)
        for one in (state, expected):
            one["people"] = known(one["people"])
        assert state == expected
        self.promises(state, before, fills and of_redis[0] == "said")
        return of_redis[1] if of_redis[0] == "said" else None

    # what is promised ------------------------------------------------------------------------------------------------
    def promises(self, state: State, before: set[str], filled: bool) -> None:
        """Of Redis' own state; only who may sit on a kept seat is asked of the model."""
        flying = {id: one for id, one in state["requests"].items() if "seated" in one}
        fresh = [one for id, one in flying.items() if id not in before and "promised" not in one]
        kept = self.model.kept(self.capacity)
        if fresh:
            assert len(flying) <= self.capacity.seats
            reserved = sum(one["reserved"] for one in flying.values())
            assert self.capacity.kv_tokens is None or reserved <= self.capacity.kv_tokens or len(flying) == 1
        flex = sum(one["class"] == FLEX for one in fresh)
        assert not flex or len(set(flying) & before) + flex <= self.capacity.seats - kept
        waits = len(state["requests"]) - len(flying)
        if filled and waits and self.capacity.kv_tokens is None:
            assert len(flying) >= self.capacity.seats - kept
        self.bound(state)

    def bound(self, state: State) -> None:
        """Of two who wait all the time, none was served much more than the other."""
        served = {who: self.served(state, who) for who in WEIGHTS}
        waiting = {who for who in WEIGHTS if f"dm:line:{DESK}:{who}" in state}
        special = {one["who"] for one in state["requests"].values() if "promised" in one or "passed" in one}
        for one, other in itertools.combinations(WEIGHTS, 2):
            if not {one, other} <= waiting - special:
                self.apart.pop((one, other), None)
                continue
            apart = served[one] - served[other]
            start, seats = self.apart.get((one, other), (apart, 0))
            seats = max(seats, len([r for r in state["requests"].values() if "seated" in r]), self.capacity.seats)
            self.apart[one, other] = start, seats
            most = 2 * (MOST_PROMPT + 2 * seats * MOST_OUTPUT) / min(WEIGHTS[one], WEIGHTS[other])
            assert abs(apart - start) <= most + (AHEAD if Capacity(seats).kept else 0)

    def served(self, state: State, who: str) -> float:
        """By weight, as far as it was told: the counter, less what is charged in advance."""
        counter = float(state["people"].get(who, {}).get(DESK, 0))
        for one in state["requests"].values():
            if one["who"] == who and one["class"] == DESK and "seated" in one:
                counter -= (one["charged"] - one["prompt"] - 2 * one["produced"]) / one["weight"]
        return counter

    # gateways --------------------------------------------------------------------------------------------------------
    @initialize(seats=st.sampled_from([1, 2, 5, 6]), kv=st.sampled_from([None, None, 250]))
    def two_gateways_are_there(self, seats: int, kv: int | None) -> None:
        self.capacity = Capacity(seats, kv)
        for name in GATEWAYS[:2]:
            self.both(name, lambda line: line.step(self.capacity, LEASE_SECONDS, register=True, now_ms=self.now))

    @rule(name=gateways, ms=later, luck=luck)
    def step(self, name: str, ms: int, luck: Any) -> None:
        self.now += ms
        heard = [id for id, (_, seated) in self.held[name].items() if seated and luck.random() < 0.5]
        produced = {id: luck.randint(0, self.held[name][id][0].max_tokens) for id in heard if luck.random() < 0.5}
        said = self.both(
            name,
            lambda line: line.step(self.capacity, LEASE_SECONDS, heard=heard, produced=produced, now_ms=self.now),
        )
        self.hear(name, said[1] if said else ())

    @rule(name=gateways, ms=later, what=st.sampled_from(["look", "look", "die", "come back", "resize"]), luck=luck)
    def trouble(self, name: str, ms: int, what: str, luck: Any) -> None:
        self.now += ms
        match what:
            case "look":
                self.both(name, lambda line: line.places(self.capacity, now_ms=self.now), fills=False)
            case "die":  # it forgets all; that it is silent is the others' to see
                self.held[name] = {}
            case "come back":
                self.come_back(name)
            case "resize":
                self.capacity = Capacity(luck.choice([0, 1, 3, 5]), luck.choice([None, None, 250]))

    def come_back(self, name: str) -> None:
        """Register, and bring back what is held, as a gateway does that was taken for dead."""
        self.both(name, lambda line: line.step(self.capacity, LEASE_SECONDS, register=True, now_ms=self.now))
        for id, (ticket, seated) in list(self.held[name].items()):
            how = How.SEATED if seated else How.PROMISED
            self.hear(name, self.both(name, self.joining(id, ticket, how), fills=not seated) or ())

    # people ----------------------------------------------------------------------------------------------------------
    def joining(self, id: str, ticket: Ticket, how: How) -> Callable[[Any], Awaitable[Any]]:
        async def seats(line: Any) -> Any:
            return (await line.join(self.capacity, id, ticket, how, now_ms=self.now))[0]

        return seats

    @rule(
        name=gateways,
        ms=later,
        who=st.sampled_from([*WEIGHTS, *WEIGHTS, LARGE]),
        prompt=st.integers(1, MOST_PROMPT),
        most=st.integers(1, MOST_OUTPUT),
        kind=st.sampled_from(["desk", "desk", "desk", "desk", "flex", "promised"]),
        times=st.integers(1, 6),
    )
    def join(self, name: str, ms: int, who: str, prompt: int, most: int, kind: str, times: int) -> None:
        self.now += ms
        prompt = LARGE_PROMPT if who == LARGE else prompt
        ticket = Ticket(who, prompt, most, kind == "promised", kind == "flex", WEIGHTS.get(who, 1.0))
        for _ in range(times):
            id = next(self.ids)
            said = self.both(name, self.joining(id, ticket, How.PROMISED if ticket.promised else How.NEW))
            if said is not None:
                self.held[name][id] = ticket, False
                self.hear(name, said)

    @precondition(lambda self: any(self.held.values()))
    @rule(ms=later, luck=luck, count=st.integers(1, 2), cached=st.booleans())
    def leave(self, ms: int, luck: Any, count: int, cached: bool) -> None:
        self.now += ms
        name = luck.choice([name for name in GATEWAYS if self.held[name]])
        left: dict[str, tuple[int, int | None]] = {}
        held = sorted(self.held[name])
        answered = [id for id in held if self.held[name][id][1]]
        held = answered if answered and luck.random() < 0.8 else held
        for id in luck.sample(held, min(count, len(held))):
            ticket, seated = self.held[name].pop(id)
            tokens = luck.randint(0, ticket.max_tokens) if seated else 0
            left[id] = (tokens, luck.randint(0, ticket.prompt_tokens) if cached else None)
        for _ in range(luck.randint(1, 2)):  # the answer to the first may be lost
            self.hear(name, self.both(name, lambda line: line.leave(self.capacity, left, now_ms=self.now)))

    def hear(self, name: str, ids: Any) -> None:
        for id in ids:
            if id in self.held[name]:
                self.held[name][id] = self.held[name][id][0], True


def test_the_line_in_redis_does_what_its_model_does_whatever_happens(pytestconfig: pytest.Config):
    examples = pytestconfig.getoption("--line-examples")
    Machine.installation = Installation()
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Machine,
            settings=settings(
                max_examples=examples or EXAMPLES,
                stateful_step_count=LONG_STEPS if examples else STEPS,
                deadline=None,
                phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if examples else [])],
                suppress_health_check=list(HealthCheck),
                derandomize=not examples,
            ),
        )
    finally:
        Machine.installation.close()
