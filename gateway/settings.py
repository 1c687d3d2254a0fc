"""The gateway's settings: one frozen object, read once from the environment; nothing else reads it.

Each field states its default and its help once; `--help`, the README's table and the refusals come from here.
A missing, malformed or unknown DESKMATE_ variable stops the start and names itself; values never print.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

PREFIX = "DESKMATE_"
ELSEWHERE = frozenset({"DESKMATE_HOME"})  # the launcher's own; not ours, not a mistake


class SettingsError(Exception):
    """A variable that is missing, malformed or unknown; the message names it and never its value."""


def _setting(help: str, default: Any = ...) -> Any:
    if default is ...:
        return field(metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    redis_url: str = _setting("Redis: `unix:///path.sock?db=0`, `redis://host:port/0` or `rediss://…`.")
    secret_file: Path = _setting(
        "File with the installation's secret, at least 32 bytes; keys and cache salts derive from it."
    )
    redis_password_file: Path | None = _setting("File with the password of Redis.", None)

    host: str = _setting("Address to listen on.", "127.0.0.1")
    port: int = _setting("Port to listen on.", 8000)
    listen_fd: tuple[int, ...] = _setting(
        "Inherited listening sockets (file descriptors) to serve instead; the supervisor sets it.", ()
    )
    tls_cert: Path | None = _setting("Certificate chain (PEM); with it the gateway speaks HTTPS.", None)
    tls_key: Path | None = _setting("Private key of the certificate (PEM).", None)
    public_url: str | None = _setting(
        "Address people type, when a proxy stands in front; `https` makes cookies Secure.", None
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "Host names answered besides loopback, the listen address and the public address; `*` for any.", ()
    )
    trusted_proxies: tuple[str, ...] = _setting(
        "Addresses of proxies in front whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.", ()
    )

    worker_urls: tuple[str, ...] = _setting("vLLM servers, comma separated: `http://host:port` or `unix:/path`.", ())
    plan_file: Path | None = _setting("The local worker's plan (JSON), readable before the engine has loaded.", None)
    status_file: Path | None = _setting("The supervisor's status (JSON), shown by `/readyz`.", None)
    model_aliases: tuple[str, ...] = _setting("Further names under which the served model may be asked for.", ())
    seats: int = _setting("Requests in flight per worker when it serves no plan (a bare vLLM).", 16)
    context_tokens: int | None = _setting("Context length when a bare vLLM does not tell it.", None)
    tool_parser: str | None = _setting(
        "vLLM's parser of tool calls, or `none`; unset: by the model. Of a bare vLLM: the one it was started with.",
        None,
    )
    reasoning_parser: str | None = _setting(
        "vLLM's parser of thoughts, or `none`; unset: by the model. Of a bare vLLM: the one it was started with.",
        None,
    )

    max_tokens: int | None = _setting("New tokens of an answer that sets no limit; unset: the plan's, else 1024.", None)
    temperature: float | None = _setting("Default temperature; unset: the plan's, else 0.7.", None)
    top_p: float | None = _setting("Default top_p; unset: the plan's, else 0.9.", None)
    system_prompt: str = _setting(
        "System message of a turn that brings no instructions.", "You are a helpful assistant."
    )
    repetition_penalty: float | None = _setting("Default repetition penalty; unset: the plan's, else 1.1.", None)

    queue_per_person: int = _setting("Requests one person may have waiting; more are refused with 429.", 256)
    max_wait_seconds: float = _setting("Longest estimated wait that is still queued; beyond it 429.", 600.0)
    tokens_per_day: int | None = _setting(
        "Tokens, read and written, that a person may use in a day (UTC); unset: no limit.", None
    )
    tokens_per_month: int | None = _setting("The same in a calendar month.", None)
    requests_per_minute: int | None = _setting("Requests that a person may make in a minute; unset: no limit.", None)
    concurrency: int = _setting("Requests of a person, over all their keys, that may wait or run at once.", 512)
    drain_seconds: float = _setting("How long running answers may go on after SIGTERM.", 20.0)

    body_limit_bytes: int = _setting("Largest request body.", 1 << 20)
    header_seconds: float = _setting("Time for a client to send its headers.", 10.0)
    body_seconds: float = _setting("Time for a client to send its body.", 30.0)
    unread_seconds: float = _setting(
        "How long a client may take nothing of what waits to be sent to it; then it is cut.", 120.0
    )

    socket_seconds: float = _setting(
        "How long a WebSocket may stay open; an answer under way then is still told to its end.", 3600.0
    )

    log_ttl_seconds: int = _setting("How long the stream log of a finished answer can be replayed.", 3600)
    retention_days: int = _setting(
        "Days without use after which a conversation or response is deleted; 0 keeps it.", 30
    )
    metrics_token_file: Path | None = _setting(
        "File with a secret, at least 32 bytes, that may read the metrics from another machine as `Bearer` token.", None
    )
    metrics_folder: Path | None = _setting(
        "Folder in which the gateways of one machine share their metrics; unset: each tells its own.", None
    )
    delegate_header: str | None = _setting(
        "Header in which a front end's key (scope `delegate`) names its person; unset: none can.", None
    )
    delegate_addresses: tuple[str, ...] = _setting(
        "Addresses or networks that such a header is taken from; unset: only this machine.", ("127.0.0.0/8", "::1")
    )
    delegate_people: int = _setting("How many people the keys of one owner may name; a further one gets 403.", 10_000)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read all DESKMATE_ variables. Raises SettingsError for the first that is wrong."""
        known = {variable(f): f for f in fields(cls)}
        for name in environment:
            if name.startswith(PREFIX) and name not in known and name not in ELSEWHERE:
                raise SettingsError(f"{name} is not a setting of the gateway; `python -m gateway settings` lists them")
        hints = get_type_hints(cls)
        values = {}
        for name, f in known.items():
            if environment.get(name):
                values[f.name] = _parse(name, environment[name], hints[f.name])
            elif is_required(f):
                raise SettingsError(f"{name} is missing: {f.metadata['help']}")
        return cls(**values)


def variable(f: "Field[Any]") -> str:
    return PREFIX + f.name.upper()


def is_required(f: "Field[Any]") -> bool:
    return f.default is MISSING


def table() -> str:
    """The settings as a Markdown table: name, default, meaning."""
    rows = [f"| `{variable(f)}` | {_default(f)} | {f.metadata['help']} |" for f in fields(Settings)]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _default(f: "Field[Any]") -> str:
    if is_required(f):
        return "required"
    if f.default in (None, ()):
        return "–"
    return f"`{','.join(f.default) if isinstance(f.default, tuple) else f.default}`"


def _parse(name: str, text: str, kind: Any) -> Any:
    if isinstance(kind, UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is tuple:
        return tuple(_parse(name, part.strip(), get_args(kind)[0]) for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{name} must be a {'whole number' if kind is int else 'number'}") from None
