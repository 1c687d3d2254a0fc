"""What is told of waiting: each piece of news while it lasts, and in headers afterwards. Pure; knows no route."""

from gateway.admission import Waiting

NEWS_SECONDS, NEWS_PART = 2.0, 0.25  # so far off what was told of a wait is told anew


def is_news(now: Waiting, told: Waiting, seconds: float) -> bool:
    """Whether another place, or another wait than that which was told `seconds` ago and has gone by since."""
    if now.position != told.position or now.eta_seconds is None:
        return now.position != told.position
    if told.eta_seconds is None:
        return True
    return abs(now.eta_seconds - (told.eta_seconds - seconds)) > max(NEWS_SECONDS, NEWS_PART * now.eta_seconds)


def comment_of(waiting: Waiting) -> bytes:
    """An SSE comment, which clients skip and people who look at the stream read."""
    if not waiting.position:
        return b": seated\n\n"
    wait = "" if waiting.eta_seconds is None else f", about {waiting.eta_seconds:.1f} s"
    return f": queued, place {waiting.position}{wait}\n\n".encode()


def headers_of(place: int, **seconds: float) -> dict[str, str]:
    """`place`: in line, when the request came (0: a seat was free). `seconds`: of each phase, `queued` first."""
    phases = ", ".join(f"{name};dur={value * 1000:.1f}" for name, value in seconds.items())
    return {
        "x-queue-position": str(place),
        "x-queue-wait-ms": f"{seconds['queued'] * 1000:.0f}",
        "server-timing": phases,
    }
