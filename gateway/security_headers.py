"""The headers that tell a browser how little a page of ours may do; knows nothing of requests."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types chat dompurify"
)
_UNUSED_FEATURES = ("camera", "display-capture", "geolocation", "microphone", "payment", "usb")
_TWO_YEARS_SECONDS = 63_072_000


def security_headers(*, https: bool) -> list[tuple[bytes, bytes]]:
    """For every response, errors included. `https`: people reach us by TLS, here or at a proxy."""
    headers = {
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "x-dns-prefetch-control": "off",
        "permissions-policy": ", ".join(f"{feature}=()" for feature in _UNUSED_FEATURES),
    }
    if https:
        headers["strict-transport-security"] = f"max-age={_TWO_YEARS_SECONDS}"
    return [(name.encode(), value.encode()) for name, value in headers.items()]
