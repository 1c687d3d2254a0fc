"""What was said: conversations, responses and their items, kept per person.

The types and the contract stand here; `store.py` fulfils it on Redis. Knows nothing of HTTP, of the engine or of
how an item looks inside: an item is a JSON object in the Responses API's shape, kept and given back unchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

Json = Mapping[str, Any]

OUTPUT_ITEMS = 64  # numbers reserved at begin for the items of an answer
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "compaction": "cmp",
}


def item_id(body: Json, shelf: str, number: int) -> str:
    """An item's id names its place: `<prefix>_<shelf><number>`, the prefix by its type."""
    return f"{_PREFIXES.get(body.get('type', 'message'), 'itm')}_{shelf}{number}"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a conversation. `id` is `<prefix>_<shelf><number>`; `body` is the API object without its id."""

    id: str
    body: Json
    turn: str | None = None  # the turn that brought or wrote it, where a page of items says so


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    created_at: int  # Unix seconds
    updated_at: int
    version: int  # grows by one with every change of items or metadata
    metadata: Mapping[str, str]
    running: str | None  # id of the response being written, if any


@dataclass(frozen=True, slots=True)
class Begin:
    """Everything a turn writes before it may wait for the engine.

    `turn` is the response id, chosen by the caller; `request` the caller's record of what was asked, opaque here.
    `key` with `digest` make a repeated post attach to the first one; `key_seconds` is how long it is remembered.
    With `attach` false this post is known to be a first one: it is remembered under its key, whatever was before.
    """

    owner: str
    turn: str
    created_at: int
    input: Sequence[Json]
    request: bytes
    conversation: str | None = None
    previous: str | None = None
    expected_version: int | None = None
    key: str | None = None
    digest: str = ""
    key_seconds: int = 86_400
    attach: bool = True
    title: str | None = None  # becomes metadata["deskmate:title"] when the conversation has none
    holder: str = ""  # the gateway process that runs the turn
    lease_seconds: float = 5.0
    entry: bytes = b""  # the first of the stream log


@dataclass(frozen=True, slots=True)
class Begun:
    """What begin wrote.

    `OUTPUT_ITEMS` numbers of the shelf, from `first_output` on, are reserved for the answer, so that a stream names
    its items before they are stored: `item_id(body, shelf, first_output + i)`.
    """

    fence: int  # the token every later write of this turn must show
    input: Sequence[Item]
    shelf: str
    first_output: int


@dataclass(frozen=True, slots=True)
class Attached:
    """The same post came before: its turn is this one; nothing was written."""

    turn: str


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response as stored. `status` is in_progress until finish; `result` is the finisher's opaque record."""

    id: str
    owner: str
    created_at: int
    status: str
    conversation: str | None
    previous: str | None
    request: bytes
    result: bytes | None
    input: Sequence[Item]
    output: Sequence[Item]
    shelf: str
    first_output: int


@dataclass(frozen=True, slots=True)
class Finish:
    owner: str
    turn: str
    fence: int
    status: str  # completed | incomplete | failed | cancelled
    output: Sequence[Json]
    result: bytes
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Append:
    """Entries of one turn's stream log, numbered from `first` on (1-based, no gaps)."""

    owner: str
    turn: str
    fence: int
    first: int
    entries: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Lease:
    owner: str
    turn: str


class Standing(IntEnum):
    """How a turn stands with the process that runs it."""

    LOST = 0  # somebody else has it, or it is over: stop, and write nothing more
    OURS = 1
    STOP = 2  # ours, but its owner asked for its end


class Conversations(Protocol):
    """Storage of one installation. Every method names the owner; what belongs to somebody else does not exist.

    Raises StorageDown when Redis cannot be reached or answers too late, StorageFull when it refuses writes; then
    nothing was written, or — reply lost — a repeat with the same key finds it. Cancelling a call never mixes replies.
    """

    # a turn -----------------------------------------------------------------------------------------------------
    async def begin(self, begin: Begin) -> Begun | Attached:
        """Append the input, create the response and its lease, lock the conversation: all or nothing.

        Raises NotFound (conversation), PreviousResponseNotFound, ConversationLocked (details: version, running),
        VersionConflict (details: version), IdempotencyConflict (same key, other digest).
        """
        ...

    async def has_come(self, owner: str, key: str) -> bool:
        """Whether a post came under this key before; writes nothing."""
        ...

    async def undo(self, owner: str, turn: str, fence: int) -> None:
        """Take a begun turn back as if never posted: items, lock, key, log. Does nothing when the fence is not ours."""
        ...

    async def append(self, appends: Sequence[Append]) -> Sequence[Standing]:
        """Write log entries of many turns in one round trip; none where the fence is no longer the turn's.

        Safe to repeat: entries already there are skipped by their number.
        """
        ...

    async def finish(self, finish: Finish) -> Sequence[Item] | None:
        """Append the output under the numbers reserved at begin, in order; record result and usage, unlock, drop the
        lease, give the log its TTL: one script.

        Returns the output items with their ids; None when the fence is no longer ours (nothing was written).
        Safe to repeat: a second call of the same finish returns the same items.
        """
        ...

    async def renew(self, leases: Sequence[Lease], holder: str, seconds: float) -> Sequence[Standing]: ...

    async def hand_over(self, leases: Sequence[Lease], holder: str) -> None:
        """Let go of turns that are still the holder's: anybody may adopt them now."""
        ...

    async def ask_to_stop(self, owner: str, turn: str) -> None:
        """Tell whoever runs the turn to end it, when it runs at all."""
        ...

    async def expired(self, limit: int = 100) -> Sequence[Lease]:
        """Turns whose holder stopped renewing."""
        ...

    async def adopt(self, lease: Lease, holder: str, seconds: float) -> int | None:
        """Take an expired turn over: its new fence, or None when somebody else was faster or it has finished."""
        ...

    # what a turn reads ------------------------------------------------------------------------------------------
    async def history(self, owner: str, conversation: str | None, previous: str | None) -> Sequence[Item]:
        """All items of a conversation, or of a response's context with its input and (so far) its output; oldest
        first. Given a turn that has just begun as `previous`, that is what its prompt is made of. Raises NotFound
        or PreviousResponseNotFound."""
        ...

    async def log(self, owner: str, turn: str, after: int = 0) -> Sequence[bytes]:
        """Log entries with number > `after`; empty when the log's TTL is over."""
        ...

    async def tail(self, owner: str, turn: str, after: int) -> tuple[Sequence[bytes], bytes | None]:
        """As `log`, and the finisher's record once the turn has ended; then nothing more comes. Raises NotFound."""
        ...

    # responses --------------------------------------------------------------------------------------------------
    async def response(self, owner: str, turn: str) -> StoredResponse:
        """Raises NotFound."""
        ...

    async def delete_response(self, owner: str, turn: str) -> None:
        """Forget a response and its log; items go with it unless a conversation holds them. Raises NotFound,
        ConversationLocked while it runs."""
        ...

    # conversations ----------------------------------------------------------------------------------------------
    async def create(self, owner: str, metadata: Mapping[str, str], items: Sequence[Json]) -> Conversation:
        """`metadata["deskmate:branch_of"] = response id` starts with that response's context and output, shared by
        reference. Raises PreviousResponseNotFound for an unknown one."""
        ...

    async def get(self, owner: str, conversation: str) -> Conversation: ...

    async def list(
        self, owner: str, limit: int, after: str | None, query: str | None, root: str | None = None
    ) -> tuple[Sequence[Conversation], bool]:
        """Newest first (by last use), and whether more follow. `query` searches titles, case-insensitively; with
        `root` only that conversation and those whose metadata["deskmate:root"] names it."""
        ...

    async def update(
        self, owner: str, conversation: str, metadata: Mapping[str, str], expected_version: int | None
    ) -> Conversation: ...

    async def delete(self, owner: str, conversation: str) -> None:
        """Delete it with its items (unless another holds them), responses and stream logs. Raises NotFound,
        ConversationLocked while a turn runs in it."""
        ...

    async def add_items(self, owner: str, conversation: str, items: Sequence[Json]) -> Sequence[Item]: ...

    async def items(
        self, owner: str, conversation: str, limit: int, order: str, after: str | None
    ) -> tuple[Sequence[Item], bool]:
        """A page of items, each with its turn: of this conversation, or of those it branched from while they live."""
        ...

    async def item(self, owner: str, conversation: str, item: str) -> Item: ...

    async def any_item(self, owner: str, item: str) -> Item | None:
        """An item of the owner's, wherever it lies; None for an unknown one."""
        ...

    async def delete_item(self, owner: str, conversation: str, item: str) -> Conversation: ...
