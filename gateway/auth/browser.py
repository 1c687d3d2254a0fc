"""What a browser carries and shows: the session cookie, and the proof that a page of ours sent the request.

Knows no store. A cookie alone proves little, since a browser attaches it to any page's request.
"""

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from gateway.auth.sessions import ABSOLUTE_SECONDS
from gateway.errors import Forbidden
from gateway.settings import Settings

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Cookies:
    """The session cookie: `__Host-sid` where people come by HTTPS, a plainly named one where they cannot."""

    def __init__(self, settings: Settings) -> None:
        secure = settings.tls_cert is not None or (settings.public_url or "").startswith("https:")
        self.name = "__Host-sid" if secure else "deskmate_sid"
        self._flags = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")

    def token(self, request: HTTPConnection) -> str | None:
        return request.cookies.get(self.name)

    def set(self, token: str) -> dict[str, str]:
        return {"set-cookie": f"{self.name}={token}; Max-Age={ABSOLUTE_SECONDS}{self._flags}"}

    def clear(self) -> dict[str, str]:
        # Not "cookies": that would sign people out of every other service under the same domain.
        return {"set-cookie": f"{self.name}=; Max-Age=0{self._flags}", "clear-site-data": '"cache", "storage"'}


class SameOrigin:
    """Tells our own pages' requests from those another page makes a browser send."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit(settings.public_url or "")
        self._public = f"{public.scheme}://{public.netloc}".lower() if public.netloc else None

    def require(self, request: HTTPConnection) -> None:
        """Raise Forbidden for an unsafe method, or a WebSocket, that is not proven to come from our own page."""
        is_safe = not _is_socket(request) and request.scope["method"] in _SAFE_METHODS
        if not is_safe and self.is_ours(request) is not True:
            raise _forbidden()

    def refuse_foreign(self, request: HTTPConnection) -> None:
        """Raise Forbidden for what another page sent; a client that is no browser may pass."""
        if self.is_ours(request) is False:
            raise _forbidden()

    def is_ours(self, request: HTTPConnection) -> bool | None:
        """True: by our page or typed by the person. False: by another page. None: the client does not say."""
        site = request.headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none"):
            return False
        if site is not None and not _is_socket(request):  # browsers always name the origin of a WebSocket
            return True
        origin = request.headers.get("origin")  # browsers leave Sec-Fetch-Site out where there is no TLS
        if origin is None:
            return None
        host = request.headers.get("host", "")
        scheme = {"ws": "http", "wss": "https"}.get(request.scope["scheme"], request.scope["scheme"])
        return origin.lower() in (f"{scheme}://{host}".lower(), self._public)


def _is_socket(request: HTTPConnection) -> bool:
    return bool(request.scope["type"] == "websocket")


def _forbidden() -> Forbidden:
    return Forbidden(
        "This request did not come from a page of this server, so the session cookie does not count. "
        "Programs use an API key: 'Authorization: Bearer KEY'.",
        code="cross_site_request",
    )
