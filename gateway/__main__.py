"""The gateway's command line: parses and calls, nothing else.

Exit codes: 0 done, 1 refused or failed (one line on stderr says why), 2 wrong usage, 69 cannot listen, 78 wrong
settings or data that this release cannot serve.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.auth.keys import Keys
from gateway.auth.links import Links
from gateway.auth.people import People, Person, refuse_delegate
from gateway.auth.principal import Role, Scope
from gateway.auth.secret import SecretError, Secrets
from gateway.backup import BackupError
from gateway.backup.commands import backup, restore
from gateway.errors import BadRequest, NotFound, Refusal, Unavailable
from gateway.machine import raise_file_limit
from gateway.migrations import UnusableData, bring_forward
from gateway.quotas import OF_A_KEY, Allowance, Balance, Kind, Quotas, Source, Wish
from gateway.quotas.asked import of_a_key, of_a_person, weight, wish
from gateway.quotas.store import RedisQuotas
from gateway.quotas.telling import managed
from gateway.redis_client import RedisClient
from gateway.settings import Settings, SettingsError, table

CANNOT_LISTEN = 69
WRONG_SETTINGS = 78
ADMINISTRATOR = "admin"
FOR_PROGRAMS = "for programs"


@dataclass(frozen=True, slots=True)
class Parts:
    people: People
    keys: Keys
    links: Links
    quotas: Quotas


Command = Callable[[Parts, argparse.Namespace], Awaitable[None]]


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "settings":
            print(table())
        elif asked.command == "serve":
            return _serve(Settings.from_environment(os.environ))
        elif asked.command in ("backup", "restore"):
            asyncio.run(_with_redis(Settings.from_environment(os.environ), asked))
        else:
            asyncio.run(_with_parts(Settings.from_environment(os.environ), asked))
    except (SettingsError, SecretError, UnusableData) as fault:
        return _say(str(fault), WRONG_SETTINGS)
    except BackupError as fault:
        return _say(str(fault), 1)
    except Refusal as refusal:
        return _say(refusal.message, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _say(message: str, code: int) -> int:
    _tell(message)
    return code


def _tell(message: str) -> None:
    print(f"gateway: {message}", file=sys.stderr, flush=True)


def _serve(settings: Settings) -> int:
    if settings.metrics_folder:  # prometheus_client looks for it once, when it is imported
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_folder)
    from gateway.app import build  # the whole application; the other commands do without
    from gateway.server import ListenError, serve

    raise_file_limit()
    asyncio.run(_bring_forward(settings))
    gateway = build(settings)
    try:
        serve(gateway, settings, gateway.drain, gateway.hand_over)
    except ListenError as fault:
        return _say(str(fault), CANNOT_LISTEN)
    return _say(str(gateway.unusable), WRONG_SETTINGS) if gateway.unusable else 0


async def _bring_forward(settings: Settings) -> None:
    """Before anybody can ask: data that cannot be served ends the start. Where Redis comes later, so does this."""
    redis = _redis(settings)
    try:
        with suppress(Unavailable):
            await bring_forward(redis, _tell)
    finally:
        await redis.aclose()


async def _with_parts(settings: Settings, asked: argparse.Namespace) -> None:
    secrets = Secrets.from_file(settings.secret_file)
    redis = _redis(settings)
    try:
        await bring_forward(redis, _tell)
        quotas = RedisQuotas(redis, Allowance.from_settings(settings))
        await asked.run(Parts(People(redis), Keys(redis, secrets), Links(redis, secrets, settings), quotas), asked)
    finally:
        await redis.aclose()


async def _with_redis(settings: Settings, asked: argparse.Namespace) -> None:
    redis = _redis(settings)
    try:
        if asked.command == "backup":
            await backup(redis, settings.secret_file, asked.file, _tell)
        else:
            await restore(redis, settings.secret_file, asked.file, asked.secret_out, _tell)
    finally:
        await redis.aclose()


def _redis(settings: Settings) -> RedisClient:
    try:
        return RedisClient.from_settings(settings)
    except OSError as fault:
        raise SettingsError(f"DESKMATE_REDIS_PASSWORD_FILE: {fault.filename}: {fault.strerror}") from None
    except ValueError:
        raise SettingsError("DESKMATE_REDIS_URL must begin with unix://, redis:// or rediss://") from None


async def create_user(parts: Parts, asked: argparse.Namespace) -> None:
    person = await parts.people.create(asked.name, Role(asked.role), asked.department)
    print(f"{person.name} is made ({person.id}); 'user link {person.name}' prints a link to sign in with")


async def list_users(parts: Parts, asked: argparse.Namespace) -> None:
    if asked.of:
        people = [person async for person in parts.people.delegates((await _named(parts, asked.of)).id)]
    else:
        people = await parts.people.all()
    if asked.json:
        print(_json([person.shown() for person in people]))
        return
    for person in people:
        others = f"  speaks for {person.speaks_for:,}" if person.speaks_for else ""
        state = "  disabled" if person.disabled else ""
        print(f"{person.id}  {person.role:<13}  {person.keys:>3} keys  {person.name}{others}{state}")


async def disable_user(parts: Parts, asked: argparse.Namespace) -> None:
    person = await _named(parts, asked.name)
    await parts.people.disable(person.id)
    print(f"{person.name} is disabled; keys and sessions are good for nothing within a second")


async def enable_user(parts: Parts, asked: argparse.Namespace) -> None:
    person = await _named(parts, asked.name)
    await parts.people.enable(person.id)
    print(f"{person.name} is enabled")


async def limits_of_user(parts: Parts, asked: argparse.Namespace) -> None:
    person, wishes = await _named(parts, asked.name), of_a_person(_wishes(asked))
    if wishes:
        await parts.quotas.set(person.id, wishes)
    _print_limits(await parts.quotas.balance(person.id), Source.PERSON, asked.json)


async def weight_of_user(parts: Parts, asked: argparse.Namespace) -> None:
    person = await _named(parts, asked.name)
    if asked.weight is not None:
        await parts.quotas.set_weight(person.id, weight(asked.weight))
    now = await parts.quotas.weight(person.id)
    print(
        _json({"weight": now}) if asked.json else f"{person.name} has the weight {now:g} in the line; everybody's is 1"
    )


async def limits_of_key(parts: Parts, asked: argparse.Namespace) -> None:
    key, wishes = await parts.keys.get(asked.id), of_a_key(_wishes(asked))
    if key is None:
        raise NotFound(f"there is no key {asked.id}; 'key list' shows them")
    if wishes:
        await parts.quotas.set(key.id, wishes, key.goes_at)
    _print_limits(await parts.quotas.balance(key.user, key.id), Source.KEY, asked.json)


def _wishes(asked: argparse.Namespace) -> dict[str, Wish]:
    return {kind: given for kind in Kind if (given := getattr(asked, kind, None)) is not None}


def _print_limits(balance: Balance, whose: Source, as_json: bool) -> None:
    """Of each kind the limit that would refuse first."""
    if as_json:
        print(_json(managed(balance, whose)))
        return
    for kind in Kind:
        meter = balance.nearest(kind)
        if meter is not None:
            limit = "no limit" if meter.limit is None else f"{meter.limit:,}"
            renews = "" if meter.renews_at is None else f"  renews {_utc(meter.renews_at)}"
            print(f"{kind.replace('_', ' '):<20}{meter.used:>15,} of {limit:<15}  {meter.source:<12}{renews}".rstrip())


def _utc(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


async def link_user(parts: Parts, asked: argparse.Namespace) -> None:
    person = await _administrator(parts) if asked.administrator else await _named(parts, asked.name)
    if asked.first and person.has_signed_in:
        print(_json({"url": None, "expires_at": None}) if asked.json else "", end="\n" if asked.json else "")
        return
    refuse_delegate(person)
    if person.disabled:
        raise BadRequest(f"{person.name} is disabled; 'user enable {person.name}' first")
    link = await parts.links.create(person.id)
    print(_json({"url": link.url, "expires_at": link.expires_at}) if asked.json else link.url)


async def _administrator(parts: Parts) -> Person:
    """The account that is always there for whoever runs this machine."""
    person = await parts.people.ensure(ADMINISTRATOR, Role.ADMINISTRATOR)
    if person.role is not Role.ADMINISTRATOR:
        await parts.people.set_role(person.id, Role.ADMINISTRATOR)
    if person.disabled:
        await parts.people.enable(person.id)
    return await _named(parts, ADMINISTRATOR)


async def create_key(parts: Parts, asked: argparse.Namespace) -> None:
    person = await parts.people.ensure(asked.user)
    scopes = frozenset(Scope(scope) for scope in asked.scope or [Scope.CHAT])
    key, text = await parts.keys.create(person.id, asked.name, scopes, asked.expires_in_days)
    if asked.json:
        print(_json({**key.shown(person.name), "key": text}))
    else:
        print(text)
        print(f"gateway: the key {key.id} of {person.name}; it is shown only now", file=sys.stderr)


async def list_keys(parts: Parts, asked: argparse.Namespace) -> None:
    names = {person.id: person.name for person in await parts.people.all()}
    keys = await parts.keys.all()
    if asked.json:
        print(_json([key.shown(names.get(key.user, "")) for key in keys]))
        return
    for key in keys:
        print(f"{key.id}  {names.get(key.user, key.user)}  {','.join(sorted(key.scopes))}  {key.name}".rstrip())


async def revoke_key(parts: Parts, asked: argparse.Namespace) -> None:
    if not await parts.keys.revoke(asked.id):
        raise NotFound(f"there is no key {asked.id}; 'key list' shows them")
    print(f"{asked.id} is revoked")


async def _named(parts: Parts, name: str) -> Person:
    person = await parts.people.named(name)
    if person is None:
        raise NotFound(f"there is no person named '{name}'; 'user list' shows them")
    return person


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway", description="The gateway: serve it, its people, its keys, its backups."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve until SIGTERM; settings come from the environment")
    commands.add_parser("settings", help="list the settings")
    save = commands.add_parser("backup", help="write everything people have, and the secret, into one file")
    save.add_argument("file", metavar="FILE", help="- for standard output")
    load = commands.add_parser("restore", help="fill an empty Redis from a backup")
    load.add_argument("file", metavar="FILE", help="- for standard input")
    load.add_argument(
        "--secret-out", metavar="FILE", help="write the installation's secret there; - for standard output"
    )
    _add_user_commands(commands.add_parser("user", help="people").add_subparsers(required=True, metavar="COMMAND"))
    _add_key_commands(commands.add_parser("key", help="API keys").add_subparsers(required=True, metavar="COMMAND"))
    return parser


def _add_user_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    create = _add(commands, "create", create_user, "make a person")
    create.add_argument("name")
    create.add_argument("--role", choices=list(Role), default=Role.MEMBER, help="default: %(default)s")
    create.add_argument("--department", metavar="NAME", help="a label beside the name")
    everybody = _add(commands, "list", list_users, "list everybody who signs in or has keys")
    everybody.add_argument("--of", metavar="NAME", help="those whom the front end of NAME speaks for, newest first")
    everybody.add_argument("--json", action="store_true", help=FOR_PROGRAMS)
    _add(commands, "disable", disable_user, "refuse a person's keys and sessions").add_argument("name")
    _add(commands, "enable", enable_user, "let a disabled person in again").add_argument("name")
    limits = _add(commands, "limits", limits_of_user, "what a person may use and has used; with options, set it")
    limits.add_argument("name")
    _add_limits(limits, Kind)
    line = _add(commands, "weight", weight_of_user, "a person's weight in the line; with a number, set it")
    line.add_argument("name")
    line.add_argument("weight", type=float, nargs="?", metavar="N", help="0.1 to 10; twice the weight, twice the share")
    line.add_argument("--json", action="store_true", help=FOR_PROGRAMS)
    link = _add(commands, "link", link_user, "print a one-time link that signs a person in, good for a day")
    who = link.add_mutually_exclusive_group(required=True)
    who.add_argument("name", nargs="?")
    who.add_argument("--administrator", action="store_true", help=f"the account '{ADMINISTRATOR}', made when new")
    link.add_argument("--first", action="store_true", help="print none for somebody who has signed in before")
    link.add_argument("--json", action="store_true", help=FOR_PROGRAMS)


def _add_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    create = _add(commands, "create", create_key, "make an API key; its person too when new")
    create.add_argument("--user", required=True, metavar="NAME", help="whose key it is")
    create.add_argument("--scope", action="append", choices=list(Scope), help="may be repeated; without one: chat")
    create.add_argument("--name", default="", metavar="TEXT", help="what the key is for")
    create.add_argument("--expires-in-days", type=_days, metavar="N", help="1 to 3650; without one it does not expire")
    create.add_argument("--json", action="store_true", help=FOR_PROGRAMS)
    _add(commands, "list", list_keys, "list the keys, without the keys themselves").add_argument(
        "--json", action="store_true", help=FOR_PROGRAMS
    )
    limits = _add(commands, "limits", limits_of_key, "what holds for a key; with options, set limits of its own")
    limits.add_argument("id")
    _add_limits(limits, OF_A_KEY)
    _add(commands, "revoke", revoke_key, "make a key worthless").add_argument("id")


def _add_limits(parser: argparse.ArgumentParser, kinds: Iterable[Kind]) -> None:
    meanings = {
        Kind.TOKENS_PER_DAY: "read and written, until midnight UTC",
        Kind.TOKENS_PER_MONTH: "the same in a calendar month",
        Kind.REQUESTS_PER_MINUTE: "however short",
        Kind.CONCURRENCY: "requests that wait or run, over all keys",
    }
    for kind in kinds:
        name = f"--{kind.replace('_', '-')}"
        parser.add_argument(name, type=wish, metavar="N|none|default", help=meanings[kind])
    parser.add_argument("--json", action="store_true", help=FOR_PROGRAMS)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Command, help: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help)
    parser.set_defaults(run=run)
    return parser


def _days(text: str) -> int:
    if not 1 <= (days := int(text)) <= 3650:
        raise ValueError
    return days


if __name__ == "__main__":
    sys.exit(main())
