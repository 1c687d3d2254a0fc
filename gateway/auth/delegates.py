"""Whom a front end's request speaks for: a header, taken from allowed addresses only. Knows neither keys nor people.

Names are taken to the letter: two that differ in anything are two people. So what could be read in two ways is refused,
and what names nobody (no header, an empty one, a placeholder that a front end has not filled in) stands for nobody.
"""

import unicodedata
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.requests import HTTPConnection

from gateway.auth.people import LONGEST_NAME
from gateway.errors import BadRequest, Forbidden
from gateway.settings import Settings, SettingsError

_PLACEHOLDERS = ("{{", "${")  # as front ends write them in the headers they are told to send


class Delegates:
    """Raises SettingsError where the allowed addresses are none."""

    def __init__(self, settings: Settings) -> None:
        self._header = settings.delegate_header
        self._name = (settings.delegate_header or "").lower().encode()
        self._behind_proxies = bool(settings.trusted_proxies)
        try:
            self._networks = [ip_network(text, strict=False) for text in settings.delegate_addresses]
        except ValueError:
            example = "addresses or networks, as in 127.0.0.1,10.0.0.0/24"
            raise SettingsError(f"DESKMATE_DELEGATE_ADDRESSES must be {example}") from None

    def named(self, request: HTTPConnection) -> str | None:
        """The name that the front end gives its person, None when it gives none. Raises Forbidden and BadRequest."""
        values = [value for name, value in request.scope["headers"] if name == self._name]
        text = _text(values[0]) if len(values) == 1 else None
        if not values or (text is not None and _is_nobody(text)):
            return None
        self._require_address(request)
        if text is None or not _is_name(text):
            raise BadRequest(
                f"The header '{self._header}' must be there once and hold a person's name: 1 to {LONGEST_NAME} "
                "printable characters in UTF-8. An id or an e-mail address is best.",
                code="invalid_person",
                param=self._header,
            )
        return unicodedata.normalize("NFC", text)

    def nobody(self) -> Forbidden:
        """Why a request that names nobody is refused."""
        if self._header is None:
            message = "no header for that is set on this server (DESKMATE_DELEGATE_HEADER)"
        else:
            message = f"name the person in the header '{self._header}', which was missing, empty or a placeholder"
        return Forbidden(f"This key speaks for a front end's people: {message}.", code="no_person_named")

    def _require_address(self, request: HTTPConnection) -> None:
        """Raises Forbidden. Where a proxy that is not believed stands between, everybody has its address."""
        if request.scope.get("state", {}).get("forwarded", False) and not self._behind_proxies:
            raise _refused("through a proxy that is not in DESKMATE_TRUSTED_PROXIES. The administrator can add it")
        host = request.client.host if request.client else "an unknown address"
        address = _address(host)
        if address is None or not any(address in network for network in self._networks):
            raise _refused(f"from {host}. If the front end is there, add it to DESKMATE_DELEGATE_ADDRESSES")


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:  # to guess its encoding would make one person of two
        return None


def _is_nobody(text: str) -> bool:
    return not text.strip() or any(mark in text for mark in _PLACEHOLDERS)


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and text.isprintable() and text == text.strip()


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _refused(why: str) -> Forbidden:
    return Forbidden(f"This key cannot speak for people {why}.", code="address_not_allowed")
