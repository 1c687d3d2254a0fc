"""The installation's secret and what derives from it, a separate key per purpose; knows no user and no store."""

import hmac
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

MINIMUM_BYTES = 32


class SecretError(Exception):
    """The secret cannot be used; the message says why and never what it is."""


class Secrets:
    """Keys by HKDF-SHA256 (RFC 5869), one label each, so that no value made for one purpose is of use for another."""

    def __init__(self, installation_secret: bytes) -> None:
        require_length(installation_secret)
        self._root = hmac.digest(b"deskmate", installation_secret, sha256)  # HKDF-Extract
        self._api_keys = self.derive("api key pepper v1")
        self._tokens = self.derive("session and link tokens v1")
        self._cache = self.derive("cache salt v1")

    @classmethod
    def from_file(cls, path: Path) -> "Secrets":
        return cls(read_secret("DESKMATE_SECRET_FILE", path))

    def derive(self, label: str) -> bytes:
        """32 bytes for one purpose: HKDF-Expand's first block."""
        return hmac.digest(self._root, label.encode() + b"\x01", sha256)

    def digest_of_key(self, key: str) -> str:
        """Under which an API key is stored and found."""
        return hmac.digest(self._api_keys, key.encode(), sha256).hex()

    def digest_of_token(self, token: str) -> str:
        """Under which a session or a sign-in link is stored and found."""
        return hmac.digest(self._tokens, token.encode(), sha256).hex()

    def cache_salt(self, user: str) -> str:
        """43 characters that keep a person's prefix cache apart from everybody else's."""
        return urlsafe_b64encode(hmac.digest(self._cache, user.encode(), sha256)).rstrip(b"=").decode()


def read_secret(variable: str, path: Path) -> bytes:
    """What the file holds, without white space around it. Raises SecretError, which names the variable and the path."""
    try:
        secret = path.read_bytes().strip()
        require_length(secret)
    except (OSError, SecretError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise SecretError(f"{variable}: {path}: {reason}") from None
    return secret


def require_length(secret: bytes) -> None:
    if len(secret) < MINIMUM_BYTES:
        raise SecretError(f"the secret has {len(secret)} bytes, at least {MINIMUM_BYTES} are needed")
