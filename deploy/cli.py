"""The command line of `./deskmate`: parses, calls one function, turns a refusal into its exit code. Decides no more."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from deploy import backup, bundle, compose, control, http, service, unbundle
from deploy.checks import bring_packages, run_checks
from deploy.doctor import doctor
from deploy.errors import EXIT_CODES, BadConfiguration, Refusal, UsageError
from deploy.home import Home, home_of
from deploy.indexes import uv_settings
from deploy.install import Environment, development_lock, runtime_lock
from deploy.local import Stack, already_running, refuse_taken_port
from deploy.lock import LockFailed, refresh
from deploy.logs import tail
from deploy.narrator import Narrator, administrator_link, follow
from deploy.redis import DURABILITIES
from deploy.status import Status, read_status
from deploy.wishes import Wishes, number_of, port_of

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTED = 130
PASSED_ON = ("user", "key", "test", "bench")  # what follows these words belongs to somebody else


def main(arguments: list[str]) -> int:
    try:
        return run(arguments, home_of(ROOT, dict(os.environ)))
    except Refusal as refusal:
        print(f"deskmate: {refusal}", file=sys.stderr)
        return refusal.exit_code
    except LockFailed as failure:
        print(f"deskmate: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("deskmate: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(arguments: list[str], home: Home) -> int:
    if arguments and arguments[0] in PASSED_ON:
        return pass_on(arguments[0], arguments[1:], home)
    options = parser().parse_args(arguments)
    match options.command:
        case "up":
            return up(options, arguments, home)
        case "down":
            control.down(home)
        case "restart":
            control.restart(home, options.part)
        case "status":
            control.show_status(home, options.json)
        case "logs":
            control.show_logs(home, options.part, options.lines, options.follow)
        case "doctor":
            return doctor(home)
        case "bundle":
            bundle.make(ROOT, home, options.accelerator, options.model, options.output, say)
        case "compose-init":
            compose.prepare(ROOT, home, compose.Wishes.of(options), say)
        case "backup":
            return backup.backup(ROOT, home, options.file)
        case "restore":
            return backup.restore(
                ROOT, home, options.file, lambda: prepare(home, options.bundle, options.bundle_digest)
            )
        case "service":
            print(units(options, home), end="")
        case "lock":
            environment(home).ensure(runtime_lock())
            refresh(home.env / "bin" / "uv", uv_settings(home.python, os.environ))
    return 0


def parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES)
    result = argparse.ArgumentParser(
        prog="./deskmate",
        description="One GPU, a whole department: starts and looks after Deskmate on this machine.",
        epilog=f"The data lies in ./var, or where DESKMATE_HOME says.\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_up(commands.add_parser("up", help="install what is missing, start everything, keep it running"))
    commands.add_parser("down", help="stop it in the right order")
    again = commands.add_parser("restart", help="restart a part; nobody is refused meanwhile")
    again.add_argument("part", choices=("gateway", "worker"), metavar="PART", help="gateway (all of them) or worker")
    status = commands.add_parser("status", help="what runs, and how it is")
    status.add_argument("--json", action="store_true", help="for programs")
    logs = commands.add_parser("logs", help="what the parts wrote")
    logs.add_argument("part", nargs="?", metavar="PART", help="redis, gateway or worker; all of them when left out")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="so many lines of each (default: 50)")
    commands.add_parser("user", help="create, list, disable people; a fresh sign-in link")
    commands.add_parser("key", help="create, list, revoke API keys")
    commands.add_parser("doctor", help="what is missing and what to do")
    add_bundle(commands.add_parser("bundle", help="one file that installs Deskmate where there is no network"))
    compose.add_options(
        commands.add_parser("compose-init", help="prepare docker-compose.yml: secrets, settings, wheels")
    )
    save = commands.add_parser("backup", help="write everything people have, and the secrets, into one file")
    save.add_argument("file", type=Path, metavar="FILE", help="a new file; - for standard output")
    load = commands.add_parser("restore", help="fill an empty data folder from a backup")
    load.add_argument("file", type=Path, metavar="FILE", help="a backup; - for standard input")
    load.add_argument("--bundle", type=Path, metavar="FILE", help="install from this bundle; no network is asked")
    load.add_argument(
        "--bundle-digest", metavar="DIGEST", help="refuse a bundle with another digest than `bundle` told"
    )
    service.add_options(commands.add_parser("service", help="systemd units for this installation"))
    commands.add_parser("test", help="run every check; with arguments only pytest, with them")
    commands.add_parser("bench", help="measure: bench relay, bench turn")
    commands.add_parser("lock", help="for developers: refresh deploy/locks/")
    return result


def add_up(up_parser: argparse.ArgumentParser) -> None:
    add = up_parser.add_argument
    add("--detach", action="store_true", help="return when it is ready and leave it running")
    add("--model", type=Path, metavar="DIR", help="serve this model directory instead of the demo model")
    add("--bundle", type=Path, metavar="FILE", help="install from this bundle, serve its model; no network is asked")
    add("--bundle-digest", metavar="DIGEST", help="refuse a bundle with another digest than `bundle` told")
    add("--seats", type=positive, metavar="N", help="requests that run at the same time (default: planned)")
    add("--gateways", type=positive, default=1, metavar="N", help="gateway processes on the one address (default: 1)")
    add("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=positive, metavar="N", help="port to listen on (default: 8000)")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM); with --tls-key: HTTPS")
    add("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    add("--redis-url", metavar="URL", help="use this Redis instead of starting one")
    add(
        "--durability",
        choices=DURABILITIES,
        help="always (default): on the disk before it is answered; everysec: a crash may lose the last two seconds",
    )
    add(
        "--worker-url", action="append", metavar="URL", help="use this vLLM instead of starting one; repeat for several"
    )
    add("--supervise", action="store_true", help=argparse.SUPPRESS)  # the process that `--detach` leaves behind


def add_bundle(bundle_parser: argparse.ArgumentParser) -> None:
    add = bundle_parser.add_argument
    kind = bundle_parser.add_mutually_exclusive_group()
    for name, value, where in (("cpu", "cpu", "without"), ("gpu", "cuda", "with")):
        text = f"for machines {where} an NVIDIA card (default: like this one)"
        kind.add_argument(f"--{name}", dest="accelerator", action="store_const", const=value, help=text)
    add("--model", type=Path, metavar="DIR", help="put this model directory in (default: the demo model)")
    add("-o", "--output", type=Path, metavar="FILE", required=True, help="the file to write")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


# -- up -------------------------------------------------------------------------------------------------------


def up(options: argparse.Namespace, arguments: list[str], home: Home) -> int:
    wishes = wishes_of(options, os.environ)
    if options.supervise:
        asyncio.run(Stack(home, ROOT, with_bundled_model(wishes, home), os.environ).run())
        return 0
    if control.running(home) is None:
        refuse_taken_port(wishes)
    elif options.bundle:
        raise already_running(home)  # before its environment and model are replaced
    prepare(home, options.bundle, options.bundle_digest)
    wishes = with_bundled_model(wishes, home)
    return detached(arguments, home, wishes) if options.detach else foreground(home, wishes)


def wishes_of(options: argparse.Namespace, given: Mapping[str, str]) -> Wishes:
    """Options win over DESKMATE_ variables. Refuses what cannot work, before anything is installed."""
    urls = options.worker_url or [
        url.strip() for url in given.get("DESKMATE_WORKER_URLS", "").split(",") if url.strip()
    ]
    wishes = Wishes(
        host=options.host or given.get("DESKMATE_HOST") or "127.0.0.1",
        port=options.port or port_of(given),
        model=options.model.absolute() if options.model else None,
        seats=options.seats or number_of(given, "DESKMATE_SEATS"),
        gateways=options.gateways,
        tls_cert=file_of(options.tls_cert, given.get("DESKMATE_TLS_CERT")),
        tls_key=file_of(options.tls_key, given.get("DESKMATE_TLS_KEY")),
        redis_url=options.redis_url or given.get("DESKMATE_REDIS_URL"),
        durability=options.durability or "always",
        worker_urls=tuple(urls),
        public_url=given.get("DESKMATE_PUBLIC_URL"),
    )
    refuse_nonsense(wishes)
    if options.bundle_digest and not options.bundle:
        raise UsageError("--bundle-digest says what --bundle must be; give --bundle too")
    return wishes


def with_bundled_model(wishes: Wishes, home: Home) -> Wishes:
    """Where a person named neither model nor worker, the model of the bundle comes before the demo."""
    model = unbundle.model(home) if wishes.demo else None
    if model and not model.is_dir():
        raise BadConfiguration(f"the bundle's model {model} is gone; give the bundle again, or another with --model")
    return replace(wishes, model=model) if model else wishes


def refuse_nonsense(wishes: Wishes) -> None:
    if wishes.redis_url and wishes.durability != "always":
        raise UsageError("--durability is for the Redis started here; the one of --redis-url has its own appendfsync")
    if wishes.model and wishes.worker_urls:
        raise UsageError("--model starts a worker here and --worker-url uses one elsewhere; give one of them")
    if wishes.model and not wishes.model.is_dir():
        raise BadConfiguration(f"--model {wishes.model} is not a directory; give one with config.json and safetensors")
    if bool(wishes.tls_cert) != bool(wishes.tls_key):
        raise UsageError("--tls-cert and --tls-key belong together; one of them is missing")
    for file in filter(None, (wishes.tls_cert, wishes.tls_key)):
        if not file.is_file():
            raise BadConfiguration(f"{file} is not a file; give a PEM file to --tls-cert and --tls-key")
    for url in wishes.worker_urls:
        try:
            http.place_of(url)
        except ValueError as error:
            raise UsageError(f"--worker-url {error}") from None


def file_of(option: Path | None, variable: str | None) -> Path | None:
    chosen = option or (Path(variable) if variable else None)
    return chosen.absolute() if chosen else None


def prepare(home: Home, bundle_file: Path | None, digest: str | None) -> None:
    """Makes the environment if need be. TERM interrupts it like Ctrl-C, so that no installer outlives it."""
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        if bundle_file:
            unbundle.bring(bundle_file, digest, home, environment(home).holds(runtime_lock()), say)
        Environment(home, say, wheels=unbundle.wheels(home)).ensure(runtime_lock())
        unbundle.tidy(home, say)
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def foreground(home: Home, wishes: Wishes) -> int:
    stack = Stack(home, ROOT, wishes, os.environ)
    over = threading.Event()
    teller = threading.Thread(
        target=follow, args=(lambda: status_of(home, os.getpid()), narrator(home, wishes), lambda status: over.is_set())
    )
    teller.start()
    try:
        asyncio.run(stack.run())
    finally:
        over.set()
        teller.join()
    say("Stopped.")
    return 0


def detached(arguments: list[str], home: Home, wishes: Wishes) -> int:
    """Starts the supervisor in a session of its own and tells its start until it is ready or has failed."""
    log = home.logs / "supervisor.log"
    with log.open("wb") as errors:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.cli", *arguments, "--supervise"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        follow(
            lambda: status_of(home, supervisor.pid),
            narrator(home, wishes),
            lambda status: supervisor.poll() is not None or bool(status and (status.ready or has_failed(status))),
        )
        status = status_of(home, supervisor.pid)
        if status is not None and status.ready and supervisor.poll() is None:
            return 0
    except KeyboardInterrupt:
        stop(supervisor)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    stop(supervisor)
    print("\n".join(tail(log, 20)), file=sys.stderr)
    return supervisor.returncode or 1


def has_failed(status: Status) -> bool:
    return any(part.state == "failed" for part in status.parts)


def stop(supervisor: subprocess.Popen[bytes]) -> None:
    if supervisor.poll() is None:
        supervisor.send_signal(signal.SIGTERM)
    supervisor.wait()


def status_of(home: Home, pid: int) -> Status | None:
    status = read_status(home.status_file)
    return status if status and status.pid == pid else None


def narrator(home: Home, wishes: Wishes) -> Narrator:
    command = control.gateway_command(home, ["user", "link", "--administrator", "--first", "--json"])
    return Narrator(
        wishes, say, lambda: administrator_link(command, control.gateway_environment(home, ROOT, os.environ), ROOT)
    )


def units(options: argparse.Namespace, home: Home) -> str:
    """The units whose `up` is asked for these options; what the environment says now is not written into them."""
    asked = parser().parse_args(["up", *options.up])
    if asked.detach or asked.bundle:
        raise UsageError("a service stays in the foreground and is installed beforehand: no --detach, no --bundle")
    return service.units(ROOT, home, service.Choice.of(options), wishes_of(asked, {}), os.environ)


# -- what belongs to somebody else -----------------------------------------------------------------------------


def pass_on(word: str, rest: Sequence[str], home: Home) -> int:
    match word:
        case "test":
            bring_packages()
            environment(home).ensure(runtime_lock(), development_lock())
            return run_checks(ROOT, home, rest)
        case "bench":
            environment(home).ensure(runtime_lock(), development_lock())
            os.chdir(ROOT)
            os.execv(home.python, [str(home.python), "-m", "tests.bench", *rest])
        case _:
            control.become_gateway_command(home, ROOT, [word, *rest])
    return 0


def environment(home: Home) -> Environment:
    return Environment(home, say)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
