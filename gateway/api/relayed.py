"""What every relay route does on its way in: who, what, how large; then it is the relay's. Knows no single field."""

import asyncio
import time
from dataclasses import dataclass
from secrets import token_hex

import msgspec
from starlette.requests import Request

from gateway.admission import Ticket
from gateway.auth.authenticator import Authenticator
from gateway.auth.principal import Principal, Scope
from gateway.auth.secret import Secrets
from gateway.body import parse_json
from gateway.engine import Engine, EngineState, ModelFacts
from gateway.errors import EngineLost, Refusal
from gateway.forms import Forms
from gateway.relay import Dialect, Order, Relay, RelayResponse
from gateway.relay_body import BYTES_PER_TOKEN, RelayBody, Rewrite
from gateway.settings import Settings

BYTES_PER_TOKEN_AT_LEAST = 2  # below this estimate nothing needs to be counted
UNKNOWN_SECONDS = 60.0  # unpacking the demo model takes a third of it
POLL_SECONDS = 0.1
IGNORED_HEADER = "x-deskmate-ignored"
IGNORED_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class RelayDoor:
    """The parts a relay route needs, and what the routes share."""

    auth: Authenticator
    secrets: Secrets
    engine: Engine
    relay: Relay
    forms: Forms
    settings: Settings

    async def principal(self, request: Request) -> Principal:
        return await self.auth.requires(Scope.CHAT)(request)

    async def may_look(self, request: Request) -> Principal:
        """Who may know what is served; a front end asks that for nobody, when it starts."""
        return await self.auth.requires(Scope.CHAT, Scope.DELEGATE)(request)

    async def read(self, request: Request, rewrite: Rewrite) -> tuple[Principal, RelayBody]:
        """Who asks for what. Raises the refusals of both."""
        principal = await self.principal(request)
        body = parse_json(await request.body())
        salt = self.secrets.cache_salt(principal.user)
        return principal, rewrite(body, await self.model(), self.settings.model_aliases, salt)

    async def relayed(self, request: Request, rewrite: Rewrite, dialect: Dialect) -> RelayResponse:
        principal, made = await self.read(request, rewrite)
        self.relay.admission.check(flex=made.flex)  # before the engine is asked anything for it
        await self.forms.check(made.form, request_id(request), made.schema)
        if not made.max_tokens_given:
            await self._fit(made, request)
        order = Order(
            dialect=dialect,
            body=msgspec.json.encode(made.fields),
            principal=principal,
            ticket=Ticket(
                principal.user,
                self.relay.density.tokens(made.prompt_tokens),
                made.max_tokens,
                flex=made.flex,
                key=principal.key,
            ),
            rough_tokens=made.prompt_tokens,
            request_id=request_id(request),
            streamed=made.streamed,
            keeps_usage=made.keeps_usage,
            headers=ignored_header(made),
        )
        return await self.relay.begin(order)

    async def model(self) -> ModelFacts:
        """What is served. In a first start that is known only after a while; a request of that time waits for it."""
        until = time.monotonic() + UNKNOWN_SECONDS
        while (model := self.engine.model) is None:
            if time.monotonic() > until:
                raise EngineLost("The engine has not said yet what it serves; ask again in a moment.")
            await asyncio.sleep(POLL_SECONDS)
        return model

    async def _fit(self, made: RelayBody, request: Request) -> None:
        """A caller who sets no limit gets the room there is: near the context's end that needs an exact count."""
        room = (await self.model()).context_tokens
        rough = made.prompt_tokens * BYTES_PER_TOKEN // BYTES_PER_TOKEN_AT_LEAST
        if rough + made.max_tokens <= room or self.engine.state is not EngineState.READY:
            return
        counted = {name: made.fields[name] for name in ("model", "messages", "tools", "prompt") if name in made.fields}
        try:
            made.prompt_tokens = await self.engine.count(msgspec.json.encode(counted), request_id(request))
        except Refusal:
            return  # the engine will say what is wrong with it
        made.max_tokens = made.fields["max_tokens"] = max(1, min(made.max_tokens, room - made.prompt_tokens))


def request_id(request: Request) -> str:
    """Ours, never the caller's: the engine names its work by it, so no two may be the same."""
    return str(request.scope.get("state", {}).get("request_id") or f"req_{token_hex(12)}")


def ignored_header(made: RelayBody) -> dict[str, str]:
    """The dropped fields by name, as far as they may stand in a header."""
    if not made.ignored:
        return {}
    names = ", ".join(made.ignored).encode("ascii", "backslashreplace").decode()
    printable = "".join(character for character in names if character.isprintable())
    return {IGNORED_HEADER: printable[:IGNORED_CHARACTERS]}
