"""What the documentation puts into the system: nginx' and Prometheus' files, an account, units. As root, aside.

Each runs in a namespace with folders of its own where it writes, so that this machine stays as it is. systemd itself,
which would be the first process, is not started.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.checkout import copied
from tests.docs.commands import commands, shell
from tests.servers import missing

SECONDS = 120.0
ASIDE = """
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc
mount --bind /mnt/etc /etc
for place in /srv /run /var/lib /var/log; do mount -t tmpfs -o mode=0755 tmpfs $place; done
mkdir -p /srv/deskmate /srv/models/Qwen2.5-1.5B-Instruct /var/lib/nginx /var/log/nginx
mount --bind . /srv/deskmate
cd /srv/deskmate
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied(tmp_path_factory.mktemp("system") / "deskmate")
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(folder)], check=True)
    return folder


def types(checkout: Path, text: str, *tools: str) -> str:
    """What the commands print on a machine of their own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: for folders of its own in place of /etc and others")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for tool in ("unshare", *tools):
        if shutil.which(tool, path=path) is None:
            missing(tool)
    (checkout / "typed").write_text(f"{ASIDE}\n{text}")
    apart = "unshare --mount --net bash -euo pipefail typed 2>&1"
    done = shell(apart, checkout, {"PATH": path}, SECONDS)
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    return done.stdout


def test_an_account_and_units_that_systemd_takes_and_their_removal(checkout: Path):
    look = "echo looked; stat --format '%A %U %n' var /etc/deskmate.env; cat /etc/systemd/system/deskmate.service\n"
    gone = "echo gone; ls /etc/systemd/system; ! getent passwd deskmate"
    typed = [commands("service-account"), commands("service-units"), look, commands("remove-service"), gone]
    said, _, rest = types(checkout, "".join(typed), "useradd", "systemd-analyze").partition("looked\n")
    assert said == ""
    seen, _, left = rest.partition("gone\n")
    assert seen.startswith("drwx------ deskmate var\n-rw------- root /etc/deskmate.env\n")
    assert 'ExecStart="/srv/deskmate/deskmate" "up" "--model" "/srv/models/Qwen2.5-1.5B-Instruct"' in seen
    assert "deskmate" not in left


def test_nginx_takes_the_example_where_debian_has_its_files(checkout: Path):
    told = types(checkout, commands("tls-trial") + commands("nginx"), "nginx", "openssl")
    assert "test is successful" in told
    assert "[warn]" not in told


def test_prometheus_takes_its_configuration_and_finds_the_rules(checkout: Path):
    told = types(checkout, commands("prometheus"), "promtool")
    assert "SUCCESS: 2 rule files found" in told or told.count("rules found") == 2
