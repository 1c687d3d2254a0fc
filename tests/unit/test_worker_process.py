"""What surrounds the plan: the machine, the place to listen, the hand-over to vLLM, the metrics."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from worker.__main__ import child_environment, open_file_with, table, write_atomically
from worker.__main__ import parser as command_line
from worker.endpoint import DeskmatePlugin, WorkerMetrics, read_plan
from worker.hardware import card, group_limits, meminfo, probe
from worker.listen import OnPort, OnSocket, owner_of_port
from worker.model import Model, Weights
from worker.plan import GIB, Plan, Wishes, plan
from worker.refusal import BadConfiguration, Unavailable
from worker.vram import host_usage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made() -> Plan:
    model = Model(
        id="tiny", path=Path("/models/tiny"), architecture="Qwen2ForCausalLM", weights=Weights(40, 80),
        context_tokens=4096, kv_values_per_token=512, hidden=128, vocabulary=2048, vision=False, added_tokens=(),
        chat_template="{{ messages }}",
    )  # fmt: skip
    return plan(probe(), model, Wishes())


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


# --- where to listen ------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_refused_with_its_owner(taken_port: int) -> None:
    with pytest.raises(Unavailable, match=rf"port {taken_port} on 127.0.0.1 is in use by process {os.getpid()} \("):
        OnPort("127.0.0.1", taken_port).make_free()


def test_a_free_port_is_left_free() -> None:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    OnPort("127.0.0.1", port).make_free()
    assert owner_of_port(port) is None


def test_a_host_that_cannot_be_resolved_is_refused() -> None:
    with pytest.raises(Unavailable, match="no host"):
        OnPort("no host", 8001).make_free()


def test_a_dead_socket_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    OnSocket(path).make_free()
    assert not path.exists()


def test_a_living_socket_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(Unavailable, match="another server listens"):
            OnSocket(path).make_free()
        assert path.exists()


def test_a_file_at_the_sockets_path_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("dear")
    with pytest.raises(Unavailable, match="not a socket"):
        OnSocket(path).make_free()
    assert path.read_text() == "dear"


@pytest.mark.parametrize("path", ["/tmp/" + "x" * 110, "/no/such/folder/w.sock"])
def test_a_socket_that_could_not_be_bound_is_refused(path: str) -> None:
    with pytest.raises(BadConfiguration, match=str(Path(path).parent)):
        OnSocket(Path(path)).make_free()


# --- the machine ----------------------------------------------------------------------------------------------------


def test_the_probe_sees_this_machine() -> None:
    hardware = probe()
    assert hardware.cores == len(os.sched_getaffinity(0))
    assert 0 < hardware.available_bytes <= hardware.memory_bytes


def test_a_containers_memory_limit_counts_less_what_it_could_give_back(tmp_path: Path) -> None:
    group = tmp_path / "docker" / "c1"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{4 * GIB}\n")
    (group / "memory.current").write_text(f"{3 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    (tmp_path / "docker" / "memory.max").write_text("max\n")
    (tmp_path / "docker" / "memory.current").write_text("7\n")
    assert list(group_limits(tmp_path, "/docker/c1", "memory.max", "memory.current")) == [(4 * GIB, 2 * GIB)]


def test_a_memory_nodes_file_is_read_like_the_machines(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("Node 0 MemTotal: 100 kB\nNode 0 MemFree: 40 kB\nNode 0 Inactive(file): 2 kB\n")
    assert meminfo(path) == (102400, 43008)


def test_a_card_is_read_through_nvmls_own_names() -> None:
    """pynvml's functions exist; a stand-in answers them, for there is no card here."""
    import pynvml

    answers = {
        "nvmlDeviceGetHandleByIndex": 7,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, free=23 * GIB, used=GIB),
        "nvmlDeviceGetName": b"A card",
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetCudaComputeCapability": (8, 9),
    }
    assert all(hasattr(pynvml, name) for name in answers)
    library = SimpleNamespace(**{name: lambda _, answer=answer: answer for name, answer in answers.items()})
    read = card(library, 0)
    assert (read.name, read.uuid, read.total_bytes, read.capability) == ("A card", "GPU-1", 24 * GIB, (8, 9))


def test_the_memory_of_a_process_includes_its_children() -> None:
    program = "import sys; kept = bytearray(60_000_000); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        usage = host_usage()
        assert child.stdin is not None
        child.stdin.close()
    sizes = {pid: size for pid, _, size in usage.processes}
    assert sizes[child.pid] >= 60_000_000
    assert usage.used_bytes == sum(sizes.values())
    assert os.getpid() in sizes


# --- the hand-over --------------------------------------------------------------------------------------------------


def test_search_paths_are_put_in_front_and_the_gateways_metrics_folder_is_dropped() -> None:
    inherited = {"PYTHONPATH": "/theirs", "HOME": "/h", "PROMETHEUS_MULTIPROC_DIR": "/m", "VLLM_PLUGINS": "other"}
    planned = {"PYTHONPATH": "/ours", "VLLM_PLUGINS": "deskmate", "LD_PRELOAD": "/lib.so"}
    assert child_environment(inherited, planned) == {
        "PYTHONPATH": "/ours:/theirs", "HOME": "/h", "VLLM_PLUGINS": "deskmate", "LD_PRELOAD": "/lib.so",
    }  # fmt: skip


def test_the_plan_travels_by_an_open_file_that_may_be_read_twice() -> None:
    descriptor = open_file_with(b'{"version": 1}')
    try:
        assert read_plan(descriptor) == read_plan(descriptor) == {"version": 1}
        assert os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_the_plan_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    write_atomically(path, {"version": 1})
    assert json.loads(path.read_text()) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot write the plan"):
        write_atomically(tmp_path / "absent" / "plan.json", {})


@pytest.mark.parametrize("seats", ["0", "-1", "many", "1.5"])
def test_senseless_seats_are_refused_by_value(seats: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line().parse_args(["--model", "m", "--seats", seats])
    assert repr(seats) in capsys.readouterr().err


def test_the_table_names_every_choice_and_stays_narrow(made: Plan) -> None:
    lines = table(made).splitlines()
    assert all(any(line.startswith(one.choice) for line in lines) for one in made.reasons)
    assert max(map(len, lines)) <= 130


@pytest.mark.parametrize("name", ["lib", "my dësk"])
def test_the_preload_reaches_the_process_from_any_folder(tmp_path: Path, made: Plan, name: str) -> None:
    library = tmp_path / name / "libiomp5.so"
    library.parent.mkdir()
    shutil.copy(Path(sys.prefix) / "lib" / "libiomp5.so", library)
    planned = plan(replace(probe(), cards=(), openmp=library), made.model, Wishes()).environment
    paths = {key: planned[key] for key in ("LD_PRELOAD", "LD_LIBRARY_PATH") if key in planned}
    ended = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/maps').read())"], capture_output=True, text=True,
        env={**os.environ, **paths}, timeout=60,
    )  # fmt: skip
    assert str(library) in ended.stdout
    assert ended.stderr == ""


# --- metrics --------------------------------------------------------------------------------------------------------


def test_the_plans_numbers_and_the_memory_are_exported(made: Plan) -> None:
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(made.to_json()))
    text = generate_latest(registry).decode()
    assert 'deskmate_worker_info{architecture="Qwen2ForCausalLM"' in text
    assert "deskmate_worker_seats 16.0" in text
    assert "deskmate_worker_context_tokens 4096.0" in text
    assert f'deskmate_worker_memory_process_bytes{{pid="{os.getpid()}"' in text
    assert "deskmate_worker_memory_total_bytes" in text


async def test_the_served_plan_takes_the_kv_tokens_that_the_engine_measured(
    made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = open_file_with(json.dumps(made.to_json()).encode())
    monkeypatch.setenv("DESKMATE_PLAN_DESCRIPTOR", str(descriptor))
    plugin = DeskmatePlugin()
    os.close(descriptor)
    cache = SimpleNamespace(num_gpu_blocks=10, block_size=32)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))
    await plugin.init_state(engine, SimpleNamespace(), SimpleNamespace())
    assert (plugin.plan["kv_tokens"], plugin.plan["block_tokens"]) == (320, 32)


def test_vllm_finds_the_plug_in_by_its_static_folder() -> None:
    program = (
        "from importlib.metadata import entry_points\n"
        "(one,) = entry_points(group='vllm.endpoint_plugins', name='deskmate')\n"
        "print(one.load().name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'worker' / 'plugin'}"}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, cwd="/"
    )
    assert ended.stdout == "deskmate\n", ended.stderr
