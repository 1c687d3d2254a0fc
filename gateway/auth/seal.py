"""Content that its owner keeps and cannot read or change: sealed by the installation for one person. Knows no content.

AES-256-GCM with a key of each person's own, so that what was sealed for one is of no use to another.
"""

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.auth.secret import Secrets

_WAY = b"\x01"  # a later release may seal otherwise and still open this
_NONCE_BYTES = 12


class NotSealedHere(Exception):
    """Not sealed by this installation for this person, or changed since."""


def seal(keys: Secrets, owner: str, content: bytes) -> str:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return urlsafe_b64encode(_WAY + nonce + _cipher(keys, owner).encrypt(nonce, content, _WAY)).decode()


def unseal(keys: Secrets, owner: str, sealed: str) -> bytes:
    """Raises NotSealedHere."""
    try:
        raw = urlsafe_b64decode(sealed.encode("ascii"))
    except (NotBase64, UnicodeEncodeError):
        raise NotSealedHere from None
    nonce, rest = raw[1 : 1 + _NONCE_BYTES], raw[1 + _NONCE_BYTES :]
    if raw[:1] != _WAY or len(nonce) != _NONCE_BYTES:
        raise NotSealedHere
    try:
        return _cipher(keys, owner).decrypt(nonce, rest, _WAY)
    except InvalidTag:
        raise NotSealedHere from None


def _cipher(keys: Secrets, owner: str) -> AESGCM:
    return AESGCM(keys.derive(f"sealed content v1 for {owner}"))
