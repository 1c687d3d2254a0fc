"""Every refusal of the gateway as one tree of exceptions; knows HTTP statuses and codes, not HTTP itself.

    Refusal                                  status  type                    code
    ├── BadRequest                           400     invalid_request_error   (given)
    │   ├── UnknownParameter                 400                             unknown_parameter
    │   ├── UnsupportedParameter             400                             unsupported_parameter
    │   ├── ContextLengthExceeded            400                             context_length_exceeded
    │   ├── PreviousResponseNotFound         400                             previous_response_not_found
    │   └── PromptRefused                    400                             invalid_prompt
    ├── Unauthenticated                      401     authentication_error    invalid_api_key
    ├── Forbidden                            403     permission_error        insufficient_scope
    ├── NotFound                             404     not_found_error         not_found
    ├── MethodNotAllowed                     405     invalid_request_error   method_not_allowed
    ├── RequestTimeout                       408     invalid_request_error   request_timeout
    ├── ConversationLocked                   409     conflict_error          conversation_locked
    ├── IdempotencyConflict                  409     conflict_error          idempotency_key_reused
    ├── VersionConflict                      412     conflict_error          version_conflict
    ├── TooLarge                             413     invalid_request_error   request_too_large
    ├── UnsupportedMediaType                 415     invalid_request_error   unsupported_media_type
    ├── QuotaSpent                           429     insufficient_quota      insufficient_quota
    ├── Busy                                 429     rate_limit_error        queue_full
    │   └── RateLimited                      429                             rate_limit_exceeded
    ├── EngineError                          502     server_error            engine_error
    └── Unavailable                          503     server_error            (given)
        ├── StorageDown                      503                             storage_down
        ├── StorageFull                      503                             storage_full
        ├── EngineLost                       503                             engine_lost
        │   └── EngineAway                   503                             engine_lost
        ├── Draining                         503                             draining
        └── Overloaded                       503                             overloaded

`code` is stable: clients may match on it. `message` is for people: what happened, which value, what to do next.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class Refusal(Exception):
    """A request that is refused or a turn that failed, for a reason its caller may know."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.headers = dict(headers or {})
        self.details = dict(details or {})  # further keys of the error object, e.g. the current version

    def body(self) -> dict[str, Any]:
        """OpenAI's error envelope: all four keys always, then our details."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }


def _waits(seconds: float) -> dict[str, str]:
    """In whole seconds, and as exactly as the official SDKs read it."""
    return {"retry-after": str(max(1, round(seconds))), "retry-after-ms": str(max(1, round(seconds * 1000)))}


class BadRequest(Refusal):
    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class UnknownParameter(BadRequest):
    default_code = "unknown_parameter"


class UnsupportedParameter(BadRequest):
    default_code = "unsupported_parameter"


class ContextLengthExceeded(BadRequest):
    default_code = "context_length_exceeded"


class PreviousResponseNotFound(BadRequest):
    default_code = "previous_response_not_found"


class PromptRefused(BadRequest):
    """The engine takes no such request. `of_a_schema`: it cannot hold an answer to a schema of the caller's."""

    default_code = "invalid_prompt"

    def __init__(self, message: str, *, of_a_schema: bool = False, **keywords: Any) -> None:
        super().__init__(message, **keywords)
        self.of_a_schema = of_a_schema


class Unauthenticated(Refusal):
    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(Refusal):
    status = 403
    type = "permission_error"
    default_code = "insufficient_scope"


class NotFound(Refusal):
    status = 404
    type = "not_found_error"
    default_code = "not_found"


class MethodNotAllowed(Refusal):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(Refusal):
    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class _Conflict(Refusal):
    status = 409
    type = "conflict_error"
    default_code = "conflict"

    def __init__(self, message: str, **keywords: Any) -> None:
        # The official SDK would post a plain 409 twice more.
        keywords["headers"] = {"x-should-retry": "false", **(keywords.get("headers") or {})}
        super().__init__(message, **keywords)


class ConversationLocked(_Conflict):
    default_code = "conversation_locked"


class IdempotencyConflict(_Conflict):
    default_code = "idempotency_key_reused"


class VersionConflict(_Conflict):
    status = 412
    default_code = "version_conflict"


class TooLarge(Refusal):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMediaType(Refusal):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class QuotaSpent(Refusal):
    """No tokens are left until they renew, which the message says: to ask again is of no use."""

    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"

    def __init__(self, message: str, **keywords: Any) -> None:
        keywords["headers"] = {"x-should-retry": "false", **(keywords.get("headers") or {})}
        super().__init__(message, **keywords)


class Busy(Refusal):
    """Too much is waiting already. `retry_after_seconds` is the estimate a client should wait."""

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"

    def __init__(self, message: str, *, retry_after_seconds: float, **keywords: Any) -> None:
        waits = _waits(retry_after_seconds)
        super().__init__(message, **{**keywords, "headers": waits | (keywords.get("headers") or {})})


class RateLimited(Busy):
    """Somebody asks more often, or for more at once, than they may."""

    default_code = "rate_limit_exceeded"


class EngineError(Refusal):
    """The worker answered, but not with an answer."""

    status = 502
    default_code = "engine_error"


class Unavailable(Refusal):
    status = 503
    default_code = "unavailable"

    def __init__(self, message: str, **keywords: Any) -> None:
        super().__init__(message, **{**keywords, "headers": {"retry-after": "2"} | (keywords.get("headers") or {})})


class StorageDown(Unavailable):
    default_code = "storage_down"


class StorageFull(Unavailable):
    default_code = "storage_full"


class EngineLost(Unavailable):
    """An engine broke off in the middle of something."""

    default_code = "engine_lost"


class EngineAway(EngineLost):
    """No engine takes a request now: none is ready, or it drains. Nothing has begun."""


class Draining(Unavailable):
    default_code = "draining"


class Overloaded(Unavailable):
    """The machine is short of something; what runs goes on, and nothing new is taken."""

    default_code = "overloaded"

    def __init__(self, message: str, *, retry_after_seconds: float, **keywords: Any) -> None:
        waits = _waits(retry_after_seconds)
        super().__init__(message, **{**keywords, "headers": waits | (keywords.get("headers") or {})})
