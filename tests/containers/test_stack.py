"""The compose stack, really started and looked at from outside. What ends or restarts a part comes last."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from deploy.redis import CONFIGURATION
from tests.containers.engine import Engine, inside
from tests.containers.stack import SERVICES, Stack

USERS = {"gateway": 10001, "worker-cpu": 10002, "redis": 10003, "prometheus": 10004, "grafana": 10005,
         "node-exporter": 10006}  # fmt: skip
KEEPERS_OF_SECRETS = {"gateway_secret": "gateway", "gateway_metrics_token": "gateway", "redis_password": "gateway",
                      "redis_users": "redis", "prometheus_metrics_token": "prometheus",
                      "grafana_admin_password": "grafana"}  # fmt: skip
ON_INNER_NETWORKS_ONLY = ("redis", "worker-cpu", "prometheus", "node-exporter")
DEAD_END_SECONDS = 1.0  # long enough for a packet on this machine
SECONDS = 10.0  # for what does arrive: also a packet that is sent once more


def test_every_part_is_healthy(stack: Stack):
    assert {service: stack.health(service) for service in SERVICES} == dict.fromkeys(SERVICES, "healthy")


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_runs_unprivileged_within_its_limits(stack: Stack, service: str):
    container = stack.container(service)
    host = container["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"] is True
    assert host["Init"] is True
    assert 0 < host["Memory"] <= 8 << 30
    assert 0 < host["PidsLimit"] <= 2048
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert not any("docker.sock" in mount["Source"] for mount in container["Mounts"])


@pytest.mark.parametrize("service", SERVICES)
def test_its_server_has_no_right_of_root_and_writes_to_its_own_places_only(stack: Stack, service: str):
    status = Path(f"/proc/{stack.process(service)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert set(fields["Uid"].split()) == {str(USERS[service])}
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    for place in ("/probe", "/etc/probe", "/usr/bin/probe"):
        refused = stack.execute(service, "sh", "-c", f"echo > {place}", check=False)
        assert "Read-only file system" in refused.stderr


def test_a_secret_is_readable_by_its_service_only(stack: Stack):
    folder = stack.checkout / "compose" / "secrets"
    assert {file.name for file in folder.iterdir()} == set(KEEPERS_OF_SECRETS)
    for name, service in KEEPERS_OF_SECRETS.items():
        found = (folder / name).stat()
        assert (found.st_mode & 0o777, found.st_uid) == (0o600, USERS[service])
        assert stack.execute(service, "cat", f"/run/secrets/{name}").stdout == (folder / name).read_text()
    for service in SERVICES:
        texts = json.dumps(stack.container(service)["Config"])
        assert not any((folder / name).read_text().strip() in texts for name in KEEPERS_OF_SECRETS)


def test_an_openai_client_reads_a_chat_to_its_end(client: OpenAI):
    model = client.models.list().data[0].id
    events = list(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Tell me something."}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [choice for event in events for choice in event.choices]
    assert "".join(choice.delta.content or "" for choice in said)
    assert said[-1].finish_reason in ("stop", "length")
    assert events[-1].usage
    assert events[-1].usage.completion_tokens > 0


def test_only_gateway_and_grafana_publish_a_port_and_on_loopback(stack: Stack):
    published = {
        service: [place for places in ports.values() for place in places or ()]
        for service in SERVICES
        if (ports := stack.container(service)["NetworkSettings"]["Ports"])
    }
    assert {service: places for service, places in published.items() if places} == {
        "gateway": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}],
        "grafana": [{"HostIp": "127.0.0.1", "HostPort": str(stack.grafana_port)}],
    }


def test_another_machine_reaches_nothing(stack: Stack):
    """The machine is a network namespace with a cable to the engine's, which routes for it."""
    if not stack.engine.has_own_network:
        pytest.skip("the engine shares the network of this machine, to which no cable is laid")
    places = [
        (stack.address("redis", "inside"), 6379),
        (stack.address("worker-cpu", "inside"), 8001),
        (stack.address("worker-cpu", "watch"), 8001),
        (stack.address("prometheus", "watch"), 9090),
        (stack.address("node-exporter", "watch"), 9100),
        ("192.0.2.1", stack.port),
        ("192.0.2.1", 6379),
    ]
    with another_machine(stack.engine) as machine:
        with stack.engine.network():
            listener = socket.create_server(("192.0.2.1", 0))
        with listener, inside(machine):
            socket.create_connection(listener.getsockname(), SECONDS).close()  # the cable works
            reached = [place for place in places if reaches(place)]
    assert reached == []


@contextmanager
def another_machine(engine: Engine) -> Iterator[Path]:
    """Its network; 192.0.2.1 is the engine's end of the cable and its way to everywhere else."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    namespace = Path(f"/proc/{holder.pid}/ns/net")
    try:
        assert holder.stdout
        holder.stdout.readline()
        with engine.network():
            ip("link add dm-here type veth peer name dm-there")
            ip(f"link set dm-there netns {holder.pid}")
            ip("address add 192.0.2.1/30 dev dm-here")
            ip("link set dm-here up")
        with inside(namespace):
            ip("address add 192.0.2.2/30 dev dm-there")
            ip("link set dm-there up")
            ip("route add default via 192.0.2.1")
        yield namespace
    finally:
        with engine.network():
            subprocess.run(["ip", "link", "delete", "dm-here"], check=False)  # goes with the namespace, but later
        holder.kill()
        holder.communicate()


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def reaches(place: tuple[str, int], seconds: float = DEAD_END_SECONDS) -> bool:
    try:
        socket.create_connection(place, seconds).close()
    except OSError:
        return False
    return True


def test_the_inner_networks_have_no_way_out(stack: Stack):
    """To the other machine, which the gateway can reach: it publishes a port, so its network has a way out."""
    if not stack.engine.has_own_network:
        pytest.skip("the engine shares the network of this machine, to which no cable is laid")
    with another_machine(stack.engine) as machine:
        with inside(machine):
            listener = socket.create_server(("192.0.2.2", 0))
        with listener:
            for service in ON_INNER_NETWORKS_ONLY:
                with inside(Path(f"/proc/{stack.process(service)}/ns/net")):
                    assert not reaches(listener.getsockname()), service
            with inside(Path(f"/proc/{stack.process('gateway')}/ns/net")):
                assert reaches(listener.getsockname(), SECONDS)


def test_redis_keeps_what_a_local_start_keeps_and_obeys_nobody(stack: Stack):
    local = dict(line.split(" ", 1) for line in CONFIGURATION.splitlines())
    here = dict(
        line.split(" ", 1)
        for line in (stack.checkout / "deploy/compose/redis.conf").read_text().splitlines()
        if not line.startswith("#")
    )
    differ = {"port", "unixsocket", "unixsocketperm", "requirepass", "dir", "logfile", "maxmemory", "appendfsync"}
    assert {name: value for name, value in local.items() if name not in differ} == {
        name: here.get(name) for name in local if name not in differ
    }
    assert stack.container("redis")["Args"][-2:] == ["--appendfsync", "always"]
    password = (stack.checkout / "compose/secrets/redis_password").read_text()
    for user, secret, command in (
        ("default", "", "PING"),
        ("health", "-", "GET dm:meta"),
        ("deskmate", "wrong", "PING"),
        ("deskmate", password, "FLUSHALL"),
        ("deskmate", password, "CONFIG GET *"),
        ("deskmate", password, "GET other"),
    ):
        words = ["redis-cli", "--no-auth-warning", "--user", user, "--pass", secret, *command.split()]
        said = stack.execute("redis", *words, check=False)
        assert any(no in said.stdout + said.stderr for no in ("NOPERM", "WRONGPASS", "NOAUTH")), (user, command, said)


def test_prometheus_sees_every_target_up_and_the_disk_of_the_data(stack: Stack):
    """By what its own page tells, asked for inside: nobody else reaches it."""

    def healths() -> dict[str, str]:
        answer = json.loads(asked(stack, "/api/v1/targets"))
        return {target["labels"]["job"]: target["health"] for target in answer["data"]["activeTargets"]}

    jobs = ("deskmate-gateway", "deskmate-worker", "deskmate-host", "deskmate-prometheus")
    eventually(lambda: healths() == dict.fromkeys(jobs, "up"), 60, lambda: str(healths()))
    disks = json.loads(asked(stack, "/api/v1/query?query=node_filesystem_size_bytes"))["data"]["result"]
    assert "/data" in {disk["metric"]["mountpoint"] for disk in disks}
    rules = json.loads(asked(stack, "/api/v1/rules"))["data"]["groups"]
    assert {"recording.yml", "alerts.yml"} <= {Path(group["file"]).name for group in rules}


def asked(stack: Stack, path: str) -> str:
    return stack.execute("prometheus", "wget", "-q", "-O", "-", f"http://127.0.0.1:9090{path}").stdout


def test_what_stands_in_for_grafana_finds_its_files_its_secret_and_its_store(stack: Stack):
    with stack.engine.network():
        connection = http.client.HTTPConnection("127.0.0.1", stack.grafana_port, timeout=5)
        connection.request("GET", "/found")
        found = json.loads(connection.getresponse().read())
        connection.close()
    assert found["user"] == USERS["grafana"]
    assert found["password_characters"] >= 32
    assert len(found["dashboards"]) == 3
    assert any("type: prometheus" in text for text in found["provisioning"].values())
    assert found["settings"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert "GF_SECURITY_ADMIN_PASSWORD" not in found["settings"]


def test_a_worker_killed_in_the_middle_of_an_answer_comes_back_and_the_stack_with_it(stack: Stack, client: OpenAI):
    """Killed from outside: what `docker kill` ends, the engine would not start again."""
    model = client.models.list().data[0].id
    before = stack.container("worker-cpu")
    stream = client.responses.create(model=model, input="Go on and on.", max_output_tokens=400, stream=True)
    seen = ""
    for event in stream:
        if event.type == "response.output_text.delta":
            if not seen:
                os.kill(stack.process("worker-cpu"), signal.SIGKILL)
            seen += event.delta
        last = event
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == seen  # what was shown stays, and nothing is repeated
    after = stack.container("worker-cpu")
    assert after["Id"] == before["Id"]
    assert after["RestartCount"] == before["RestartCount"] + 1
    eventually(lambda: {stack.health(service) for service in SERVICES} == {"healthy"}, 120)


def test_down_and_up_keeps_every_conversation_and_a_bad_model_fails_clearly_between(stack: Stack, key: str):
    with stack.client(key) as client:
        conversation = client.conversations.create().id
        client.responses.create(
            model=client.models.list().data[0].id,
            input="Remember this.",
            conversation=conversation,
            max_output_tokens=16,
        )
        before = client.conversations.items.list(conversation).to_dict()
    secrets = {file.name: file.read_text() for file in (stack.checkout / "compose" / "secrets").iterdir()}
    stack.compose("down")
    assert stack.compose("ps", "--all", "--quiet").stdout == ""

    config = stack.model / "config.json"
    config.rename(stack.folder / "config.json")
    failed = stack.compose("up", "--wait", check=False)
    assert failed.returncode == 1
    assert "worker-cpu" in failed.stderr
    assert "unhealthy" in failed.stderr or "exited (78)" in failed.stderr
    assert "config.json" in stack.compose("logs", "worker-cpu").stdout
    (stack.folder / "config.json").rename(config)

    stack.compose("down")  # else the worker is tried again after ever longer pauses, and --wait gives up on the gateway
    stack.init()
    assert {file.name: file.read_text() for file in (stack.checkout / "compose" / "secrets").iterdir()} == secrets
    stack.up()
    with stack.client(key) as client:
        assert client.conversations.items.list(conversation).to_dict() == before


def eventually(holds: Callable[[], bool], seconds: float, says: Callable[[], str] = str) -> None:
    """Looks again until it holds. No event tells: the engine's health checks are polled themselves."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, says()
        time.sleep(0.5)
