"""The exceptions of the server and how they are answered.

There are two kinds. An `ApiError` is an HTTP error: its class determines the status and OpenAI's `type`. An
`InputError` is a problem with the content of a request, raised by code that does not know the request's parameters.
`ReadPlan.api_error` turns it into an `ApiError` that names the parameter.

Every error that a client sees has the shape that the official SDK parses::

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}, "message": str}

The second message is for clients of Mistral's API and others that look for it there.
"""

from __future__ import annotations

import errno
import math
from typing import Any

RESOURCES_RETRY_S = 5.0
"""Seconds after which a client may try again when the machine was short of something."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS})
_NO_THREADS = "can't start new thread"
"""Message of CPython's RuntimeError."""


class ReadError(Exception):
    """Something cannot be read. The message is safe to show to the client."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class InputError(ReadError):
    """A problem with the content of a request, raised by code that does not know the request's parameters."""


class DecodingError(InputError):
    """A decoding option is not valid, or the request does not fit into the model's context."""

    def __init__(self, message: str, *, field: str, code: str | None = None) -> None:
        """Args:
        field: Name of a field of `Decoding`, or `prompt`; empty if it is not known.
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
        param: Name of the request parameter that is wrong, as in the client's request.
        retry_after: Seconds after which trying again makes sense.
        """
        super().__init__(message, code=code if code is not None else type(self).code)
        self.param = param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
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


class Forbidden(ApiError):
    """403: the request was sent by a web page that may not use the server, or the signature of its URL is not valid."""

    status = 403
    type = "invalid_request_error"
    code = "origin_not_allowed"


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


class UnsupportedMediaType(ApiError):
    """415: the body has a content type, a content encoding or a charset that is not accepted."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    """415: the body has a content encoding that the server does not know."""

    code = "unsupported_encoding"

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"The body has the content encoding {encoding[:100]!r}; use gzip, deflate or none.",
            param="content-encoding",
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"accept-encoding": "gzip, deflate"}


class Misdirected(ApiError):
    """421: the request names this server by a name that it does not answer to."""

    status = 421
    type = "invalid_request_error"
    code = "host_not_allowed"


class HeadTooLarge(ApiError):
    """431: the head of a request exceeds a limit of the server."""

    status = 431
    type = "invalid_request_error"
    code = "head_too_large"


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


class OutOfResources(Unavailable):
    """503: the machine has run out of memory, disk space, file descriptors or processes; try again later."""

    code = "out_of_resources"


class EngineFailure(ApiError):
    """500: the engine failed on this request. The details are in the log, not in the answer."""

    status = 500
    type = "server_error"
    code = "engine_error"


class UnexpectedFailure(ApiError):
    """500: the server failed in a way that it has no other answer for. The details are in the log."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The server failed on this request.")


def out_of_resources(error: BaseException | None) -> OutOfResources | None:
    """Return the error for the client if `error`, or what caused it, is trouble of the machine and not of the request.

    That is a lack of memory, disk space, file descriptors, processes or threads.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (
            isinstance(error, OutOfResources | MemoryError)
            or (isinstance(error, OSError) and error.errno in _EXHAUSTED)
            or (isinstance(error, RuntimeError) and str(error) == _NO_THREADS)
        ):
            return OutOfResources(
                "The server is short of memory, disk space or other resources. Try again later.",
                retry_after=RESOURCES_RETRY_S,
            )
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                if (found := out_of_resources(each)) is not None:
                    return found
        error = error.__cause__ or error.__context__
    return None


def error_body(message: str, *, type_: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error body, whose four keys are always present, with the message at the top level as well."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}, "message": message}
