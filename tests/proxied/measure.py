"""What nginx adds between two words: the same answers directly and through it, in turn, on one gateway.

python -m tests.proxied.measure [--rounds 20] [--pace-ms 10]
"""

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence

import openai

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.proxied.proxied import Nginx, trust
from tests.servers import some_redis

WORDS = 64
AT_ONCE = 4


async def gaps_of(client: openai.AsyncOpenAI) -> list[float]:
    """Milliseconds between the words of one answer."""
    stream = await client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "Hello?"}],
        max_tokens=WORDS,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    at = [time.perf_counter() async for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    return [(after - before) * 1000 for before, after in itertools.pairwise(at)]


async def gaps(client: openai.AsyncOpenAI) -> list[float]:
    """Of several people at once."""
    return [gap for one in await asyncio.gather(*(gaps_of(client) for _ in range(AT_ONCE))) for gap in one]


def shown(name: str, values: Sequence[float]) -> str:
    parts = statistics.quantiles(values, n=100)
    return f"{name:14} {len(values):6} gaps  median {statistics.median(values):6.2f} ms  p99 {parts[98]:6.2f} ms"


async def measure(gateway: GatewayProcess, nginx: Nginx, rounds: int) -> None:
    await gateway.until_ready()
    key = await gateway.key("ann")
    over_tls = openai.DefaultAsyncHttpxClient(verify=trust())
    async with (
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key) as direct,
        openai.AsyncOpenAI(base_url=f"{nginx.url}/v1", api_key=key, http_client=over_tls) as through,
    ):
        taken: dict[str, list[float]] = {"direct": [], "through nginx": []}
        for number in range(rounds + 1):
            for name, client in (("direct", direct), ("through nginx", through))[:: 1 if number % 2 else -1]:
                found = await gaps(client)
                if number:  # the first round warms up
                    taken[name] += found
    for name, values in taken.items():
        print(shown(name, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pace-ms", type=float, default=10.0)
    arguments = parser.parse_args()
    trusted = {"DESKMATE_TRUSTED_PROXIES": "127.0.0.1", "DESKMATE_PUBLIC_URL": "https://localhost"}
    with some_redis() as redis, FakeWorker(seats=AT_ONCE) as worker:
        worker.script(pace_ms=arguments.pace_ms)
        with GatewayProcess(redis, worker.url, trusted) as gateway, Nginx(gateway.port) as nginx:
            asyncio.run(measure(gateway, nginx, arguments.rounds))


if __name__ == "__main__":
    main()
