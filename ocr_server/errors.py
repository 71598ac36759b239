"""The exceptions of the server, and how each of them is answered.

There are two trees. An `ApiError` is an HTTP error: its class gives the status and OpenAI's `type`. An `InputError` is
a problem of a request's content that is found where nothing is known of the request: it has no parameter name, and the
edge turns it into an `ApiError` that has one (`ReadPlan.api_error`).

Every error that a client sees has the shape that the official SDK parses::

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}
"""

from __future__ import annotations

import math
from typing import Any


class ReadError(Exception):
    """Something cannot be read. The message is safe to show to the client."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class InputError(ReadError):
    """The content of a request is the problem; which parameter it is, only the edge knows."""


class DecodingError(InputError):
    """A decoding option is not valid, or does not fit the model's context."""

    def __init__(self, message: str, *, field: str, code: str | None = None) -> None:
        """Args:
        field: A field of `Decoding`, or `prompt`.
        """
        super().__init__(message, code=code)
        self.field = field


class ApiError(ReadError):
    """An HTTP error."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        """Args:
        param: The request parameter that is wrong, as the client wrote it.
        retry_after: Seconds after which trying again makes sense.
        """
        super().__init__(message, code=code if code is not None else type(self).code)
        self.param = param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {} if self.retry_after is None else {"retry-after": str(math.ceil(self.retry_after))}

    def body(self) -> dict[str, Any]:
        return error_body(self.message, type_=self.type, param=self.param, code=self.code)


class InvalidRequest(ApiError):
    """400: the request is invalid; `param` names the parameter."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    """401: missing or invalid API key."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(ApiError):
    """404: the model, route, file or batch does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TimedOut(ApiError):
    """408: the request did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}  # the rest of this request may still arrive


class TooLarge(ApiError):
    """413: the body or a picture exceeds a limit of the server."""

    status = 413
    type = "invalid_request_error"
    code = "too_large"


class TooMany(ApiError):
    """429: a limit of the server or of this client is reached; try again later."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(ApiError):
    """503: the engine is loading, broken or shutting down; try again later."""

    status = 503
    type = "server_error"
    code = "engine_unavailable"


class EngineFailure(ApiError):
    """500: the engine failed on this request; the details are in the log, not in the answer."""

    status = 500
    type = "server_error"
    code = "engine_error"


def error_body(message: str, *, type_: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error body; all four keys are always present, as the SDK expects."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def internal_error() -> dict[str, Any]:
    """The error body for an unexpected exception: no detail is shown, the log has them."""
    return error_body("The server failed on this request.", type_="server_error", code="internal_error")
