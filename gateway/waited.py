"""Why an answer took as long as it did, in the headers of one that is not streamed. Pure; knows no route."""


def headers_of(place: int, **seconds: float) -> dict[str, str]:
    """`place`: in line, when the request came (0: a seat was free). `seconds`: of each phase, `queued` first."""
    phases = ", ".join(f"{name};dur={value * 1000:.1f}" for name, value in seconds.items())
    return {
        "x-queue-position": str(place),
        "x-queue-wait-ms": f"{seconds['queued'] * 1000:.0f}",
        "server-timing": phases,
    }
