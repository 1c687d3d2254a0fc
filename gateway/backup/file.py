"""The backup file: records in, records out, and the proof that none is missing or altered. Knows nothing of Redis.

    "deskmate backup 1\\n"   then a zlib stream, then the SHA-256 of every byte before it

The stream holds frames: a length (4 bytes, big-endian) and a record in MessagePack: first a header, then the
installation's secret, then keys, at last a footer that counts them. What keys mean follows from the header's data
version: a release that knows it can bring them forward. A key with many values comes in several records.
"""

import hashlib
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO

import msgspec

from gateway.backup import BackupError

MAGIC = b"deskmate backup 1\n"
KINDS = frozenset({"hash", "list", "set", "zset", "string", "stream"})
VALUES = 1000  # most values of one record
VALUES_BYTES = 256 << 10  # a record that has more is closed
_DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH = struct.Struct(">I")
_PIECE = 1 << 16
_LEVEL = 1  # content is packed already


class Header(msgspec.Struct, frozen=True, array_like=True, tag="header"):
    data_version: int
    release: str
    made_at: int  # seconds


class Secret(msgspec.Struct, frozen=True, array_like=True, tag="secret"):
    value: bytes


class Key(msgspec.Struct, frozen=True, array_like=True, tag="key"):
    """One key, or a part of it. At most one of `lasts_ms` (from the restore on) and `until_ms` (a date) is given.

    `values` of a hash: field, value …; of a zset: score, member …; of a stream: id, field, value …; else what it holds.
    """

    name: bytes
    kind: str
    values: list[bytes]
    lasts_ms: int | None = None
    until_ms: int | None = None


class Footer(msgspec.Struct, frozen=True, array_like=True, tag="footer"):
    records: int  # of keys
    conversations: int
    people: int


Record = Header | Secret | Key | Footer

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def _read_through(records: Iterator[Record]) -> tuple[Header, Secret, Footer]:
    """What stands around the keys. Raises ValueError where something is not as this release writes it."""
    match list(itertools.islice(records, 2)):
        case [Header() as header, Secret() as secret]:
            pass
        case _:
            raise ValueError("it does not begin with a header and a secret")
    for count, record in enumerate(records):
        if isinstance(record, Footer) and record.records == count:
            return header, secret, record
        if not isinstance(record, Key) or not record.name.startswith(b"dm:") or record.kind not in KINDS:
            raise ValueError(f"record {count} is not a key")
    raise ValueError("it has no footer")


class Writer:
    """Writes one backup into a stream that need not be seekable."""

    def __init__(self, stream: IO[bytes], header: Header, secret: Secret) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._deflate = zlib.compressobj(_LEVEL)
        self._records = 0
        self.bytes = 0
        self._put(MAGIC)
        self._frame(header)
        self._frame(secret)

    def write(self, key: Key) -> None:
        for part in _parts(key):
            self._frame(part)
            self._records += 1

    def close(self, *, conversations: int, people: int) -> None:
        self._frame(Footer(self._records, conversations, people))
        self._put(self._deflate.flush())
        self._put(self._digest.digest())
        self._stream.flush()

    def _frame(self, record: Record) -> None:
        body = _encoder.encode(record)
        self._put(self._deflate.compress(_LENGTH.pack(len(body)) + body))

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.bytes += len(data)


def _parts(key: Key) -> Iterator[Key]:
    """The key in records that are not too large. A part has whole pairs and whole entries of a stream."""
    step = {"hash": 2, "zset": 2, "stream": 3}.get(key.kind, 1)
    start, size = 0, 0
    for at in range(0, len(key.values), step):
        size += sum(map(len, key.values[at : at + step]))
        end = at + step
        if end == len(key.values) or end + step - start > VALUES or size > VALUES_BYTES:
            yield msgspec.structs.replace(key, values=key.values[start:end])
            start, size = end, 0


class Reader:
    """Reads a backup from a seekable file. Made, it has proven the file whole: raises BackupError."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.bytes = stream.seek(0, os.SEEK_END)
        self._prove()
        try:
            self.header, self.secret, self.footer = _read_through(self._records())
        except (ValueError, zlib.error) as fault:  # msgspec's errors are ValueErrors
            raise BackupError(f"the backup cannot be read by this release: {fault}") from None

    def keys(self) -> Iterator[Key]:
        for record in self._records():
            if isinstance(record, Key):
                yield record

    def _prove(self) -> None:
        """Compare the digest. What is missing or altered, wherever it is, shows here."""
        self._stream.seek(0)
        if (magic := self._stream.read(len(MAGIC))) != MAGIC:
            later = len(magic) == len(MAGIC) and magic.startswith(MAGIC[:-2])
            raise BackupError(
                "the backup was made by a later release; restore it with that one"
                if later
                else "this is not a backup of Deskmate"
            )
        digest, left = hashlib.sha256(magic), self.bytes - len(MAGIC) - _DIGEST_BYTES
        while left > 0 and (piece := self._stream.read(min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        if left or digest.digest() != self._stream.read():
            raise BackupError("the backup is cut off or altered: its checksum is wrong; use another one")

    def _records(self) -> Iterator[Record]:
        pieces, data = self._inflated(), b""
        while True:
            while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
                if (piece := next(pieces, None)) is None:
                    return
                data += piece
            end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
            yield _decoder.decode(data[_LENGTH.size : end])
            data = data[end:]

    def _inflated(self) -> Iterator[bytes]:
        self._stream.seek(len(MAGIC))
        inflate, left = zlib.decompressobj(), self.bytes - len(MAGIC) - _DIGEST_BYTES
        while left > 0:
            piece = self._stream.read(min(_PIECE, left))
            left -= len(piece)
            yield inflate.decompress(piece)
