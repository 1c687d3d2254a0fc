"""What `./deskmate up` runs: Redis, gateways and worker as one supervised tree. Knows their order, not their inside."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from deploy import http, redis
from deploy.door import opened
from deploy.errors import AlreadyRunning, BadConfiguration, PortInUse, Refusal, UsageError
from deploy.guard import in_order
from deploy.home import Home, read_json, remove_folder, secret, socket_folder, write_json, write_private
from deploy.logs import LogFile
from deploy.orders import obey
from deploy.parts import POLL_SECONDS, Child, Command, Keeper, Part, until
from deploy.processes import Record, descendants, end, is_in_session, process
from deploy.status import Board, PartState, PartStatus, StageStatus, Status, read_status
from deploy.wishes import Sockets, Wishes, child_environment, gateway_settings
from worker.stages import Stage, stage_of

CLAIM_SECONDS = 3.0
ENGINE_POLL_SECONDS = 0.5
LEFT_OVER_PATIENCE_SECONDS = 3.0
REDIS_PATIENCE_SECONDS = (10.0,)
WORKER_PATIENCE_SECONDS = (3.0, 5.0)  # while it loads the first TERM is swallowed and the second one ends it
WORKER_DRAIN_SECONDS = 25.0  # five more than the worker gives its running answers (worker/plan.py)
CONVERT_PATIENCE_SECONDS = (2.0,)
GATEWAY_DRAIN_SECONDS = 20.0
GATEWAY_MARGIN_SECONDS = 5.0
LISTENING = "gateway: listening on "  # what a gateway says once it takes connections
REFUSALS = frozenset({69, 78})  # trying again changes nothing
WORKER_STAGES = ("plan", *(stage.value for stage in Stage))


class Stack:
    """One run of everything. `run` returns when it was stopped and nothing of it runs any more."""

    def __init__(self, home: Home, root: Path, wishes: Wishes, given: Mapping[str, str]) -> None:
        self._home, self._root, self._wishes, self._given = home, root, wishes, given
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._records: dict[str, Record] = {}
        self._keepers: dict[str, Keeper] = {}
        self._failure: Refusal | None = None
        self._plan_before = 0
        self.board: Board

    # -- the flow ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Raises the Refusal that kept the stack, or its worker, from running."""
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(sign, self._on_signal)
        self._home.create()
        with claimed(self._home):
            end_left_over(self._home)
            self._doors = opened(self._wishes.host, self._wishes.port)
            self._prepare()
            try:
                await self._until_stopped()
            finally:
                await self._end()
        if self._failure:
            raise self._failure

    def _on_signal(self) -> None:
        """The first asks for an orderly end, the second hurries it."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _prepare(self) -> None:
        self._sockets = Sockets(socket_folder(dict(self._given)))
        self._guard = Guard(self._sockets.folder)
        self._password = secret(self._home.secrets / "redis-password")
        secret(self._home.secrets / "installation-secret")
        self._home.plan_file.unlink(missing_ok=True)
        remove_folder(self._home.metrics)
        self._home.metrics.mkdir(mode=0o700)
        self._settings = gateway_settings(self._wishes, self._home, self._sockets, self._given)
        self._inherited = child_environment(self._root, self._home, self._given)
        self.board = Board(self._home.status_file, first_status(self._wishes))
        self._write_down()

    async def _until_stopped(self) -> None:
        """A worker that cannot run ends nothing: the page says so, and what is stored can be read."""
        start = asyncio.create_task(self._start())
        watch = asyncio.create_task(self._watch_engine())
        orders = asyncio.create_task(obey(self._sockets.orders, self._restart))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
            await stop
        except Refusal as refusal:
            self._failure = refusal
        finally:
            for task in (start, watch, orders, stop):
                task.cancel()
            await asyncio.gather(start, watch, orders, stop, return_exceptions=True)

    async def _start(self) -> None:
        if not self._wishes.redis_url:
            await self._start_redis()
        await self._start_gateways()
        if self._wishes.worker_urls:
            await self._wait_for_workers()
        elif self._wishes.model or await self._convert():
            await self._start_worker()

    async def _end(self) -> None:
        """The gateways drain first, while the others still answer; Redis goes last. Then nothing is left."""
        for door in self._doors:
            door.close()
        for names in (self._wishes.gateway_names, ("worker",), ("redis",)):
            await asyncio.gather(*(self._keepers[name].end(self._hurry) for name in names if name in self._keepers))
        self._guard.dismiss()
        remove_folder(self._sockets.folder)
        self._records.clear()
        self._write_down()

    # -- the parts --------------------------------------------------------------------------------------------

    async def _start_redis(self) -> None:
        self.board.begin("redis")
        server, command = redis_command(
            self._home, self._sockets, self._password, self._inherited, self._wishes.durability
        )
        keeper = self._keep(
            Part(
                name="redis",
                command=lambda: command,
                log=LogFile(self._home.logs / "redis.log"),
                is_ready=lambda: redis.answers(self._sockets.redis, self._password),
                patience_seconds=REDIS_PATIENCE_SECONDS,
                on_start=self._remember,
            )
        )
        await self._needs(keeper, "redis")
        self.board.finish("redis", message=str(server))

    async def _start_gateways(self) -> None:
        self.board.begin("gateway")
        for keeper in [self._keep(self._gateway(name)) for name in self._wishes.gateway_names]:
            await self._needs(keeper, "gateway")
        self.board.finish("gateway")

    def _gateway(self, name: str) -> Part:
        """Ready when it says so itself: a request would be answered by any that shares the door."""
        listens = asyncio.Event()
        descriptors = [door.fileno() for door in self._doors]
        settings = {**self._settings, "DESKMATE_LISTEN_FD": ",".join(map(str, descriptors))}

        def command() -> Command:
            listens.clear()
            return replace(self._python(("gateway", "serve"), settings), descriptors=descriptors)

        async def is_ready() -> bool:
            return listens.is_set()

        return Part(
            name=name,
            command=command,
            log=LogFile(self._home.logs / f"{name}.log"),
            is_ready=is_ready,
            hear=lambda line: listens.set() if line.startswith(LISTENING) else None,
            patience_seconds=(drain_seconds(self._given) + GATEWAY_MARGIN_SECONDS,),
            on_start=self._remember,
            final_codes=REFUSALS | {2},
        )

    async def _needs(self, keeper: Keeper, stage: str) -> None:
        """Nothing works without this part: where it cannot be had, the start ends."""
        if await keeper.until_ready():
            return
        status = self.board.status.part(keeper.part.name)
        self.board.fail(stage, status.message)
        raise refusal(keeper.exit_code, f"the {stage} does not start: {status.message}\nLog: {keeper.part.log.file}")

    async def _convert(self) -> bool:
        """Makes the demo model's directory once. False when that failed: then the gateway stays up and says so."""
        self.board.begin("convert")
        log = LogFile(self._home.logs / "worker.log")
        child = Child("convert", self._python(("worker.demo", str(self._home.demo_model)), {}), log, lambda line: None)
        self._remember(child)
        try:
            code = await child.ended()
        finally:
            await child.end(CONVERT_PATIENCE_SECONDS, self._hurry)
        if code:
            message = f"the demo model cannot be converted: {child.last_words()}"
            self._failure = Refusal(message)
            self.board.fail("convert", message)
            self._show_worker("failed", message=message)
            return False
        self.board.finish("convert")
        return True

    async def _start_worker(self) -> None:
        keeper = self._keep(
            Part(
                name="worker",
                command=self._worker_command,
                log=LogFile(self._home.logs / "worker.log"),
                is_ready=self._worker_answers,
                patience_seconds=WORKER_PATIENCE_SECONDS,
                hear=self._hear_worker,
                on_start=self._remember,
                on_death=lambda: self.board.part("engine", state="restarting", pid=None),
                final_codes=REFUSALS,
            )
        )
        if not await keeper.until_ready():
            message = self.board.status.part("worker").message
            self._failure = refusal(keeper.exit_code, message)
            self.board.part("engine", state="failed", pid=None, message=message)
            for stage in self.board.status.stages:
                if stage.state == "running":
                    self.board.fail(stage.name, message)

    def _worker_command(self) -> Command:
        self._sockets.worker.unlink(missing_ok=True)  # vLLM leaves its socket behind and cannot bind to it again
        self._plan_before = changed_at(self._home.plan_file)
        self.board.reset(*WORKER_STAGES)
        self.board.begin("plan")
        model = self._wishes.model or self._home.demo_model
        options = ["--model", str(model), "--uds", str(self._sockets.worker), "--plan-file", str(self._home.plan_file)]
        if self._wishes.seats is not None:
            options += ["--seats", str(self._wishes.seats)]
        if parser := self._given.get("DESKMATE_TOOL_PARSER"):
            options += ["--tool-parser", parser]
        if parser := self._given.get("DESKMATE_REASONING_PARSER"):
            options += ["--reasoning-parser", parser]
        return self._python(("worker", *options), {})

    async def _worker_answers(self) -> bool:
        if changed_at(self._home.plan_file) != self._plan_before:
            self._advance(Stage.IMPORT)
        if not await http.answers(http.Place(socket=self._sockets.worker), "/health"):
            return False
        self.board.finish(*WORKER_STAGES)
        self._show_engine()
        return True

    def _hear_worker(self, line: str) -> None:
        if stage := stage_of(line):
            self._advance(stage)

    def _advance(self, stage: Stage) -> None:
        """A stage that begins ends those before it; one that came already does not begin again."""
        order = WORKER_STAGES.index(stage.value)
        if self.board.status.stage(stage.value).state != "waiting":
            return
        self.board.finish(*WORKER_STAGES[:order])
        self.board.begin(stage.value)
        if stage is Stage.IMPORT:
            self._show_model()

    def _show_model(self) -> None:
        plan = read_json(self._home.plan_file) or {}
        model = plan.get("model", {})
        self.board.change(model=model.get("id"), demo=bool(model.get("demo", self._wishes.demo)))

    async def _watch_engine(self) -> None:
        """vLLM starts its engine as a process of its own, some time after the worker and again after each restart."""
        while not self._wishes.worker_urls:
            await asyncio.sleep(ENGINE_POLL_SECONDS)
            self._show_engine()

    def _show_engine(self) -> None:
        worker, engine = self.board.status.part("worker"), self.board.status.part("engine")
        if worker.pid is None or worker.state not in ("starting", "ready"):
            return
        if engine.state == worker.state and engine.pid and is_in_session(engine.pid, worker.pid):
            return  # still the one we know; looking at every process of the machine is not free
        own = [one.pid for one in descendants(worker.pid) if one.name.startswith("VLLM::EngineCor") and one.running]
        pid = own[0] if own else (worker.pid if worker.state == "ready" else None)
        self.board.part("engine", state=worker.state, pid=pid, restarts=worker.restarts)

    async def _wait_for_workers(self) -> None:
        """Workers that run elsewhere are nobody's children: ready means that each answered once."""
        self.board.begin("serve")
        for place in map(http.place_of, self._wishes.worker_urls):
            await until(partial(http.answers, place, "/health"), ENGINE_POLL_SECONDS)
        self.board.finish("serve")
        self._show_worker("external")
        if answer := await http.body(gateway_place(self._wishes), "/readyz"):
            self.board.change(model=(json.loads(answer).get("model") or {}).get("id"))

    def _show_worker(self, state: PartState, message: str = "") -> None:
        self.board.part("worker", state=state, message=message)
        self.board.part("engine", state=state, message=message)

    # -- restarts ---------------------------------------------------------------------------------------------

    async def _restart(self, part: str) -> None:
        """Raises Refusal. One gateway after the other, each replaced by one that takes connections already."""
        names = self._wishes.gateway_names if part == "gateway" else ("worker",)
        if part == "worker" and self._wishes.worker_urls:
            raise UsageError("the worker runs elsewhere; restart it there")
        for name in names:
            keeper = self._keepers.get(name)
            if keeper is None or not keeper.ready.is_set() or keeper.failed.is_set():
                raise Refusal(f"the {name} has not started; `./deskmate status` shows why")
            if not await self._renewed(keeper):
                raise Refusal(f"the new {name} does not start; its log says why: {keeper.part.log.file}")

    async def _renewed(self, keeper: Keeper) -> bool:
        if keeper.part.name != "worker":
            return await keeper.replace(self._hurry)
        drains = self.board.status.part("worker").state == "ready"
        patience = (WORKER_DRAIN_SECONDS, WORKER_PATIENCE_SECONDS[-1]) if drains else WORKER_PATIENCE_SECONDS
        return await keeper.restart(patience, self._hurry)

    # -- keeping track ----------------------------------------------------------------------------------------

    def _keep(self, part: Part) -> Keeper:
        keeper = self._keepers[part.name] = Keeper(part, self.board)
        keeper.start()
        return keeper

    def _python(self, module: tuple[str, ...], settings: Mapping[str, str]) -> Command:
        return Command((str(self._home.python), "-m", *module), {**self._inherited, **settings}, self._root)

    def _remember(self, child: Child) -> None:
        self._records[child.record.name] = child.record
        self._write_down()
        self._guard.learn(child.record)

    def _write_down(self) -> None:
        """What a later call needs: the gateway's settings for `user` and `key`, the records to end what a kill left."""
        write_json(
            stack_file(self._home),
            {
                "settings": self._settings,
                "sockets": str(self._sockets.folder),
                "records": [asdict(record) for record in self._records.values()],
            },
        )


class Guard:
    """The process that ends the parts when this one is killed. Its pipe closes with us, whatever ends us."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets
        self._known: dict[str, Record] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def learn(self, record: Record) -> None:
        self._known[record.name] = record
        if self._process is None or self._process.poll() is not None:
            self._process = self._started()
        for known in self._known.values():
            self._send(known)

    def dismiss(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._write(b"null\n")
            self._process.stdin.close()
            self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.guard", str(self._sockets)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _send(self, record: Record) -> None:
        self._write(json.dumps(asdict(record)).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was killed just now; the next part that starts starts it again
            self._process.stdin.write(line)
            self._process.stdin.flush()


def first_status(wishes: Wishes) -> Status:
    now = time.time()
    gateways = [(name, False) for name in wishes.gateway_names]
    names = [("redis", bool(wishes.redis_url)), *gateways, ("worker", False), ("engine", False)]
    elsewhere = bool(wishes.worker_urls)
    stages = ["gateway", "serve"] if elsewhere else ["gateway", *(["convert"] if wishes.demo else []), *WORKER_STAGES]
    myself = process(os.getpid())
    return Status(
        address=wishes.address,
        pid=os.getpid(),
        start_ticks=myself.start_ticks if myself else 0,
        started_at=now,
        demo=wishes.demo,
        parts=tuple(
            PartStatus(name, "external" if runs_elsewhere else "starting", now) for name, runs_elsewhere in names
        ),
        stages=tuple(StageStatus(name) for name in ([] if wishes.redis_url else ["redis"]) + stages),
    )


@contextmanager
def claimed(home: Home) -> Iterator[None]:
    """One stack for a data folder. The kernel gives the claim back whatever ends us."""
    with (home.run / "supervisor.lock").open("w") as file:
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise already_running(home) from None
                time.sleep(POLL_SECONDS)
        yield


def already_running(home: Home) -> AlreadyRunning:
    status = read_status(home.status_file)
    where = f" at {status.address} (pid {status.pid})" if status else ""
    return AlreadyRunning(f"Deskmate already runs{where} for {home.folder}; `./deskmate down` stops it")


def end_left_over(home: Home) -> bool:
    """Ends what a killed supervisor left, by pid and start time, in the order of a stop. True: there was some."""
    stack = read_json(stack_file(home)) or {"records": [], "sockets": ""}
    left = [record for record in in_order(Record(**one) for one in stack["records"]) if record.left_over()]
    for record in left:
        end(record, LEFT_OVER_PATIENCE_SECONDS)
    if stack["sockets"]:
        remove_folder(Path(stack["sockets"]))
    return bool(left)


def refuse_taken_port(wishes: Wishes) -> None:
    for door in opened(wishes.host, wishes.port):
        door.close()


def refusal(exit_code: int, message: str) -> Refusal:
    """A part's exit code is ours: 69 and 78 mean the same everywhere."""
    return {69: PortInUse, 78: BadConfiguration, 2: BadConfiguration}.get(exit_code, Refusal)(message)


def choose_redis(home: Home) -> redis.Server:
    """Remembers which server wrote the data: another one may not read it."""
    note = home.redis / "written-by"
    written_by = note.read_text().strip() if note.exists() else None
    server = redis.choose(redis.installed_server(), redis.embedded_server(home.env), written_by)
    write_private(note, server.kind + "\n")
    return server


def redis_command(
    home: Home, sockets: Sockets, password: str, inherited: Mapping[str, str], durability: str = "always"
) -> tuple[redis.Server, Command]:
    """The server for this data folder, configured, and how it is run."""
    server = choose_redis(home)
    config = home.run / "redis.conf"
    limit = redis.memory_limit_bytes(redis.total_memory_bytes())
    write_private(config, redis.configuration(sockets.redis, password, limit, durability))
    return server, Command((str(server.binary), str(config)), inherited, home.redis)


def gateway_place(wishes: Wishes) -> http.Place:
    """Where the gateway is reached from here: a wildcard means loopback too."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(wishes.host, wishes.host)
    return http.Place(host=host, port=wishes.port, tls=wishes.tls_cert is not None)


def drain_seconds(given: Mapping[str, str]) -> float:
    try:
        return float(given.get("DESKMATE_DRAIN_SECONDS", GATEWAY_DRAIN_SECONDS))
    except ValueError:
        return GATEWAY_DRAIN_SECONDS  # the gateway refuses it and says so


def stack_file(home: Home) -> Path:
    return home.run / "stack.json"


def changed_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
