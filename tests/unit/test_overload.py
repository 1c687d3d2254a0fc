"""The overload ladder by itself: when it climbs and comes down, what it refuses; and how the machine is read."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from gateway.admission import Ticket
from gateway.admission.line import Capacity, Line
from gateway.admission.queue import FairQueue
from gateway.errors import Overloaded, StorageDown
from gateway.machine import Machine, file_limit, raise_file_limit
from gateway.overload import RESOURCES, SLOW_IN_A_ROW, Ladder, Resource, Rung, measuring

GIB = 1 << 30


async def nothing() -> dict[str, float]:
    return {}


def refuses(ladder: Ladder, *, flex: bool) -> str:
    """The words of the refusal; none when it is taken."""
    try:
        ladder.check(flex=flex)
    except Overloaded as refusal:
        return refusal.message
    return ""


@pytest.mark.parametrize("short", RESOURCES, ids=lambda r: r.name)
def test_it_climbs_at_once_and_comes_down_only_when_it_is_well_below(short: Resource):
    ladder = Ladder(nothing)
    tight, full = short.tight, short.full
    for reading, expected in (
        (tight * 0.999, Rung.WELL),
        (tight, Rung.TIGHT),
        (tight * short.eased * 1.001, Rung.TIGHT),
        (tight * short.eased * 0.999, Rung.WELL),
        (tight * 0.999, Rung.WELL),
        (full, Rung.FULL),
        (full * short.eased * 1.001, Rung.FULL),
        (full * short.eased * 0.999, Rung.TIGHT),
        (full * 0.999, Rung.TIGHT),
        (full, Rung.FULL),
        (tight * short.eased * 0.999, Rung.WELL),
    ):
        ladder.take({short.name: reading})
        assert ladder.rungs[short] is expected, reading
    assert tight < full * short.eased, "it comes down rung by rung"


@pytest.mark.parametrize("short", RESOURCES, ids=lambda r: r.name)
def test_what_can_wait_is_refused_first_then_everything_and_the_words_name_what_is_short(short: Resource):
    ladder = Ladder(nothing)
    assert refuses(ladder, flex=True) == refuses(ladder, flex=False) == ""
    ladder.take({short.name: short.tight})
    assert short.message in refuses(ladder, flex=True) and not refuses(ladder, flex=False)
    assert ladder.shown() == {short.name: "tight"}
    ladder.take({short.name: short.full})
    assert short.message in refuses(ladder, flex=True) and short.message in refuses(ladder, flex=False)
    assert ladder.shown() == {short.name: "full"}
    ladder.take({})
    assert refuses(ladder, flex=True) == "" and ladder.shown() == {}


def test_of_several_that_are_short_the_worst_decides_and_is_named():
    ladder = Ladder(nothing)
    ladder.take({"memory": 0.91, "disk": 0.99})
    assert "disk" in refuses(ladder, flex=False) and ladder.shown() == {"memory": "tight", "disk": "full"}
    ladder.take({"memory": 0.91, "disk": 0.5})
    assert "memory" in refuses(ladder, flex=True) and not refuses(ladder, flex=False)


def test_a_refusal_says_when_to_come_again_in_both_units():
    with pytest.raises(Overloaded) as refused:
        ladder = Ladder(nothing)
        ladder.take({"memory": 1.0})
        ladder.check(flex=False)
    assert (refused.value.status, refused.value.code, refused.value.type) == (503, "overloaded", "server_error")
    assert refused.value.headers == {"retry-after": "5", "retry-after-ms": "5000"}


class LineReached(Exception):
    pass


class NoLine:
    async def step(self, *args: object, **options: object) -> None:
        raise LineReached


@pytest.mark.parametrize(
    ("taken", "ticket"),
    [
        (False, Ticket("ada", 1, 1)),
        (False, Ticket("ada", 1, 1, flex=True)),
        (True, Ticket("ada", 1, 1, promised=True)),
        (True, Ticket("ada", 1, 1, accepted=True)),
    ],
)
async def test_what_was_taken_before_comes_into_the_line_all_the_same(taken: bool, ticket: Ticket):
    ladder = Ladder(nothing)
    ladder.take({"memory": 1.0})
    queue = FairQueue(cast(Line, NoLine()), lambda: Capacity(1), ladder)
    with pytest.raises(LineReached if taken else Overloaded):
        await queue.enqueue(ticket)


async def test_one_slow_answer_is_no_slow_storage_and_one_that_is_away_is_none_either():
    answers: Iterator[float | None] = iter((1.0, 1.0, 0.01, 1.0, 1.0, 1.0, None, 1.0))

    async def answer_seconds() -> float:
        if (seconds := next(answers)) is None:
            raise StorageDown("Redis cannot be reached; try again in a moment.")
        return seconds

    measure = measuring(lambda: {"memory": 0.5}, answer_seconds)
    found = [await measure() for _ in range(8)]
    assert SLOW_IN_A_ROW == 3
    assert [reading.get("redis") for reading in found] == [None, None, 0.01, 0.01, 0.01, 1.0, None, None]
    assert all(reading["memory"] == 0.5 for reading in found)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One whose /proc and control groups are files that a test writes."""
    (tmp_path / "proc/self/fd").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/ours/inner\n")
    memory(tmp_path, 64 * GIB, 32 * GIB)
    return Machine(None, tmp_path / "proc", tmp_path / "groups")


def memory(root: Path, total: int, available: int) -> None:
    (root / "proc/meminfo").write_text(f"MemTotal: {total >> 10} kB\nMemAvailable: {available >> 10} kB\n")


def group(root: Path, name: str, limit: str, usage: int, files: int) -> None:
    folder = root / "groups" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")


def test_of_much_memory_only_the_last_gibibytes_count(machine: Machine, tmp_path: Path):
    assert machine.memory() == 0.0
    memory(tmp_path, 1024 * GIB, 1 * GIB)
    assert machine.memory() == pytest.approx(0.9)
    memory(tmp_path, 2 * GIB, 1 * GIB)
    assert machine.memory() == pytest.approx(0.5)


def test_the_control_group_with_the_least_left_counts_without_the_files_it_can_give_up(
    machine: Machine, tmp_path: Path
):
    group(tmp_path, "ours/inner", "max", 5 * GIB, 0)
    group(tmp_path, "ours", str(1 * GIB), 1 * GIB, GIB // 4)
    assert machine.memory() == pytest.approx(0.75)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    assert machine.memory() == 0.0


def test_what_cannot_be_read_is_not_told(machine: Machine, tmp_path: Path):
    (tmp_path / "proc/meminfo").unlink()
    assert Machine(tmp_path / "absent", tmp_path / "proc", tmp_path / "groups").used().keys() == {"files"}


def test_this_machine_can_be_read(tmp_path: Path):
    used = Machine(tmp_path).used()
    assert used.keys() == {"memory", "files", "disk"} and all(0 <= share <= 1 for share in used.values())
    read, write = os.pipe()
    more = Machine(tmp_path).used()["files"]
    os.close(read)
    os.close(write)
    assert round((more - used["files"]) * file_limit()) == 2


def test_a_process_that_may_open_no_file_to_count_them_has_none_left():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert Machine(None).files() == 1.0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_limit_of_open_files_is_raised_to_what_may_be_had():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        raise_file_limit()
        assert file_limit() == min(65_536, float("inf") if hard == resource.RLIM_INFINITY else hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
