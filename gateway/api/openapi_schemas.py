"""The shapes of what is asked and answered under /v1, as JSON schemas; knows no route.

A shape is written as its fields with their types in few words: `string`, `integer|null`, `Item[]` for a list of another
shape, `=response` for one fixed value; a name that ends with `?` may be absent. Limits and names of a request's fields
come from the code that checks them.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from gateway import relay_body
from gateway.api import response_input
from gateway.api.conversations import MOST_ITEMS
from gateway.quotas import Kind, Source

Schema = dict[str, Any]
Fields = Mapping[str, str | Schema]

_METADATA: Schema = {
    "type": "object",
    "maxProperties": response_input.MOST_METADATA,
    "propertyNames": {"maxLength": 64},
    "additionalProperties": {"type": "string", "maxLength": 512},
}
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_STATUS: Schema = {"enum": ["in_progress", "completed", "incomplete"]}
_NUMBERED: Fields = {"sequence_number": "integer"}
_LIKELY: Fields = {"token": "string", "bytes": "integer[]", "logprob": "number"}
_PART: Fields = {"item_id": "string", "output_index": "integer", "content_index": "integer"}

# Requests of the turns: what is checked beyond the types that the struct declares.
_TURN_FIELDS: Fields = {
    "input": "string|InputItem[]|null",
    "conversation": "string|ConversationName|null",
    "metadata": {"anyOf": [_METADATA, {"type": "null"}]},
    "tools": "FunctionTool[]|null",
    "tool_choice": "string|object|null",
    "context_management": "ContextManagement[]|null",
    "reasoning": "ReasoningWish|null",
    "safety_identifier": {"type": ["string", "null"], "maxLength": 64},
    "prompt_cache_key": {"type": ["string", "null"], "maxLength": 64},
}

# Requests of the relays: the types of what relay_body lets pass.
_TOKENS: Schema = {"type": "integer", "minimum": 1}
_STRINGS: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "maxItems": relay_body.MAX_STOP_STRINGS, "items": {"type": "string", "minLength": 1}},
        {"type": "null"},
    ]
}
_RELAY_FIELDS: Fields = {
    "chat_template_kwargs": {
        "type": ["object", "null"],
        "properties": {name: {"type": "boolean"} for name in sorted(relay_body._TEMPLATE_SWITCHES)},
        "additionalProperties": False,
    },
    "echo": "boolean|null",
    "frequency_penalty": "number|null",
    "ignore_eos": "boolean|null",
    "logit_bias": "object|null",
    "logprobs": "boolean|integer|null",
    "max_completion_tokens": {"anyOf": [_TOKENS, {"type": "null"}]},
    "max_tokens": {"anyOf": [_TOKENS, {"type": "null"}]},
    "min_p": "number|null",
    "min_tokens": "integer|null",
    "model": "string",
    "n": {"enum": [1, None]},
    "output_config": "object|null",
    "parallel_tool_calls": "boolean|null",
    "presence_penalty": "number|null",
    "prompt": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 1}]},
    "reasoning_effort": {"enum": [*sorted(relay_body._EFFORTS), None]},
    "repetition_penalty": "number|null",
    "response_format": "object|null",
    "seed": "integer|null",
    "stop": _STRINGS,
    "stop_sequences": _STRINGS,
    "stream": "boolean|null",
    "stream_options": "object|null",
    "system": "string|object[]|null",
    "temperature": "number|null",
    "thinking": "object|null",
    "tool_choice": "string|object|null",
    "tools": "object[]|null",
    "top_k": "integer|null",
    "top_logprobs": "integer|null",
    "top_p": "number|null",
}

# What stands inside of them; other fields are dropped there, too.
_RELAYED: Mapping[str, Fields] = {
    "ChatMessage": {
        "role": {"enum": list(relay_body._ROLES)},
        "content": "string|ChatPart[]|null",
        "name?": "string|null",
        "tool_calls?": "ChatCall[]|null",
        "tool_call_id?": "string|null",
    },
    "ChatText": {"type": "=text", "text": "string"},
    "ChatRefusal": {"type": "=refusal", "refusal": "string"},
    "ChatImage": {"type": "=image_url", "image_url": "ChatImageUrl"},
    "ChatImageUrl": {"url": {"type": "string", "pattern": "^data:image/"}},
    "ChatCall": {"id": "string", "type": "=function", "function": "ChatCallFunction"},
    "ChatCallFunction": {"name": "string", "arguments": "string"},
    "AnthropicInput": {
        "role": {"enum": ["user", "assistant", "system"]},
        "content": "string|AnthropicBlock[]",
    },
    "AnthropicText": {"type": "=text", "text": "string"},
    "AnthropicImage": {"type": "=image", "source": "AnthropicImageSource"},
    "AnthropicImageSource": {"type": "=base64", "media_type": "string", "data": "string"},
    "AnthropicToolUse": {"type": "=tool_use", "id": "string", "name": "string", "input": "object"},
    "AnthropicToolResult": {"type": "=tool_result", "tool_use_id": "string", "content?": "string|AnthropicText[]"},
}

_LIST: Fields = {
    "object": "=list",
    "has_more": "boolean",
    "first_id": "string|null",
    "last_id": "string|null",
}

_ANSWERS: Mapping[str, Fields] = {
    "Error": {"error": "ErrorBody"},
    "ErrorBody": {"message": "string", "type": "string", "param": "string|null", "code": "string|null"},
    "AnthropicError": {"type": "=error", "error": "AnthropicErrorBody"},
    "AnthropicErrorBody": {"type": "string", "message": "string"},
    # models
    "Model": {
        "id": "string",
        "object": "=model",
        "created": "integer",
        "owned_by": "string",
        "type": "=model",
        "display_name": "string",
        "created_at": {"type": "string", "format": "date-time"},
        "lifecycle": "=active",
        "max_input_tokens": "integer",
        "max_model_len": "integer",
        "deskmate:demo": "boolean",
        "deskmate:defaults": "object",
    },
    "ModelList": {**_LIST, "data": "Model[]"},
    # responses
    "Response": {
        "id": "string",
        "object": "=response",
        "created_at": "integer",
        "completed_at": "integer|null",
        "status": {"enum": ["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"]},
        "incomplete_details": "object|null",
        "model": "string",
        "previous_response_id": "string|null",
        "instructions": "string|null",
        "output": "Item[]",
        "error": "ResponseError|null",
        "tools": "FunctionTool[]",
        "tool_choice": "string|object",
        "truncation": {"enum": ["auto", "disabled"]},
        "parallel_tool_calls": "boolean",
        "text": "object",
        "top_p": "number",
        "presence_penalty": "number",
        "frequency_penalty": "number",
        "top_logprobs": "integer",
        "temperature": "number",
        "reasoning": "object|null",
        "usage": "ResponseUsage|null",
        "max_output_tokens": "integer|null",
        "max_tool_calls": "integer|null",
        "store": "boolean",
        "background": "boolean",
        "service_tier": "string",
        "metadata": _TEXTS,
        "safety_identifier": "string|null",
        "prompt_cache_key": "string|null",
        "conversation": "ConversationName|null",
    },
    "ResponseError": {"code": "string", "message": "string"},
    "ResponseUsage": {
        "input_tokens": "integer",
        "input_tokens_details": "object",
        "output_tokens": "integer",
        "output_tokens_details": "object",
        "total_tokens": "integer",
    },
    "ResponseDeleted": {"id": "string", "object": "=response", "deleted": "boolean"},
    "CompactedResponse": {
        "id": "string",
        "object": "=response.compaction",
        "created_at": "integer",
        "output": "Item[]",
        "usage": "ResponseUsage",
    },
    "InputTokens": {"object": "=response.input_tokens", "input_tokens": "integer"},
    # items
    "Message": {
        "id": "string",
        "type": "=message",
        "status": _STATUS,
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": "ContentPart[]",
        "phase?": {"enum": ["commentary", "final_answer"]},
    },
    "FunctionCall": {
        "id": "string",
        "type": "=function_call",
        "status": _STATUS,
        "call_id": "string",
        "name": "string",
        "arguments": "string",
    },
    "FunctionCallOutput": {
        "id": "string",
        "type": "=function_call_output",
        "status": _STATUS,
        "call_id": "string",
        "output": "string|object[]",
    },
    "Reasoning": {
        "id": "string",
        "type": "=reasoning",
        "summary": "object[]",
        "content": "ReasoningText[]",
        "status": _STATUS,
    },
    "ReasoningText": {"type": "=reasoning_text", "text": "string"},
    "Compaction": {"id": "string", "type": "=compaction", "encrypted_content": "string"},
    "InputText": {"type": "=input_text", "text": "string"},
    "InputImage": {
        "type": "=input_image",
        "detail": {"enum": ["auto", "low", "high", "original"]},
        "image_url": "string|null",
        "file_id": "string|null",
    },
    "OutputText": {"type": "=output_text", "text": "string", "annotations": "object[]", "logprobs": "Logprob[]"},
    "Logprob": {**_LIKELY, "top_logprobs": "TopLogprob[]"},
    "TopLogprob": _LIKELY,
    "Refusal": {"type": "=refusal", "refusal": "string"},
    "ItemList": {**_LIST, "data": "Item[]"},
    # conversations
    "Conversation": {
        "id": "string",
        "object": "=conversation",
        "created_at": "integer",
        "updated_at": "integer",
        "metadata": _TEXTS,
        "version": "integer",
        "deskmate:running": "string|null",
    },
    "ConversationList": {**_LIST, "data": "Conversation[]"},
    "ConversationDeleted": {"id": "string", "object": "=conversation.deleted", "deleted": "boolean"},
    # limits
    "Usage": {"object": "=usage", **{kind.value: "Limit" for kind in Kind}},
    "Limit": {
        "limit": "integer|null",
        "used": "integer",
        "left": "integer|null",
        "renews_at": "integer|null",
        "source": {"enum": [source.value for source in Source]},
    },
    # what the engine says
    "ChatCompletion": {
        "id": "string",
        "object": "=chat.completion",
        "created": "integer",
        "model": "string",
        "choices": "object[]",
        "usage?": "object|null",
    },
    "ChatCompletionChunk": {
        "id": "string",
        "object": "=chat.completion.chunk",
        "created": "integer",
        "model": "string",
        "choices": "object[]",
        "usage?": "object|null",
    },
    "Completion": {
        "id": "string",
        "object": "=text_completion",
        "created": "integer",
        "model": "string",
        "choices": "object[]",
        "usage?": "object|null",
    },
    "AnthropicMessage": {
        "id": "string",
        "type": "=message",
        "role": "=assistant",
        "content": "object[]",
        "model": "string",
        "stop_reason": "string|null",
        "stop_sequence?": "string|null",
        "usage": "object",
    },
    "AnthropicStreamEvent": {"type": "string"},
    "AnthropicTokens": {"input_tokens": "integer"},
}

_UNIONS: Mapping[str, str] = {
    "Item": "Message|FunctionCall|FunctionCallOutput|Reasoning|Compaction",
    "ContentPart": "InputText|InputImage|OutputText|ReasoningText|Refusal",
    "ContextManagement": "Window|WhenToCompact",
    "ChatPart": "ChatText|ChatImage|ChatRefusal",
    "AnthropicBlock": "AnthropicText|AnthropicImage|AnthropicToolUse|AnthropicToolResult",
    "InputItem": "InputMessage|InputCall|InputCallOutput|InputReasoning|InputCompaction|ItemReference",
}

_EVENTS: Mapping[str, Fields] = {
    "response.created": {"response": "Response"},
    "response.queued": {"response": "Response"},
    "response.in_progress": {"response": "Response"},
    "response.completed": {"response": "Response"},
    "response.incomplete": {"response": "Response"},
    "response.failed": {"response": "Response"},
    "response.output_item.added": {"output_index": "integer", "item": "Item"},
    "response.output_item.done": {"output_index": "integer", "item": "Item"},
    "response.content_part.added": {**_PART, "part": "ContentPart"},
    "response.content_part.done": {**_PART, "part": "ContentPart"},
    "response.output_text.delta": {**_PART, "delta": "string", "logprobs": "Logprob[]"},
    "response.output_text.done": {**_PART, "text": "string", "logprobs": "Logprob[]"},
    "response.reasoning_text.delta": {**_PART, "delta": "string"},
    "response.reasoning_text.done": {**_PART, "text": "string"},
    "response.function_call_arguments.delta": {"item_id": "string", "output_index": "integer", "delta": "string"},
    "response.function_call_arguments.done": {
        "item_id": "string",
        "output_index": "integer",
        "name": "string",
        "arguments": "string",
    },
    "deskmate:queue.updated": {"position": "integer", "eta_seconds": "number|null"},
    "deskmate:progress": {"state": "string", "eta_seconds": "number|null"},
}

_INPUTS: Mapping[str, Fields] = {
    "InputMessage": {
        "type?": "=message",
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": "string|object[]",
        "id?": "string|null",
        "status?": "string|null",
        "phase?": "string|null",
    },
    "InputCall": {
        "type": "=function_call",
        "call_id": {"type": "string", "minLength": 1},
        "name": {"type": "string", "minLength": 1},
        "arguments": "string",
        "id?": "string|null",
        "status?": "string|null",
    },
    "InputCallOutput": {
        "type": "=function_call_output",
        "call_id": {"type": "string", "minLength": 1},
        "output": "string|object[]",
        "id?": "string|null",
        "status?": "string|null",
    },
    "InputReasoning": {
        "type": "=reasoning",
        "summary?": "object[]|null",
        "content?": "ReasoningText[]|null",
        "id?": "string|null",
        "status?": "string|null",
    },
    "InputCompaction": {
        "type": "=compaction",
        "encrypted_content": {"type": "string", "minLength": 1},
        "id?": "string|null",
        "created_by?": "string|null",
    },
    "ItemReference": {"type?": "=item_reference", "id": {"type": "string", "minLength": 1}},
    "FunctionTool": {
        "type": "=function",
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
        "description?": "string|null",
        "parameters?": "object|null",
        "strict?": "boolean|null",
    },
    "Window": {"type": "=deskmate:window", "rounds": {"type": "integer", "minimum": 0, "maximum": 1000}},
    "ReasoningWish": {f"{name}?": {"enum": [*values, None]} for name, values in response_input._REASONING.items()},
    "WhenToCompact": {
        "type": "=compaction",
        "compact_threshold?": {
            "type": ["integer", "null"],
            "minimum": response_input.LEAST_THRESHOLD,
            "maximum": 1 << 40,
        },
    },
    "ConversationName": {"id": "string"},
    "CreateConversation": {
        "items?": {
            "type": ["array", "null"],
            "maxItems": MOST_ITEMS,
            "items": {"$ref": "#/components/schemas/InputItem"},
        },
        "metadata?": {"anyOf": [_METADATA, {"type": "null"}]},
    },
    "CompactResponse": {
        "model": "string",
        "input?": "string|InputItem[]|null",
        "previous_response_id?": "string|null",
        "instructions?": "string|null",
        "service_tier?": "string|null",
        "prompt_cache_key?": {"type": ["string", "null"], "maxLength": 64},
        "prompt_cache_retention?": "string|null",
        "prompt_cache_options?": {"enum": [None]},
    },
    "UpdateConversation": {"metadata": {"anyOf": [_METADATA, {"type": "null"}]}},
    "AddItems": {
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_ITEMS,
            "items": {"$ref": "#/components/schemas/InputItem"},
        },
    },
}


def schemas() -> dict[str, Schema]:
    """Every shape by its name."""
    inputs = {name: shape(fields, closed=True) for name, fields in _INPUTS.items()}
    answers = {name: shape(fields) for name, fields in _ANSWERS.items()}
    unions = {name: type_of(words) for name, words in _UNIONS.items()}
    relayed = {name: shape(fields) for name, fields in _RELAYED.items()}
    return {**inputs, **answers, **relayed, **unions, **_events(), **_requests()}


def event_name(kind: str) -> str:
    """`response.output_text.delta` → `EventResponseOutputTextDelta`."""
    return "Event" + "".join(word.capitalize() for word in kind.replace(":", ".").replace("_", ".").split("."))


def _events() -> dict[str, Schema]:
    known = {event_name(kind): shape({"type": f"={kind}", **fields, **_NUMBERED}) for kind, fields in _EVENTS.items()}
    return {**known, "ResponseStreamEvent": type_of("|".join(known))}


def _requests() -> dict[str, Schema]:
    return {
        "CreateResponse": _create_response(),
        "CreateChatCompletion": _relayed(relay_body._CHAT, messages="ChatMessage"),
        "CreateCompletion": _relayed(relay_body._COMPLETION),
        "CreateMessage": _relayed(relay_body._MESSAGES, messages="AnthropicInput"),
        "CountTokens": _relayed(relay_body._MESSAGES - {"stream", "max_tokens"}, messages="AnthropicInput"),
    }


def _create_response() -> Schema:
    """The struct that the body is read into, with what is checked beyond its types."""
    _, found = msgspec.json.schema_components([response_input.CreateResponse])
    fields: Schema = found["CreateResponse"]["properties"]
    for name, (least, most) in response_input._LIMITS.items():
        fields[name]["anyOf"][0] |= {"minimum": least, "maximum": most}
    fields |= {name: type_of(words) for name, words in _TURN_FIELDS.items()}
    fields |= {name: {"enum": list(nothing)} for name, nothing in response_input._NOT_YET.items()}
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _relayed(names: Collection[str], *, messages: str = "") -> Schema:
    """What is passed on; anything else is dropped and named in a header, or refused. `messages`: the shape of one."""
    said: Fields = {"messages": {"type": "array", "minItems": 1, "items": _one(messages)}} if messages else {}
    types = {**_RELAY_FIELDS, **said}
    fields = {name: type_of(types[name]) for name in sorted(names)}
    return {"type": "object", "properties": fields, "required": ["model", "messages" if messages else "prompt"]}


# the few words --------------------------------------------------------------------------------------------------------


def shape(fields: Fields, *, closed: bool = False) -> Schema:
    properties = {name.removesuffix("?"): type_of(words) for name, words in fields.items()}
    made: Schema = {"type": "object", "properties": properties}
    if required := [name for name in fields if not name.endswith("?")]:
        made["required"] = required
    return {**made, "additionalProperties": False} if closed else made


def type_of(words: str | Schema) -> Schema:
    if not isinstance(words, str):
        return words
    if words.startswith("="):
        return {"const": words[1:]}
    kinds = [_one(word) for word in words.split("|")]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _one(word: str) -> Schema:
    if word.endswith("[]"):
        return {"type": "array", "items": _one(word.removesuffix("[]"))}
    return {"$ref": f"#/components/schemas/{word}"} if word[0].isupper() else {"type": word}
