"""systemd units for this installation, from the templates in deploy/systemd/. Prints; installs and starts nothing."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BadConfiguration, UsageError
from deploy.home import Home
from deploy.install import accelerator
from deploy.local import GATEWAY_MARGIN_SECONDS, REDIS_PATIENCE_SECONDS, WORKER_PATIENCE_SECONDS, drain_seconds
from deploy.wishes import Wishes

TEMPLATES = Path(__file__).parent / "systemd"
UNITS = ("deskmate.service", "deskmate-backup.service", "deskmate-backup.timer")
PLACEHOLDER = re.compile(r"@([a-z_]+)@")
STOP_MARGIN_SECONDS = 15.0
KEEP_DAYS = 14
HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp")))
# systemd reads these differently in different settings, and there is no way of writing that all of them understand.
UNWRITABLE = re.compile(r"""["'\\:$\x00-\x1f\x7f]""")


@dataclass(frozen=True)
class Choice:
    """What a person asked of `service print`. `unit`: None for all; `backups`: None for systemd's own place."""

    unit: str | None = None
    user: str | None = None
    backups: Path | None = None
    keep_days: int = KEEP_DAYS

    @classmethod
    def of(cls, options: argparse.Namespace) -> Choice:
        folder = options.backups.absolute() if options.backups else None
        return cls(options.unit, options.user, folder, options.keep_days)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("print",))
    parser.add_argument("unit", nargs="?", choices=UNITS, metavar="UNIT", help=f"only one of {', '.join(UNITS)}")
    parser.add_argument("--user", metavar="NAME", help="account that runs it (default: the owner of the data folder)")
    parser.add_argument(
        "--backups", type=Path, metavar="DIR", help="where backups go (default: /var/lib/deskmate-backup)"
    )
    parser.add_argument(
        "--keep-days", type=days, default=KEEP_DAYS, metavar="N", help=f"days a backup is kept (default: {KEEP_DAYS})"
    )
    parser.add_argument(
        "--up", nargs=argparse.REMAINDER, default=[], metavar="OPTION", help="what follows are options of `up`"
    )


def days(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days above 0")
    return int(text)


def units(root: Path, home: Home, choice: Choice, up: Wishes, given: Mapping[str, str]) -> str:
    """One unit's text, or all of them, each under the name of its file. Raises UsageError and BadConfiguration."""
    account = account_of(home, choice.user)
    refuse_unwritable([root, home.folder, choice.backups or root, *files_of(up)])
    refuse_unreachable(account, root, home, choice, up)
    values = placeholders(root, home, choice, up, account, given)
    if choice.unit:
        return filled(choice.unit, values)
    return "\n".join(f"# /etc/systemd/system/{name}\n{filled(name, values)}" for name in UNITS)


def filled(name: str, values: Mapping[str, str]) -> str:
    """The template with its values; a value may hold placeholders again."""
    text = (TEMPLATES / name).read_text()
    while PLACEHOLDER.search(text):
        text = PLACEHOLDER.sub(lambda found: values[found[1]], text)
    return text


def placeholders(
    root: Path, home: Home, choice: Choice, up: Wishes, account: pwd.struct_passwd, given: Mapping[str, str]
) -> dict[str, str]:
    drain = drain_seconds(given)
    others = GATEWAY_MARGIN_SECONDS + sum(WORKER_PATIENCE_SECONDS) + sum(REDIS_PATIENCE_SECONDS)
    backups = quoted(choice.backups) if choice.backups else "%S/%N"
    return {
        "user": account.pw_name,
        "group": grp.getgrgid(account.pw_gid).gr_name,
        "root": os.fspath(root).replace("%", "%%"),  # a path of its own line is not unquoted
        "data": quoted(f"DESKMATE_HOME={home.folder}"),
        "script": quoted(root / "deskmate"),
        "command": " ".join(quoted(word) for word in (os.fspath(root / "deskmate"), *words_of(up))),
        "stop_seconds": f"{drain + others + STOP_MARGIN_SECONDS:.0f}s",
        "drain_seconds": f"{drain:.0f}",
        "backups": backups,
        "backup_folder": f"ReadWritePaths={backups}"
        if choice.backups
        else "StateDirectory=%N\nStateDirectoryMode=0700",
        "keep_days": str(choice.keep_days),
        "hardening": (TEMPLATES / "hardening").read_text().strip("\n"),
        "places": places([root, *files_of(up), *(python.parent.parent for python in python_of(home))], home.folder),
        "devices": devices(accelerator()),
    }


def words_of(up: Wishes) -> list[str]:
    """The command that asks for this: options that differ from what `up` does anyway, paths absolute."""
    asked = {
        "--model": up.model,
        "--seats": up.seats,
        "--host": up.host,
        "--port": up.port,
        "--tls-cert": up.tls_cert,
        "--tls-key": up.tls_key,
        "--redis-url": up.redis_url,
    }
    usual = {"--host": Wishes.host, "--port": Wishes.port}
    chosen = [(option, value) for option, value in asked.items() if value not in (None, usual.get(option))]
    return ["up", *(str(word) for pair in chosen for word in pair), *(f"--worker-url={url}" for url in up.worker_urls)]


def files_of(up: Wishes) -> list[Path]:
    return [path for path in (up.model, up.tls_cert, up.tls_key) if path]


def quoted(value: Path | str) -> str:
    """As one word of a setting, specifiers and variables taken literally."""
    text = os.fspath(value).replace("%", "%%")
    return f'"{text}"'


def places(read: Sequence[Path], written: Path) -> str:
    """Homes and temporary folders are hidden whole; what the installation has in them is let in again."""
    at_home = any(lies_in(HOMES, path) for path in (*read, written))
    lines = [f"ProtectHome={'tmpfs' if at_home else 'yes'}"]
    lines += [f"BindReadOnlyPaths={quoted(path)}" for path in dict.fromkeys(read) if lies_in(HOMES + TEMPORARY, path)]
    lines.append(f"{'BindPaths' if lies_in(HOMES + TEMPORARY, written) else 'ReadWritePaths'}={quoted(written)}")
    return "\n".join(lines)


def lies_in(folders: Sequence[Path], path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def python_of(home: Home) -> list[Path]:
    """The Python that the environment was made with; none before there is one: then systemd's PATH decides."""
    return [home.python.resolve()] if home.python.exists() else []


def devices(kind: str) -> str:
    """The cards of NVIDIA and no other device; without one, none at all."""
    if kind == "cuda":
        return "DevicePolicy=closed\nDeviceAllow=char-nvidia* rw"
    return "PrivateDevices=yes"


# -- what cannot work -----------------------------------------------------------------------------------------


def account_of(home: Home, name: str | None) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(name) if name else pwd.getpwuid(owned(home).stat().st_uid)
    except KeyError:
        who = f"there is no account {name!r}" if name else f"the owner of {home.folder} has no account"
        raise UsageError(
            f"{who}; make one: useradd --system --user-group --shell /usr/sbin/nologin {name or 'deskmate'}"
        ) from None
    if account.pw_uid == 0:
        raise UsageError("a service of root could do anything; name an account of its own: --user deskmate")
    return account


def owned(home: Home) -> Path:
    if not home.folder.is_dir():
        raise BadConfiguration(
            f"the data folder {home.folder} is not there; name the account, --user NAME, or run `./deskmate up` once"
        )
    return home.folder


def refuse_unwritable(paths: Sequence[Path]) -> None:
    for path in paths:
        if found := UNWRITABLE.search(os.fspath(path)):
            raise BadConfiguration(f"systemd cannot be told of a path with {found[0]!r}: {path}; move or rename it")


def refuse_unreachable(account: pwd.struct_passwd, root: Path, home: Home, choice: Choice, up: Wishes) -> None:
    """By the files' modes; access lists are not looked at."""
    who = Account(account.pw_uid, frozenset(os.getgrouplist(account.pw_name, account.pw_gid)))
    for file in (root / "deskmate", root / "deploy" / "cli.py", *python_of(home), *files_of(up)):
        if place := who.stopped_at(file, os.R_OK):
            raise BadConfiguration(
                f"{account.pw_name} may not read {file}: {place} is closed to it; open it or move {file.name} elsewhere"
            )
    written = {"data": home.folder, **({"backup": choice.backups} if choice.backups else {})}
    for name, folder in written.items():
        if not folder.is_dir() or folder.stat().st_uid != account.pw_uid or who.stopped_at(folder, os.R_OK | os.W_OK):
            make = f"install -d -m 0700 -o {account.pw_name} '{folder}'"
            raise BadConfiguration(
                f"the {name} folder {folder} must be there, be {account.pw_name}'s own and lie where it may go: {make}"
            )


@dataclass(frozen=True)
class Account:
    uid: int
    groups: frozenset[int]

    def stopped_at(self, path: Path, wanted: int) -> Path | None:
        """The first folder on the way that it may not pass, or the path itself when it may not do what is wanted."""
        for folder in reversed(path.parents):
            if not self.may(folder, os.X_OK):
                return folder
        return None if self.may(path, wanted | (os.X_OK if path.is_dir() else 0)) else path

    def may(self, path: Path, wanted: int) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return (stat.S_IMODE(found.st_mode) >> shift) & wanted == wanted
