"""People at the desk: they ask, follow, lose the line and come back, stop, branch and delete, as the page does.

A question has one `Idempotency-Key` however often it is posted; a broken stream is resumed with `starting_after`, at
another gateway. Everything is recorded; nothing is judged here.
"""

import asyncio
import itertools
import random
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from tests.fault.desk import Desk
from tests.fault.history import Call, Question
from tests.proxy import Proxy

TYPE = re.compile(rb'"type":"([^"]+)"')
BYTE_SECONDS = 13.0  # a heartbeat comes every ten: whoever says nothing for longer is given up
ANSWER_SECONDS = 25.0  # of a call that is no stream: a cancel waits ten seconds for a turn whose gateway died
GIVE_UP_SECONDS = 90.0  # longer than any part is away in the tests; a real worker loads longer
AGAIN_SECONDS = 0.1
RETRIED = {408, 409, 429, 500, 502, 503, 504}  # what the official SDK posts again; our 409 says not to
_numbers = itertools.count(1)

BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass
class Person:
    desk: Desk
    name: str
    user: str
    key: str
    session: aiohttp.ClientSession
    luck: random.Random
    at: int = 0  # the gateway that is asked next
    patience_seconds: float = GIVE_UP_SECONDS

    # questions ----------------------------------------------------------------------------------------------------
    async def ask(self, conversation: str, *, leave_after: int | None = None, **more: Any) -> Question:
        """Ask and follow to the end; `leave_after`: stop following after so many events (the answer goes on)."""
        question = self.question(conversation)
        await self.post(question, leave_after=leave_after, **more)
        if leave_after is None:
            await self.follow(question)
        return question

    def question(self, conversation: str) -> Question:
        text = f"{self.name} asks {next(_numbers)}: how late is it?"
        asked = Question(self.name, self.user, conversation, text, uuid.uuid4().hex)
        self.desk.history.questions.append(asked)
        return asked

    async def post(self, question: Question, *, leave_after: int | None = None, **more: Any) -> None:
        """Until it is taken or refused for good."""
        body = {"input": question.text, "conversation": question.conversation, "stream": True, "background": True}
        headers = {"idempotency-key": question.key}
        deadline = time.monotonic() + self.patience_seconds
        while time.monotonic() < deadline:
            call = await self.stream("POST", "/v1/responses", question, leave_after, json=body | more, headers=headers)
            if question.turns:
                return
            if call.status is not None and (call.status not in RETRIED or call.status == 409):
                question.refused = call.code
                return
            await self.pause()
        question.refused = "gave_up"

    async def follow(self, question: Question, leave_after: int | None = None) -> None:
        """Come back again and again until the end has been seen, or nobody knows the turn."""
        deadline = time.monotonic() + self.patience_seconds
        while question.turns and question.end is None and time.monotonic() < deadline:
            lost, before = time.monotonic(), question.last
            path = f"/v1/responses/{question.turn}"
            query = {"stream": "true", "starting_after": str(question.last)}
            call = await self.stream("GET", path, question, leave_after, params=query, lost=lost)
            if call.status == 404 or leave_after is not None:
                return
            if question.end is None and question.last == before:
                await self.pause()

    async def replay(self, question: Question) -> bytes:
        """The whole stream once more."""
        again = Question(question.person, question.user, question.conversation, question.text, question.key)
        again.turns = set(question.turns)
        await self.follow(again)
        return b"".join(again.events[number] for number in sorted(again.events))

    async def stop(self, question: Question) -> int | None:
        question.stopped = True
        return (await self.call("POST", f"/v1/responses/{question.turn}/cancel"))[0]

    # conversations ------------------------------------------------------------------------------------------------
    async def converse(self, **metadata: str) -> str:
        """A new conversation, asked for until there is one."""
        while True:
            status, body = await self.call("POST", "/v1/conversations", {"metadata": metadata})
            if status == 200:
                return str(body["id"])
            assert status in (None, 503, 400, 409), body
            if status == 400:
                raise LookupError(body["error"]["code"])
            await self.pause()

    async def branch(self, question: Question) -> str:
        return await self.converse(**{"deskmate:branch_of": question.turn})

    async def delete(self, conversation: str) -> bool:
        """Whether it is gone; a running answer holds it."""
        for _ in range(50):
            status, _ = await self.call("DELETE", f"/v1/conversations/{conversation}")
            if status in (200, 404):
                self.desk.history.deleted.add(conversation)
                return True
            if status == 409:
                return False
            await self.pause()
        return False

    async def items(self, conversation: str) -> list[dict[str, Any]]:
        status, body = await self.call("GET", f"/v1/conversations/{conversation}/items?order=asc&limit=100")
        assert status == 200, body
        return list(body["data"])

    # calls --------------------------------------------------------------------------------------------------------
    async def call(self, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int | None, Any]:
        """One call that is no stream; (None, None) when it broke."""
        began, what = time.monotonic(), f"{method} {path.partition('?')[0]}"
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self.session.request(method, self._door().url + path, json=body, headers=headers) as answer,
            ):
                data = _decoded(await answer.read())
        except BROKEN:
            self._elsewhere()
            self._record(Call(time.time(), time.monotonic() - began, self.name, what, None))
            return None, None
        self._record(_call(began, self.name, what, answer, data))
        return answer.status, data

    async def stream(
        self, method: str, path: str, question: Question, leave_after: int | None, lost: float = 0.0, **request: Any
    ) -> Call:
        """One connection's share of an answer."""
        began = heard = time.monotonic()
        silence, seen, answer, data = 0.0, 0, None, None
        try:
            async with self.session.request(method, self._door().url + path, **request) as answer:
                if answer.status != 200:
                    data = _decoded(await answer.read())
                else:
                    rest = b""
                    async for chunk in answer.content.iter_any():
                        silence, heard = max(silence, time.monotonic() - heard), time.monotonic()
                        *frames, rest = (rest + chunk).split(b"\n\n")
                        for frame in frames:
                            if not frame.startswith(b"event:"):
                                continue
                            seen += 1
                            if lost and seen == 1:
                                question.resumed.append(time.monotonic() - lost)
                            self._see(question, frame)
                        if leave_after is not None and seen >= leave_after:
                            break
        except BROKEN:
            self._elsewhere()
            if answer is not None and answer.status != 200:
                answer = None  # its line was cut before the reason had come
        silence = max(silence, time.monotonic() - heard)
        call = _call(began, self.name, f"{method} {path}", answer, data, question, silence, seen)
        self._record(call)
        return call

    def _see(self, question: Question, frame: bytes) -> None:
        question.see(frame)
        kind = TYPE.search(frame)
        name = kind[1].decode() if kind else ""
        if name == "response.created":
            found = re.search(rb'"id":"(resp_\w+)"', frame)
            assert found, frame
            question.turns.add(found[1].decode())
        elif name in ("response.completed", "response.incomplete", "response.failed"):
            question.end = name

    def _record(self, call: Call) -> None:
        self.desk.history.calls.append(call)

    def _door(self) -> Proxy:
        return self.desk.doors[self.at % len(self.desk.doors)]

    def _elsewhere(self) -> None:
        self.at += 1

    async def pause(self) -> None:
        await asyncio.sleep(AGAIN_SECONDS * (0.5 + self.luck.random()))


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data) if data else None
    except msgspec.DecodeError:
        return None


def _call(
    began: float,
    person: str,
    what: str,
    answer: aiohttp.ClientResponse | None,
    data: Any,
    question: Question | None = None,
    silence: float = 0.0,
    seen: int = 0,
) -> Call:
    error = data.get("error") if isinstance(data, dict) else None
    error = error if isinstance(error, dict) else {}
    status = answer.status if answer is not None else None
    headers = answer.headers if answer is not None else {}
    return Call(
        at=time.time(),
        seconds=time.monotonic() - began,
        person=person,
        what=what,
        status=status,
        code=error.get("code"),
        key=question.key if question else None,
        turn=next(iter(question.turns), None) if question else None,
        request_id=headers.get("x-request-id"),
        retry_after=headers.get("retry-after"),
        typed=status is None or status < 400 or bool(error.get("code") and error.get("message")),
        silence=silence,
        seen=seen,
    )


@asynccontextmanager
async def people(desk: Desk, count: int, seed: int = 0) -> AsyncIterator[list[Person]]:
    """So many people with keys and connections of their own; half of them begin at the second gateway."""
    made = []
    timeout = aiohttp.ClientTimeout(total=None, sock_read=BYTE_SECONDS, sock_connect=5.0)
    for _ in range(count):
        name = f"person{next(_numbers)}"
        user, key = await desk.gateways[0].person_and_key(name)
        desk.history.comes(name, user)
        headers = {"authorization": f"Bearer {key}"}
        session = aiohttp.ClientSession(headers=headers, timeout=timeout)
        made.append(Person(desk, name, user, key, session, random.Random(f"{seed} {name}"), len(made)))
    try:
        yield made
    finally:
        for person in made:
            await person.session.close()
