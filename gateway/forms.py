"""Asks the engine whether it can hold an answer to a form - a schema, tools - before anything is stored or waits.

A worker of ours has a route for it (`worker/endpoint.py`); a bare vLLM has none, and then says it when it is asked for
the answer. What was found of a form is remembered as long as the same engine serves. Knows no API.
"""

import asyncio
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from gateway.engine import Engine, EngineState
from gateway.errors import EngineLost, PromptRefused
from gateway.refused import refused

PATH = "/deskmate/check"
SECONDS = 10.0  # the engine's own look at 64 KiB of schema takes a tenth of a second
MOST_KNOWN = 512
_MESSAGES = [{"role": "user", "content": "?"}]


class Forms:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[bytes, str | None] = {}  # what is wrong with a form

    async def check(self, form: Mapping[str, Any], request_id: str, param: str, code: str | None = None) -> None:
        """`form`: what a chat asks for beside text, as vLLM takes it. Raises PromptRefused, naming `param`."""
        engine = self._engine
        if not form or engine.state is not EngineState.READY or engine.model is None:
            return  # whoever is given the seat hears it from the engine
        body = msgspec.json.encode({"model": engine.model.id, "messages": _MESSAGES, "max_tokens": 1, **form})
        key = sha256(b"%f" % engine.since + body).digest()
        if key not in self._known:
            found = await self._ask(body, request_id)
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        if (wrong := self._known[key]) is not None:
            raise PromptRefused(wrong, of_a_schema=True, param=param, code=code)

    async def _ask(self, body: bytes, request_id: str) -> str | None:
        try:
            async with asyncio.timeout(SECONDS), self._engine.open(PATH, body, request_id) as upstream:
                answer = refused(upstream.status, await upstream.read()) if upstream.status >= 400 else None
        except (TimeoutError, EngineLost):
            return None
        return answer.message if isinstance(answer, PromptRefused) and answer.of_a_schema else None
