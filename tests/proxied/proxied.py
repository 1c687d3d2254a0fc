"""Debian's nginx with the example configuration in front of whatever listens on a port; knows no gateway."""

import asyncio
import atexit
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

LOGGED_SECONDS = 10.0
EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx" / "deskmate.conf"
MAIN = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
{user}
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/deskmate.conf;
}}
"""


def nginx_binary() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


@cache
def certificate() -> tuple[Path, Path]:
    """Chain and key for localhost and 127.0.0.1, made once."""
    folder = Path(tempfile.mkdtemp(prefix="dmcert"))
    atexit.register(shutil.rmtree, folder)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = folder / "cert.pem", folder / "key.pem"
    place = ["-keyout", str(files[1]), "-out", str(files[0])]
    subprocess.run([*command.split(), *names, *place], check=True, capture_output=True)
    return files


def trust() -> ssl.SSLContext:
    """Believes this certificate and no other."""
    return ssl.create_default_context(cafile=certificate()[0])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class Nginx:
    """`with Nginx(upstream_port) as nginx: …`. `changes` are made in the example beside those a test machine needs."""

    upstream_port: int
    changes: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Nginx":
        self.folder = Path(tempfile.mkdtemp(prefix="dmnginx"))
        self.http_port, self.port = free_ports(2)
        user = "user root;" if Path("/proc/self").stat().st_uid == 0 else ""
        (self.folder / "nginx.conf").write_text(MAIN.format(folder=self.folder, user=user))
        (self.folder / "deskmate.conf").write_text(self.configuration())
        self.tested = subprocess.run([*self._command(), "-t"], capture_output=True, text=True, check=False).stderr
        self.process = subprocess.Popen(self._command(), stderr=subprocess.DEVNULL)
        self._wait_until_listening()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder)

    def configuration(self) -> str:
        """The example as it stands in the repository, with what differs here put in its place: all of it is here."""
        chain, key = certificate()
        text = EXAMPLE.read_text()
        differences = {
            "deskmate.example.org": "localhost",
            "listen 80;": f"listen 127.0.0.1:{self.http_port};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2;",
            "listen [::]:80;": "",
            "listen [::]:443 ssl http2;": "",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{self.upstream_port};",
            "/etc/ssl/deskmate/fullchain.pem": str(chain),
            "/etc/ssl/deskmate/key.pem": str(key),
            "/var/log/nginx/deskmate.log": f"{self.folder}/access.log",
        }
        for written, here in (differences | self.changes).items():
            assert written in text, f"the example no longer says {written!r}"
            text = text.replace(written, here)
        return text

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "error.log").read_text()

    async def until_logged(self, end: str) -> None:
        """Until the newest access has this end: it is written a moment after the answer."""
        async with asyncio.timeout(LOGGED_SECONDS):
            while not (self.folder / "access.log").read_text().endswith(f"{end}\n"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def _command(self) -> list[str]:
        binary = nginx_binary()
        assert binary is not None
        return [binary, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", f"{self.folder}/error.log"]

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError(f"nginx did not start: {self.tested} {self.log}")


def directive(name: str) -> str:
    """The value of a directive that the example states once."""
    found = re.findall(rf"^\s*{name} ([^;]+);", EXAMPLE.read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} is stated {len(found)} times"
    return str(found[0])
