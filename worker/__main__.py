"""`python -m worker`: probe, plan, say why, become vLLM's server. Parses and calls, nothing else.

Never imports torch or vLLM: every refusal is one line on stderr within moments (exit codes in refusal.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from worker.hardware import Hardware, probe
from worker.listen import OnPort, OnSocket
from worker.model import read_model
from worker.plan import Plan, Reason, Wishes, plan
from worker.refusal import Refusal, Unavailable

ROOT = Path(__file__).resolve().parent.parent
SERVER = ("-m", "vllm.entrypoints.openai.api_server")
PLAN_DESCRIPTOR = "DESKMATE_PLAN_DESCRIPTOR"  # read by endpoint.py


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except Refusal as refusal:
        print(f"worker: {refusal}", file=sys.stderr)
        return refusal.exit_code


def run(options: argparse.Namespace) -> int:
    model = read_model(options.model, options.served_name)
    hardware = probe()
    made = plan(hardware, model, wishes(options))
    if options.explain:
        print(json.dumps(made.to_json(), indent=2) if options.json else table(made))
        return 0
    check_engine(hardware)
    place = OnSocket(options.uds) if options.uds else OnPort(options.host, options.port)
    place.make_free()
    if options.plan_file:
        write_atomically(options.plan_file, made.to_json())
    return become_vllm(made, place.flags())


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m worker", description="Serves one model directory with vLLM.")
    result.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder with config.json and safetensors"
    )
    result.add_argument("--served-name", metavar="NAME", help="the model's name for clients (default: the folder's)")
    result.add_argument("--seats", type=positive, metavar="N", help="requests that run at the same time")
    result.add_argument("--context", type=positive, metavar="TOKENS", help="longest prompt and answer together")
    result.add_argument(
        "--compile", action="store_true", help="on CPU: ready a minute later, 1.3 to 1.5 times the tokens"
    )
    result.add_argument(
        "--tool-parser", metavar="NAME", help="vLLM's parser of tool calls, or none (default: by the chat template)"
    )
    result.add_argument(
        "--reasoning-parser", metavar="NAME", help="vLLM's parser of thoughts, or none (default: by the chat template)"
    )
    result.add_argument("--explain", action="store_true", help="print the plan with its reasons and start nothing")
    result.add_argument("--json", action="store_true", help="with --explain: as JSON")
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    result.add_argument("--port", type=int, default=8001, metavar="N", help="port to listen on (default: %(default)s)")
    result.add_argument("--uds", type=Path, metavar="PATH", help="listen on this Unix socket instead")
    result.add_argument("--plan-file", type=Path, metavar="PATH", help="write the plan (JSON) here before the start")
    return result


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def wishes(options: argparse.Namespace) -> Wishes:
    return Wishes(
        seats=options.seats,
        context_tokens=options.context,
        compile=options.compile,
        tool_parser=options.tool_parser,
        reasoning_parser=options.reasoning_parser,
        import_path=(ROOT, ROOT / "worker" / "plugin"),
    )


def check_engine(hardware: Hardware) -> None:
    if hardware.engine is None:
        raise Unavailable(
            f"vLLM is not installed in {sys.prefix}. Run `./deskmate up`, or `./deskmate doctor` to see why."
        )
    if hardware.engine == "cuda" and not hardware.cards:
        raise Unavailable(
            "the installed vLLM needs an NVIDIA card and none is visible. Install the driver or the CPU build."
        )


def table(made: Plan) -> str:
    rows = [Reason("model", made.model.id, f"{made.model.architecture}, {made.model.weights.parameters:,} parameters"),
            *made.reasons]  # fmt: skip
    first = max(len(row.choice) for row in rows)
    second = min(32, max(len(row.value) for row in rows))
    return "\n".join(line for row in rows for line in table_lines(row, first, second))


def table_lines(row: Reason, first: int, second: int) -> list[str]:
    reasons = textwrap.wrap(row.reason, 72)
    if len(row.value) > second:
        reasons.insert(0, "")
    left = [f"{row.choice:<{first}}  {row.value:<{second}}  "] + [" " * (first + second + 4)] * len(reasons)
    return [f"{a}{b}".rstrip() for a, b in zip(left, reasons, strict=False)]


def write_atomically(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise Unavailable(
            f"cannot write the plan to {path}: {error.strerror}. Give --plan-file another path."
        ) from None


def become_vllm(made: Plan, listen_flags: tuple[str, ...]) -> NoReturn:
    """The same process id from here on. The plan travels by an open, unnamed file."""
    environment = child_environment(os.environ, made.environment)
    environment[PLAN_DESCRIPTOR] = str(open_file_with(json.dumps(made.to_json()).encode()))
    os.execve(sys.executable, [sys.executable, *SERVER, *made.flags, *listen_flags], environment)  # noqa: S606


def child_environment(inherited: Mapping[str, str], planned: Mapping[str, str]) -> dict[str, str]:
    """Search paths are put in front of what is there; everything else of the plan replaces it."""
    result = {**inherited, **planned}
    for name in ("PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH"):
        if name in planned and inherited.get(name):
            result[name] = f"{planned[name]}:{inherited[name]}"
    result.pop("PROMETHEUS_MULTIPROC_DIR", None)  # the gateway's; here it would hide our metrics
    return result


def open_file_with(content: bytes) -> int:
    descriptor = os.memfd_create("plan", 0)  # 0: stays open over exec
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
