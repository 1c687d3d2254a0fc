"""Ends the parts when the supervisor was killed and could not do it itself. Knows only the records it is sent.

One JSON a line: it reads a pipe whose other end the supervisor holds: when that closes, the supervisor is gone.
The last record of each name counts; a line of null takes them all back. Its argument is the sockets' folder, which
goes last.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterable

from deploy.processes import Record, end

ORDER = ("gateway", "convert", "worker", "redis")
PATIENCE_SECONDS = 3.0


def in_order(records: Iterable[Record]) -> list[Record]:
    """As a stop goes. `gateway-2` and its successor `gateway-2+` are gateways."""
    return sorted(records, key=lambda record: next(i for i, kind in enumerate(ORDER) if record.name.startswith(kind)))


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    records: dict[str, Record] = {}
    for line in sys.stdin:
        value = json.loads(line)
        if value is None:
            records.clear()
        else:
            record = Record(**value)
            records[record.name] = record
    for record in in_order(records.values()):
        end(record, PATIENCE_SECONDS)
    if records:
        shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
