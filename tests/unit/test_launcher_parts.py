"""One supervised part against small real processes: restarts, giving up, ending whole. Knows no stack."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.logs import LogFile, tail
from deploy.parts import Backoff, Command, Keeper, Part
from deploy.processes import Record, boot_id, end, members, process
from deploy.status import Board, PartStatus, Status, read_status

PATIENT = 30.0


class Bench:
    """A part that runs `script`; the script is ready once it has made the file READY in its folder."""

    def __init__(self, folder: Path, script: str, **changes: object) -> None:
        self.folder = folder
        self.ready = folder / "READY"
        self.lines: list[str] = []
        self.starts: list[int] = []
        status = Status("http://here", os.getpid(), 0, 0.0, parts=(PartStatus("thing", "starting", 0.0),))
        self.changed = asyncio.Event()
        self.board = Board(folder / "status.json", status, lambda status: self.changed.set())
        self.log = LogFile(folder / "thing.log")
        options: dict[str, object] = {
            "name": "thing",
            "command": lambda: Command((sys.executable, "-c", script), os.environ, folder),
            "log": self.log,
            "is_ready": self.is_ready,
            "patience_seconds": (PATIENT,),
            "hear": self.lines.append,
            "on_start": self.on_start,
        }
        self.keeper = Keeper(Part(**{**options, **changes}), self.board)  # type: ignore[arg-type]
        self.keeper.start()

    def on_start(self, child: object) -> None:
        self.starts.append(child.pid)  # type: ignore[attr-defined]

    async def is_ready(self) -> bool:
        return self.ready.exists()

    @property
    def part(self) -> PartStatus:
        return self.board.status.part("thing")

    async def until(self, wanted: object) -> None:
        async with asyncio.timeout(PATIENT):
            while not wanted():  # type: ignore[operator]
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[object]:
    made: list[Bench] = []

    def make(script: str, **changes: object) -> Bench:
        made.append(Bench(tmp_path, script, **changes))
        return made[-1]

    yield make
    hurry = asyncio.Event()
    hurry.set()
    for one in made:
        await one.keeper.end(hurry)
        one.log.close()


SLEEP = "import pathlib, time; pathlib.Path('READY').touch(); time.sleep(600)"


def test_the_first_restart_is_at_once_and_only_quick_deaths_wait_longer_each_time():
    backoff = Backoff()
    assert [backoff.delay_seconds(1.0) for _ in range(7)] == [0.0, 0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert backoff.delay_seconds(11.0) == 0.0
    assert [backoff.delay_seconds(None), backoff.delay_seconds(9.9)] == [0.0, 0.25]


async def test_a_killed_part_runs_again_and_the_status_file_counts_and_says_it(bench, tmp_path: Path):
    one = bench(SLEEP)
    await one.until(lambda: one.part.state == "ready")
    os.kill(one.part.pid, signal.SIGKILL)
    await one.until(lambda: one.part.state == "ready" and one.part.restarts == 1)
    assert len(set(one.starts)) == 2
    written = read_status(tmp_path / "status.json")
    assert written == one.board.status
    assert "ended by SIGKILL; restarted at once" in written.part("thing").message


async def test_a_part_that_refuses_is_not_started_again_and_its_own_words_are_kept(bench):
    one = bench(
        "import sys; print('no such model: /there', file=sys.stderr); sys.exit(78)", final_codes=frozenset({78})
    )
    assert not await one.keeper.until_ready()
    assert (one.part.state, one.part.message, one.keeper.exit_code) == ("failed", "no such model: /there", 78)
    assert len(one.starts) == 1


async def test_a_part_that_never_gets_ready_is_given_up_after_three_tries(bench):
    one = bench("import sys; sys.exit(5)")
    assert not await one.keeper.until_ready()
    assert (len(one.starts), one.part.state, one.part.message) == (3, "failed", "exited with code 5")


async def test_a_program_that_is_not_there_is_a_failure_in_words(bench, tmp_path: Path):
    one = bench("", command=lambda: Command(("/no/such/program",), {}, tmp_path))
    assert not await one.keeper.until_ready()
    assert "/no/such/program" in one.part.message


async def test_what_a_dead_part_leaves_in_its_session_is_ended_before_it_starts_again(bench):
    script = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True); pathlib.Path('READY').touch(); time.sleep(600)"
    )
    one = bench(script)
    await one.until(lambda: one.part.state == "ready" and one.lines)
    leader, child = one.part.pid, int(one.lines[0].split()[1])
    os.kill(leader, signal.SIGKILL)
    await one.until(lambda: one.part.restarts == 1)
    assert members(leader) == []
    assert not runs(child)


async def test_a_part_that_swallows_the_first_term_is_ended_by_the_second(bench):
    script = (
        "import signal, sys, pathlib, time\n"
        "terms = []\n"
        "def on_term(number, frame):\n"
        "    terms.append(number)\n"
        "    print('term', len(terms), flush=True)\n"
        "    if len(terms) == 2: sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, on_term)\n"
        "pathlib.Path('READY').touch()\n"
        "while True: time.sleep(600)"
    )
    one = bench(script, patience_seconds=(0.3, PATIENT))
    await one.keeper.until_ready()
    pid = one.part.pid
    await one.keeper.end(asyncio.Event())
    assert one.lines == ["term 1", "term 2"]
    assert not runs(pid)
    assert one.part.state == "stopped"


STUBBORN = (
    "import signal, pathlib, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True); pathlib.Path('READY').touch()\n"
    "while True: time.sleep(600)"
)


async def test_a_stubborn_part_is_killed_with_its_children_when_patience_ends(bench):
    one = bench(STUBBORN, patience_seconds=(0.1, 0.1))
    await one.until(lambda: one.part.state == "ready" and one.lines)
    pid = one.part.pid
    await one.keeper.end(asyncio.Event())
    assert not runs(pid)
    assert not runs(int(one.lines[0]))


async def test_hurry_cuts_the_patience_short(bench):
    one = bench(STUBBORN, patience_seconds=(600.0, 600.0))
    await one.keeper.until_ready()
    hurry = asyncio.Event()
    ending = asyncio.create_task(one.keeper.end(hurry))
    await asyncio.sleep(0.1)
    assert not ending.done()
    hurry.set()
    async with asyncio.timeout(PATIENT):
        await ending


async def test_logs_keep_what_is_new_and_never_grow_past_two_caps(tmp_path: Path):
    log = LogFile(tmp_path / "part.log", cap_bytes=1000)
    for number in range(500):
        log.write(f"line {number}\n".encode())
    log.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert tail(tmp_path / "part.log", 3) == ["line 497", "line 498", "line 499"]
    assert (tmp_path / "part.log").stat().st_mode & 0o777 == 0o600


async def test_a_record_ends_its_own_session_and_no_process_that_got_the_pid_later(bench, tmp_path: Path):
    one = bench(SLEEP)
    await one.keeper.until_ready()
    pid = one.part.pid
    ticks = process(pid).start_ticks
    end(Record("thing", pid, ticks - 1, boot_id(), str(tmp_path)), 0.1)
    end(Record("thing", pid, ticks, "another boot", str(tmp_path)), 0.1)
    assert runs(pid)
    record = Record("thing", pid, ticks, boot_id(), str(tmp_path))
    await asyncio.to_thread(end, record, PATIENT)
    await one.until(lambda: one.part.restarts == 1)
    assert len(one.starts) >= 1


def runs(pid: int) -> bool:
    found = process(pid)
    return found is not None and found.running
