"""What can go wrong, as exceptions, and the one place that turns them into OpenAI's error body.

Every error a client sees has the shape the official SDK parses::

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

Raise the most specific class; `error_body` and `status` do the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import SamplingParams


class ApiError(Exception):
    """An error that is meant for the client: its message is safe to show."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        """Args:
        retry_after: seconds after which trying again makes sense.
        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the body."""
        return {} if self.retry_after is None else {"retry-after": str(math.ceil(self.retry_after))}

    def body(self) -> dict[str, Any]:
        return error_body(self.message, type_=self.type, param=self.param, code=self.code)


class InvalidRequest(ApiError):
    """400: the request itself is wrong; `param` names the part that is."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    """401: a key is needed, and this is none."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(ApiError):
    """404: there is no such thing (model, route, file)."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TimedOut(ApiError):
    """408: the request did not come in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}  # what still comes on it is the rest of this request


class TooLarge(ApiError):
    """413: the body or a picture is over a limit of the server."""

    status = 413
    type = "invalid_request_error"
    code = "too_large"


class TooMany(ApiError):
    """429: more is asked for than this server takes at a time; trying again later makes sense."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(ApiError):
    """503: the engine is loading, broken or shutting down; trying again later makes sense."""

    status = 503
    type = "server_error"
    code = "engine_unavailable"


class EngineFailure(ApiError):
    """500: the engine failed on this request; the details are in the log, not in the answer."""

    status = 500
    type = "server_error"
    code = "engine_error"


def error_body(message: str, *, type_: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error envelope; all four keys are always present, as the SDK expects."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def internal_error() -> dict[str, Any]:
    """For what was not foreseen: nothing of it is shown; the details are in the log."""
    return error_body("The server failed on this request.", type_="server_error", code="internal_error")


UNION_TAGS = frozenset({"<string>", "<parts>", "<text>", "<image>", "<file>", "<other>"})
"""Pydantic's names for the members of the wire types' unions; they are no part of a request."""


def parameter_name(location: Sequence[str | int]) -> str | None:
    """A validation error's place as OpenAI writes it: `messages[0].content`."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in UNION_TAGS:
            part = part or '""'
            name += f".{part}" if name else part
    return name or None


def invalid_parameters(error: VLLMClientError, params: SamplingParams | None = None) -> InvalidRequest:
    """vLLM's refusal as ours: its bare message, and the parameter's name where it gives one."""
    param = getattr(error, "parameter", None)
    if param is None and params is not None and params.structured_outputs is not None:
        param = "response_format"  # a grammar it can't compile has no name there
    return InvalidRequest(str(error.args[0]) if error.args else str(error), param=param)
