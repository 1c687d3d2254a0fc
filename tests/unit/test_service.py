"""The systemd units: what systemd itself thinks of them, from odd paths, and who is refused. Starts no unit."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import cli, service
from deploy.errors import BadConfiguration, PortInUse, UsageError
from deploy.home import Home
from deploy.local import GATEWAY_DRAIN_SECONDS
from deploy.wishes import Wishes
from tests.servers import missing

MOST_EXPOSED = 2.0  # of 10; systemd calls this OK


@pytest.fixture(scope="module")
def account() -> pwd.struct_passwd:
    """Somebody who is not root: this very person, or where the tests run as root somebody every system has."""
    return pwd.getpwuid(os.getuid()) if os.getuid() else pwd.getpwnam("www-data")


@pytest.fixture
def place(account: pwd.struct_passwd) -> Iterator[Path]:
    """A folder the account may enter, with blanks, a per cent sign and characters beyond ASCII in its name."""
    top = Path(tempfile.mkdtemp(prefix="dmunit"))
    top.chmod(0o755)
    folder = top / "ein Ordner für 100% Deskmate 单元"
    (folder / "deploy").mkdir(parents=True)
    for file in (folder / "deskmate", folder / "deploy" / "cli.py"):
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    data = folder / "var"
    data.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(data, account.pw_uid, account.pw_gid)
    yield folder
    shutil.rmtree(top)


def printed(place: Path, choice: service.Choice = service.Choice(), up: Wishes = Wishes(), **given: str) -> str:  # noqa: B008
    return service.units(place, Home(place / "var"), choice, up, given)


def analyze(folder: Path, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze")
    for name in service.UNITS:
        (folder / name).write_text(printed(place, service.Choice(unit=name)))
    files = [str(folder / name) for name in service.UNITS if command[0] == "verify" or name.endswith("service")]
    return subprocess.run(["systemd-analyze", *command, *files], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_systemd_takes_every_unit_without_a_warning(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(service, "accelerator", lambda: kind)
    done = analyze(tmp_path, place, "verify", "--man=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_systemd_finds_the_services_little_exposed(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(service, "accelerator", lambda: kind)
    done = analyze(tmp_path, place, "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}")
    found = re.findall(r"exposure level for (\S+): ([\d.]+)", done.stdout)
    assert {name for name, _ in found} == {"deskmate.service", "deskmate-backup.service"}, done.stderr
    assert done.returncode == 0 and all(float(level) <= MOST_EXPOSED for _, level in found), found


def test_the_paths_stand_in_the_units_as_systemd_reads_them(place: Path):
    text = printed(place, up=Wishes(model=place / "var", port=8080))
    written = str(place).replace("%", "%%")
    assert f"\nWorkingDirectory={written}\n" in text
    assert f'\nExecStart="{written}/deskmate" "up" "--model" "{written}/var" "--port" "8080"\n' in text
    assert f'\nEnvironment="DESKMATE_HOME={written}/var" ' in text
    assert "@" not in text.replace("@system-service", "").replace("@privileged", "")


def test_a_checkout_at_home_is_let_in_again_read_only_and_its_data_to_be_written():
    at_home = service.places([Path("/home/ada/deskmate"), Path("/models/one")], Path("/home/ada/deskmate/var"))
    assert at_home.splitlines() == [
        "ProtectHome=tmpfs",
        'BindReadOnlyPaths="/home/ada/deskmate"',
        'BindPaths="/home/ada/deskmate/var"',
    ]
    elsewhere = service.places([Path("/srv/deskmate")], Path("/srv/deskmate/var"))
    assert elsewhere.splitlines() == ["ProtectHome=yes", 'ReadWritePaths="/srv/deskmate/var"']


def test_a_stop_may_take_longer_than_the_drain(place: Path):
    for given, drain in (({}, GATEWAY_DRAIN_SECONDS), ({"DESKMATE_DRAIN_SECONDS": "300"}, 300)):
        (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)s$", printed(place, **given), re.MULTILINE)
        assert int(seconds) >= drain + 30


def test_what_trying_again_cannot_change_is_not_tried_again(place: Path):
    (codes,) = re.findall(r"^RestartPreventExitStatus=(.*)$", printed(place), re.MULTILINE)
    assert {int(code) for code in codes.split()} == {
        kind.exit_code for kind in (UsageError, PortInUse, BadConfiguration)
    }


def test_backups_go_where_they_are_wanted_and_old_ones_only_after_a_new_one(place: Path):
    one = service.Choice(unit="deskmate-backup.service")
    assert "\nStateDirectory=%N\n" in printed(place, one)
    chosen = service.Choice(unit="deskmate-backup.service", backups=place / "var", keep_days=3)
    text, folder = printed(place, chosen), f'"{place}/var"'.replace("%", "%%")
    assert f"\nReadWritePaths={folder}\n" in text
    assert f'\nExecStartPost=/usr/bin/find {folder} -maxdepth 1 -type f -name "deskmate-*.backup" -mtime +3 ' in text


def test_the_command_of_the_backup_names_a_file_with_the_date_and_old_files_are_found(place: Path, tmp_path: Path):
    """The two commands as systemd would start them: its escapes undone, its specifiers filled in."""
    (place / "deskmate").write_text('#!/bin/sh\necho "$@"; touch "$2"\n')
    text = printed(place, service.Choice(unit="deskmate-backup.service"))
    for name in ("old.backup", "deskmate-1.backup"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    commands = re.findall(r"^ExecStart(?:Post)?=(.*)$", text, re.MULTILINE)
    for command in commands:
        line = command.replace("%S/%N", f'"{tmp_path}"').replace("%%", "%").replace("$$", "$")
        subprocess.run(["sh", "-c", line], check=True, stdout=subprocess.DEVNULL)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert len(left) == 2 and left[1] == "old.backup"
    assert re.fullmatch(r"deskmate-\d{4}-\d\d-\d\d-\d{6}\.backup", left[0])


def test_all_units_come_as_one_text_with_the_name_of_each_file(place: Path):
    text = printed(place)
    assert re.findall(r"^# /etc/systemd/system/(.*)$", text, re.MULTILINE) == list(service.UNITS)
    assert all(printed(place, service.Choice(unit=name)) in text for name in service.UNITS)


# who is refused ------------------------------------------------------------------------------------------------------


def test_an_account_that_is_not_there_is_refused_with_the_command_that_makes_it(place: Path):
    with pytest.raises(UsageError, match=r"no account 'nobody-at-all'; make one: useradd .* nobody-at-all"):
        printed(place, service.Choice(user="nobody-at-all"))


def test_root_is_refused(place: Path):
    with pytest.raises(UsageError, match="--user deskmate"):
        printed(place, service.Choice(user="root"))


def test_a_checkout_that_the_account_may_not_read_is_refused_by_the_folder_that_is_closed(
    place: Path, account: pwd.struct_passwd
):
    place.chmod(0o700 if os.getuid() == 0 else 0o600)
    try:
        with pytest.raises(BadConfiguration) as refused:
            printed(place, service.Choice(user=account.pw_name))
    finally:
        place.chmod(0o755)
    assert f"may not read {place / 'deskmate'}: {place} is closed to it" in str(refused.value)


def test_a_model_that_the_account_may_not_read_is_refused(place: Path):
    model = place / "model"
    model.mkdir(mode=0o000)
    with pytest.raises(BadConfiguration, match=r"may not read .*model"):
        printed(place, up=Wishes(model=model))


@pytest.mark.parametrize("folder", ["data", "backup"])
def test_a_folder_to_write_to_must_be_the_accounts_own_and_the_command_for_that_is_told(
    place: Path, account: pwd.struct_passwd, folder: str
):
    if folder == "data":
        (place / "var").rmdir()
    with pytest.raises(BadConfiguration, match=f"the {folder} folder .*: install -d -m 0700 -o {account.pw_name} "):
        printed(place, service.Choice(user=account.pw_name, backups=place / "none"))


def test_a_path_that_systemd_cannot_be_told_is_refused(place: Path):
    with pytest.raises(BadConfiguration, match="systemd cannot be told"):
        printed(place, up=Wishes(model=Path('/models/a "quoted" one')))


@pytest.mark.parametrize("word", ["--detach", "--bundle=file"])
def test_a_service_neither_goes_away_nor_installs_from_a_bundle_each_time(word: str, tmp_path: Path):
    options = cli.parser().parse_args(["service", "print", "--user", "root", "--up", word])
    with pytest.raises(UsageError, match="no --detach, no --bundle"):
        cli.units(options, Home(tmp_path))


def test_options_of_up_are_checked_when_the_unit_is_printed(tmp_path: Path):
    options = cli.parser().parse_args(["service", "print", "--up", "--model", "/no/such/model"])
    with pytest.raises(BadConfiguration, match="/no/such/model"):
        cli.units(options, Home(tmp_path))
