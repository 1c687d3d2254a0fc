"""What can go wrong before or beside the running parts, and the exit codes a script can rely on. Knows no part.

Refusal
├── UsageError           2   the command line asks for something impossible
├── NotRunning           3   the command needs a running Deskmate
├── AlreadyRunning       4   `up` for a data folder that is in use
├── PortInUse           69   somebody else listens there
├── BadConfiguration    78   a model directory, bundle or setting that cannot work
└── InstallFailed        1   the environment could not be made
"""

from __future__ import annotations

EXIT_CODES = (
    (0, "done"),
    (1, "failed; the message says why"),
    (2, "wrong usage"),
    (3, "Deskmate is not running"),
    (4, "Deskmate is already running for this data folder"),
    (69, "the port is in use by another program"),
    (78, "a bad model directory, bundle or setting, or not enough memory for it"),
    (130, "interrupted before it was up"),
)


class Refusal(Exception):
    """A message for people: what happened, which value or path, what to do next."""

    exit_code = 1


class UsageError(Refusal):
    exit_code = 2


class NotRunning(Refusal):
    exit_code = 3


class AlreadyRunning(Refusal):
    exit_code = 4


class PortInUse(Refusal):
    exit_code = 69


class BadConfiguration(Refusal):
    exit_code = 78


class InstallFailed(Refusal):
    exit_code = 1
