"""Backup and restore: everything people have in one file that no version of Redis or Valkey has to understand."""


class BackupError(Exception):
    """A backup cannot be made or used; the message says why and what to do."""
