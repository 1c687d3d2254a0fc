"""Conversations, turns and items on Redis: calls the scripts of `lua/`, which know the keys and keep promises whole.

Knows the scripts' arguments and answers and turns refusals into errors; knows no key but those of single commands.
"""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import msgspec

from gateway.conversations import (
    OUTPUT_ITEMS,
    Append,
    Attached,
    Begin,
    Begun,
    Conversation,
    Finish,
    Item,
    Json,
    Lease,
    Standing,
    StoredResponse,
    item_id,
)
from gateway.conversations.ids import Place, is_name, new_id, new_shelf, place_of
from gateway.conversations.packing import pack, unpack
from gateway.errors import (
    ContextLengthExceeded,
    ConversationLocked,
    IdempotencyConflict,
    NotFound,
    PreviousResponseNotFound,
    Refusal,
    VersionConflict,
)
from gateway.redis_client import Argument, RedisClient

TITLE = "deskmate:title"
BRANCH_OF = "deskmate:branch_of"
ROOT = "deskmate:root"  # the conversation that a tree of branches began with
SEARCH_PAGE = 500  # conversations looked at per call while searching: a millisecond or two of Redis' time

List = builtins.list  # the class has a method of that name


class RedisConversations:
    """`Conversations` on one Redis. `retention_days` 0 keeps for ever."""

    def __init__(self, redis: RedisClient, *, retention_days: int, log_ttl_seconds: int) -> None:
        self._redis = redis
        self._keep_seconds = retention_days * 86_400
        self._log_ttl_seconds = log_ttl_seconds

    # a turn -----------------------------------------------------------------------------------------------------
    async def begin(self, begin: Begin) -> Begun | Attached:
        _check_names(begin.owner, begin.turn)
        if begin.conversation is not None and not is_name(begin.conversation):
            raise _no_conversation(begin.conversation)
        if begin.previous is not None and not is_name(begin.previous):
            raise _no_previous(begin.previous)
        reply = await self._redis.run("begin_turn", args=self._begin_arguments(begin))
        match reply:
            case [b"begun", fence, shelf, first]:
                input = _numbered(begin.input, shelf.decode(), int(first))
                return Begun(fence, input, shelf.decode(), int(first) + len(input))
            case [b"attached", turn]:
                return Attached(turn.decode())
            case [b"reused"]:
                raise IdempotencyConflict("This Idempotency-Key came before with another body; use a new key.")
        raise _refusal(reply, begin.conversation, begin.previous)

    async def has_come(self, owner: str, key: str) -> bool:
        return bool(await self._redis.call("EXISTS", f"dm:idem:{owner}:{_fingerprint(key)}"))

    def _begin_arguments(self, begin: Begin) -> List[Argument]:
        return [
            begin.owner,
            begin.turn,
            begin.conversation or "",
            begin.previous or "",
            "" if begin.expected_version is None else begin.expected_version,
            _fingerprint(begin.key) if begin.key else "",
            begin.digest,
            begin.key_seconds,
            begin.title or "",
            begin.holder,
            round(begin.lease_seconds * 1000),
            begin.created_at,
            new_shelf(),
            self._keep_seconds,
            pack(begin.request),
            OUTPUT_ITEMS,
            int(begin.attach),
            begin.entry,
            *_encoded(begin.input),
        ]

    async def undo(self, owner: str, turn: str, fence: int) -> None:
        _check_names(owner, turn)
        await self._redis.run("undo_turn", args=(owner, turn, fence))

    async def append(self, appends: Sequence[Append]) -> Sequence[Standing]:
        args: List[Argument] = []
        for a in appends:
            args += (f"{a.owner}:{a.turn}", a.fence, a.first, len(a.entries), *a.entries)
        return [Standing(n) for n in await self._redis.run("append_log", args=args)]

    async def finish(self, finish: Finish) -> Sequence[Item] | None:
        _check_names(finish.owner, finish.turn)
        if len(finish.output) > OUTPUT_ITEMS:
            raise ValueError(f"an answer has at most {OUTPUT_ITEMS} items, this one {len(finish.output)}")
        args: tuple[Argument, ...] = (
            finish.owner,
            finish.turn,
            finish.fence,
            finish.status,
            finish.prompt_tokens,
            finish.completion_tokens,
            datetime.now(UTC).strftime("%Y%m%d"),
            self._log_ttl_seconds,
            self._keep_seconds,
            pack(finish.result),
            *_encoded(finish.output),
        )
        reply = await self._redis.run("finish_turn", args=args)
        return None if reply is None else _numbered(finish.output, reply[0].decode(), int(reply[1]))

    async def renew(self, leases: Sequence[Lease], holder: str, seconds: float) -> Sequence[Standing]:
        if not leases:
            return []
        members = (f"{lease.owner}:{lease.turn}" for lease in leases)
        reply = await self._redis.run("renew_leases", args=(holder, round(seconds * 1000), *members))
        return [Standing(n) for n in reply]

    async def hand_over(self, leases: Sequence[Lease], holder: str) -> None:
        await self.renew(leases, holder, 0.0)

    async def ask_to_stop(self, owner: str, turn: str) -> None:
        if is_name(turn):
            await self._redis.run("stop_turn", args=(owner, turn))

    async def expired(self, limit: int = 100) -> Sequence[Lease]:
        members = await self._redis.run("expired_leases", args=(limit,))
        return [Lease(*member.decode().split(":", 1)) for member in members]

    async def adopt(self, lease: Lease, holder: str, seconds: float) -> int | None:
        args = (lease.owner, lease.turn, holder, round(seconds * 1000))
        fence: int | None = await self._redis.run("adopt_turn", args=args)
        return fence

    # what a turn reads ------------------------------------------------------------------------------------------
    async def history(self, owner: str, conversation: str | None, previous: str | None) -> Sequence[Item]:
        if conversation is None and previous is None:
            return []
        if conversation is not None and not is_name(conversation):
            raise _no_conversation(conversation)
        if previous is not None and not is_name(previous):
            raise _no_previous(previous)
        reply = await self._redis.run("read_history", args=(owner, conversation or "", previous or ""))
        match reply:
            case [b"items", shelf, flat]:
                return _items(shelf, flat)
        raise _refusal(reply, conversation, previous)

    async def log(self, owner: str, turn: str, after: int = 0) -> Sequence[bytes]:
        if not is_name(turn):
            return []
        entries = await self._redis.call("XRANGE", f"dm:stream:{owner}:{turn}", f"{after + 1}-0", "+")
        return [fields[1] for _, fields in entries]

    async def tail(self, owner: str, turn: str, after: int) -> tuple[Sequence[bytes], bytes | None]:
        reply = await self._redis.run("read_tail", args=(owner, turn, after)) if is_name(turn) else None
        if reply is None:
            raise _no_response(turn)
        entries, result = reply
        return [fields[1] for _, fields in entries], None if result is None else unpack(result)

    # responses --------------------------------------------------------------------------------------------------
    async def response(self, owner: str, turn: str) -> StoredResponse:
        reply = await self._redis.run("read_turn", args=(owner, turn)) if is_name(turn) else None
        if reply is None:
            raise _no_response(turn)
        created, status, conversation, previous, request, result, shelf, input, output, first_output = reply
        return StoredResponse(
            id=turn,
            owner=owner,
            created_at=int(created),
            status=status.decode(),
            conversation=_text(conversation),
            previous=_text(previous),
            request=unpack(request),
            result=None if result is None else unpack(result),
            input=_items(shelf, input),
            output=_items(shelf, output),
            shelf=shelf.decode(),
            first_output=first_output,
        )

    async def delete_response(self, owner: str, turn: str) -> None:
        reply = await self._redis.run("delete_turn", args=(owner, turn)) if is_name(turn) else b"unknown"
        if reply == b"unknown":
            raise _no_response(turn)
        if reply == b"running":
            raise _locked(None, turn)

    # conversations ----------------------------------------------------------------------------------------------
    async def create(self, owner: str, metadata: Mapping[str, str], items: Sequence[Json]) -> Conversation:
        _check_names(owner)
        conversation, origin = new_id("conv"), metadata.get(BRANCH_OF, "")
        if origin and not is_name(origin):
            raise _no_previous(origin)
        about = (*_metadata_arguments(metadata), origin)
        args: List[Argument] = [owner, conversation, new_shelf(), self._keep_seconds, *about, *_encoded(items)]
        reply = await self._redis.run("create_conversation", args=args)
        if reply != [b"created"]:
            raise _refusal(reply, None, origin)
        return await self.get(owner, conversation)

    async def get(self, owner: str, conversation: str) -> Conversation:
        if not is_name(conversation):
            raise _no_conversation(conversation)
        fields = ("created", "updated", "version", "meta", "title", "running")
        row = await self._redis.call("HMGET", f"dm:conv:{owner}:{conversation}", *fields)
        if row[0] is None:
            raise _no_conversation(conversation)
        return _conversation(conversation, row)

    async def list(
        self, owner: str, limit: int, after: str | None, query: str | None, root: str | None = None
    ) -> tuple[Sequence[Conversation], bool]:
        wanted, size = (query or "").casefold(), SEARCH_PAGE if query or root else limit + 1
        found: dict[str, Conversation] = {}  # by id: one that moves to the top between two pages is met twice
        rank, more = 0, True
        while more and len(found) <= limit:
            page, rank, more = await self._page(owner, after, rank, size)
            titled = (c for c in page if wanted in c.metadata.get(TITLE, "").casefold())
            found |= {c.id: c for c in titled if root is None or root in (c.id, c.metadata.get(ROOT))}
            after = None
        return List(found.values())[:limit], len(found) > limit

    async def _page(self, owner: str, after: str | None, rank: int, size: int) -> tuple[List[Conversation], int, bool]:
        if after is not None and not is_name(after):
            raise _no_conversation(after)
        reply = await self._redis.run("list_conversations", args=(owner, after or "", rank, size))
        if reply is None:
            raise _no_conversation(after or "")
        end, seen, *rows = reply
        return [_conversation(id.decode(), row) for id, *row in rows], end, seen == size

    async def update(
        self, owner: str, conversation: str, metadata: Mapping[str, str], expected_version: int | None
    ) -> Conversation:
        if not is_name(conversation):
            raise _no_conversation(conversation)
        expected = "" if expected_version is None else expected_version
        about = _metadata_arguments(metadata)
        args = (owner, conversation, expected, self._keep_seconds, *about)
        reply = await self._redis.run("update_conversation", args=args)
        if reply != [b"updated"]:
            raise _refusal(reply, conversation, None)
        return await self.get(owner, conversation)

    async def delete(self, owner: str, conversation: str) -> None:
        if not is_name(conversation):
            raise _no_conversation(conversation)
        reply = await self._redis.run("delete_conversation", args=(owner, conversation))
        if reply != [b"deleted"]:
            raise _refusal(reply, conversation, None)

    async def add_items(self, owner: str, conversation: str, items: Sequence[Json]) -> Sequence[Item]:
        if not is_name(conversation):
            raise _no_conversation(conversation)
        reply = await self._redis.run("add_items", args=(owner, conversation, self._keep_seconds, *_encoded(items)))
        match reply:
            case [b"added", shelf, first]:
                return _numbered(items, shelf.decode(), first)
        raise _refusal(reply, conversation, None)

    async def items(
        self, owner: str, conversation: str, limit: int, order: str, after: str | None
    ) -> tuple[Sequence[Item], bool]:
        if not is_name(conversation):
            raise _no_conversation(conversation)
        number = _place(after, conversation).number if after else ""
        reply = await self._redis.run("read_items", args=(owner, conversation, limit + 1, order, number))
        match reply:
            case [b"items", shelf, flat, turns]:
                pairs = zip(_items(shelf, flat), turns, strict=True)
                found = [replace(item, turn=turn.decode() or None) for item, turn in pairs]
                return found[:limit], len(found) > limit
        raise _refusal(reply, conversation, None)

    async def item(self, owner: str, conversation: str, item: str) -> Item:
        if not is_name(conversation):
            raise _no_conversation(conversation)
        place = _place(item, conversation)
        reply = await self._redis.run("read_item", args=(owner, conversation, *place))
        match reply:
            case [b"item", body]:
                return _same_id(_item(place, body), item, conversation)
            case [b"no_item"]:
                raise _no_item(item, conversation)
        raise _refusal(reply, conversation, None)

    async def any_item(self, owner: str, item: str) -> Item | None:
        if (place := place_of(item)) is None:
            return None
        body = await self._redis.call("HGET", f"dm:shelf:{owner}:{place.shelf}", place.number)
        found = None if body is None else _item(place, body)
        return found if found is not None and found.id == item else None

    async def delete_item(self, owner: str, conversation: str, item: str) -> Conversation:
        await self.item(owner, conversation, item)
        args = (owner, conversation, *_place(item, conversation), self._keep_seconds)
        reply = await self._redis.run("delete_item", args=args)
        match reply:
            case [b"deleted"]:
                return await self.get(owner, conversation)
            case [b"no_item"]:
                raise _no_item(item, conversation)
        raise _refusal(reply, conversation, None)


# values ---------------------------------------------------------------------------------------------------------
def _check_names(*names: str) -> None:
    for name in names:
        if not is_name(name):
            raise ValueError(f"{name!r} cannot be part of a Redis key")


def _fingerprint(key: str) -> str:
    """A client's key as part of a Redis key: short, and nothing of its text."""
    return blake2b(key.encode(), digest_size=16).hexdigest()


def _encoded(items: Sequence[Json]) -> List[bytes]:
    return [pack(msgspec.json.encode(item)) for item in items]


def _numbered(bodies: Sequence[Json], shelf: str, first: int) -> List[Item]:
    return [Item(item_id(body, shelf, number), body) for number, body in enumerate(bodies, first)]


def _items(shelf: bytes, flat: Sequence[Any]) -> List[Item]:
    name = shelf.decode()
    return [_item(Place(name, number), body) for number, body in zip(flat[::2], flat[1::2], strict=True)]


def _item(place: Place, encoded: bytes) -> Item:
    body = msgspec.json.decode(unpack(encoded))
    return Item(item_id(body, *place), body)


def _same_id(found: Item, asked: str, conversation: str) -> Item:
    """`msg_x1` and `fc_x1` name one place; only the one that was given out is an id."""
    if found.id != asked:
        raise _no_item(asked, conversation)
    return found


def _place(item: str, conversation: str) -> Place:
    if (place := place_of(item)) is None:
        raise _no_item(item, conversation)
    return place


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _metadata_arguments(metadata: Mapping[str, str]) -> tuple[bytes, str]:
    """Metadata without the title, and the title: it stands in a field of its own, where turns set it."""
    rest = {name: value for name, value in metadata.items() if name != TITLE}
    return msgspec.json.encode(rest), metadata.get(TITLE, "")


def _conversation(id: str, row: Sequence[Any]) -> Conversation:
    created, updated, version, meta, title, running = row
    metadata = msgspec.json.decode(meta, type=dict[str, str])
    if title is not None:
        metadata[TITLE] = title.decode()
    return Conversation(id, int(created), int(updated) // 1000, int(version), metadata, _text(running))


# refusals -------------------------------------------------------------------------------------------------------
def _refusal(reply: Sequence[bytes], conversation: str | None, previous: str | None) -> Refusal:
    """The error that a script's answer stands for."""
    match reply:
        case [b"no_conversation"]:
            return _no_conversation(conversation or "")
        case [b"no_previous"]:
            return _no_previous(previous or "")
        case [b"too_deep"]:
            return ContextLengthExceeded(
                "More than 2,000 responses are chained by previous_response_id; use a conversation.",
                param="previous_response_id",
            )
        case [b"locked", version, running]:
            return _locked(int(version) if version else None, running.decode())
        case [b"version", version]:
            return VersionConflict(
                f"The conversation has changed: it is at version {int(version)} now; read it again.",
                details={"version": int(version)},
            )
    raise AssertionError(f"a script answered {reply[:1]!r}")


def _no_conversation(conversation: str) -> NotFound:
    return NotFound(f"No conversation with id {conversation!r}.", param="conversation")


def _no_response(turn: str) -> NotFound:
    return NotFound(f"No response with id {turn!r}.", param="response_id")


def _no_item(item: str, conversation: str) -> NotFound:
    return NotFound(f"No item with id {item!r} in conversation {conversation!r}.", param="item_id")


def _no_previous(turn: str) -> PreviousResponseNotFound:
    return PreviousResponseNotFound(
        f"Previous response with id {turn!r} not found, or one it builds on was deleted.", param="previous_response_id"
    )


def _locked(version: int | None, running: str) -> ConversationLocked:
    known = {} if version is None else {"version": version}
    return ConversationLocked(
        f"Response {running!r} is still being written; wait for its end or cancel it.",
        details={**known, "running": running},
    )
