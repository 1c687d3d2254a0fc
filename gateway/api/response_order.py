"""What a Responses request becomes: the turn to be run, and what is echoed of it; knows neither HTTP nor WebSocket."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway import compaction
from gateway.api.response_image import images_replaced, kept
from gateway.api.response_input import LEAST_THRESHOLD, CreateResponse, check_model, parse_input, question_of
from gateway.api.response_output import Echo, StreamRenderer, encode_echo
from gateway.api.response_tools import check_parser
from gateway.auth import Principal
from gateway.auth.seal import NotSealedHere, unseal
from gateway.auth.secret import Secrets
from gateway.context import TurnRequest, check_outputs, formed
from gateway.conversations import Begin, Conversations, Json
from gateway.conversations.ids import new_id, new_shelf
from gateway.engine import Defaults, Engine, ModelFacts
from gateway.errors import BadRequest, NotFound, PromptRefused
from gateway.events import Form, Sampling
from gateway.forms import Forms
from gateway.live import LiveTurn
from gateway.prompt import title_of
from gateway.runner import Order
from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Repeat:
    """How a post is recognised when it comes again: its key, for how long, and whether it may be a repeat itself."""

    key: str
    digest: str
    seconds: int
    attach: bool


@dataclass(frozen=True, slots=True)
class Orders:
    """Makes orders from what callers ask for. `holder` is the process that will run them."""

    secrets: Secrets
    store: Conversations
    engine: Engine
    settings: Settings
    forms: Forms
    holder: str

    async def order(
        self,
        principal: Principal,
        create: CreateResponse,
        *,
        before: Sequence[Json] | None = None,
        repeat: Repeat | None = None,
        expected_version: int | None = None,
    ) -> tuple[Order, Echo]:
        """`before`: the context of a previous response that is not stored, where its caller has it."""
        model = self.engine.model
        self.check_model(create)
        items = await self.resolved(principal, parse_input(create.input, references=True))
        context: Sequence[Json] = items
        if not create.is_stored and create.previous_response_id:
            if before is None:
                stored = await self.store.history(principal.user, None, create.previous_response_id)
                before = [item.body for item in stored]
            context = [*before, *items]
        if not create.is_stored:
            check_outputs(context, len(context) - len(items))
        turn = self.turn_request(principal, create, context)
        if turn.form:
            await self.forms.check(formed(turn.form, model), turn.id, *schema_of(turn.form))
        echo = _echo(create, turn, images_replaced(items), int(time.time()), model)
        begin = self._begin(principal, create, turn, echo, repeat, expected_version) if create.is_stored else None
        return Order(turn, begin, background=bool(create.background)), echo

    def check_model(self, create: CreateResponse) -> None:
        model = self.engine.model
        check_model(create.model, model.id if model else None, self.settings.model_aliases)

    def turn_request(self, principal: Principal, create: CreateResponse, items: Sequence[Json]) -> TurnRequest:
        model, wishes = self.engine.model, create.wishes()
        check_parser(wishes.form, model)
        return TurnRequest(
            id=new_id("resp"),
            person=principal.user,
            cache_salt=self.secrets.cache_salt(principal.user),
            model=model.id if model else "",
            system=self.settings.system_prompt if create.instructions is None else create.instructions,
            items=items,
            window=create.window(),
            sampling=_sampling(create, self.engine.defaults),
            form=wishes.form,
            compact_at=_compact_at(create, model),
            flex=create.service_tier == "flex",
            key=principal.key,
        )

    async def resolved(self, principal: Principal, items: Sequence[Json]) -> Sequence[Json]:
        """Items of the owner's that are only named, in the place of their names; what is sealed for them, opened.

        Pictures are kept where the model sees them.
        """
        sees = self.engine.model is not None and self.engine.model.vision
        return [kept(await self._item(principal, item, at), sees) for at, item in enumerate(items)]

    async def _item(self, principal: Principal, item: Json, at: int) -> Json:
        if item["type"] == "compaction":
            return self._opened(principal, item, f"input[{at}].encrypted_content")
        if item["type"] != "item_reference":
            return item
        if (found := await self.store.any_item(principal.user, item["id"])) is None:
            raise NotFound(f"There is no item `{item['id'][:80]}`.", param=f"input[{at}].id")
        body = found.body
        return {**body, "given": True} if body["type"] == "reasoning" else body

    def _opened(self, principal: Principal, item: Json, param: str) -> Json:
        try:
            content = unseal(self.secrets, principal.user, item["encrypted_content"])
        except NotSealedHere:
            raise BadRequest(
                "This `encrypted_content` was not made here for you, or it was changed.",
                code="invalid_encrypted_content",
                param=param,
            ) from None
        return compaction.opened(item, compaction.decode(content))

    def _begin(
        self,
        principal: Principal,
        create: CreateResponse,
        turn: TurnRequest,
        echo: Echo,
        repeat: Repeat | None,
        expected_version: int | None,
    ) -> Begin:
        repeat = repeat or Repeat("", "", 0, attach=False)
        return Begin(
            owner=principal.user,
            turn=turn.id,
            created_at=echo.created_at,
            input=turn.items,
            request=encode_echo(echo),
            conversation=create.conversation_id,
            previous=create.previous_response_id,
            expected_version=expected_version,
            key=repeat.key,
            digest=repeat.digest,
            key_seconds=repeat.seconds,
            attach=repeat.attach,
            title=title_of(question_of(turn.items)),
            holder=self.holder,
        )


def schema_of(form: Form) -> tuple[str, str]:
    """Where the schema stands that the engine must hold an answer to, and OpenAI's code when it cannot."""
    if form.format is not None:
        return "text.format.schema", "invalid_json_schema"
    return "tools", "invalid_function_parameters"


def named(refusal: BadRequest, form: Form) -> BadRequest:
    """The same with the field that it is about, where the engine knows only that it is a schema."""
    if not isinstance(refusal, PromptRefused) or not refusal.of_a_schema:
        return refusal
    param, code = schema_of(form)
    return PromptRefused(refusal.message, of_a_schema=True, param=param, code=code)


def renderer_of(turn: LiveTurn, echo: Echo) -> StreamRenderer:
    shelf, first = (turn.begun.shelf, turn.begun.first_output) if turn.begun else (new_shelf(), 1)
    return StreamRenderer(turn.id, echo, shelf, first)


def _compact_at(create: CreateResponse, model: ModelFacts | None) -> int | None:
    """Never so late that no answer would have room."""
    if not create.compacts:
        return None
    wanted, latest = create.compact_threshold(), model.context_tokens * 3 // 4 if model else None
    return min((tokens for tokens in (wanted, latest) if tokens is not None), default=LEAST_THRESHOLD)


def _sampling(create: CreateResponse, defaults: Defaults) -> Sampling:
    def given(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    return Sampling(
        max_tokens=given(create.max_output_tokens, defaults.max_tokens),
        temperature=given(create.temperature, defaults.temperature),
        top_p=given(create.top_p, defaults.top_p),
        repetition_penalty=given(create.repetition_penalty, defaults.repetition_penalty),
        extra=create.sampling_extra(),
    )


def _echo(create: CreateResponse, turn: TurnRequest, images: int, created_at: int, model: ModelFacts | None) -> Echo:
    wishes = create.wishes()
    return Echo(
        model=turn.model,
        temperature=turn.sampling.temperature,
        top_p=turn.sampling.top_p,
        max_output_tokens=turn.sampling.max_tokens,
        instructions=create.instructions,
        truncation=create.truncation or "disabled",
        background=bool(create.background),
        store=create.is_stored,
        parallel_tool_calls=create.parallel_tool_calls is not False,
        tools=wishes.tools,
        tool_choice=wishes.choice,
        max_tool_calls=create.max_tool_calls,
        format=wishes.format,
        presence_penalty=create.presence_penalty or 0.0,
        frequency_penalty=create.frequency_penalty or 0.0,
        top_logprobs=create.top_logprobs or 0,
        metadata=create.metadata or {},
        safety_identifier=create.safety_identifier,
        prompt_cache_key=create.prompt_cache_key,
        images_replaced=images,
        service_tier="flex" if turn.flex else "default",
        effort=create.effort if model and model.reasoning_parser else None,
        conversation=create.conversation_id,
        previous=create.previous_response_id,
        created_at=created_at,
    )
