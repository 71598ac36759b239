"""Helpers for the routes of all dialects."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData

from ocr_server.batches.service import Batches
from ocr_server.dialects.validation import parse_body
from ocr_server.dialects.wire import Wire
from ocr_server.errors import InvalidRequest, UnsupportedMediaType
from ocr_server.observability.logs import ANONYMOUS
from ocr_server.runtime import Runtime
from ocr_server.session import Account, Caller
from ocr_server.transport.auth import sharer_of
from ocr_server.transport.boundary import is_browser

W = TypeVar("W", bound=Wire)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error body. The message is also at the top level, where clients of Mistral's API look for it."""

    error: ErrorDetail
    message: str


def runtime_of(request: Request) -> Runtime:
    """Return the application's runtime."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def batches_of(request: Request) -> Batches:
    """Return the application's files and batches."""
    batches: Batches = request.app.state.batches
    return batches


async def parsed(request: Request, model: type[W]) -> W:
    """Parse the request's body as `model`.

    Clients that are not browsers may send JSON under any content type: curl's default is that of a form. From a browser
    it must be declared, since pages of other sites can send the other types without asking the server first.

    Raises:
        UnsupportedMediaType: A browser sends the body, and not as JSON.
        InvalidRequest: As `parse_body` does.
    """
    if is_browser(request.headers) and not _is_json(request.headers.get("content-type", "")):
        raise UnsupportedMediaType("A web page must send JSON with the content type application/json.")
    body = await request.body()
    value = await runtime_of(request).sized(len(body), parse_body, body, model)
    note_ignored(request, value)
    return value


def note_ignored(request: Request, body: Wire) -> None:
    """Let the response and the log name the fields of a body that have no effect."""
    request.state.ignored = body.ignored


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def is_form(request: Request) -> bool:
    """Return whether the body is a multipart form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


@asynccontextmanager
async def form_of(request: Request, *, max_fields: int) -> AsyncGenerator[FormData]:
    """Parse a multipart form with at most one file, and close the file at the end.

    Raises:
        InvalidRequest: The form is not in UTF-8. Any other codec of Python would be the client's choice, and some take
            quadratic time.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest(
            f"Forms are read as UTF-8, not as {charset[:40]!r}.", param="content-type", code="unsupported_charset"
        )
    async with request.form(max_files=1, max_fields=max_fields) as form:
        yield form


def caller_of(request: Request) -> Caller:
    """Return who sent the request, with an account whose totals go to the access log."""
    request.state.reading = account = Account()
    batches: Batches | None = request.app.state.batches
    return Caller(
        client=sharer_of(request.scope),
        account=account,
        files=None if batches is None else batches.files_of(client_of(request)),
        quota=getattr(request.state, "quota", None),
    )


def client_of(request: Request) -> str:
    """Return the owner of the request's API key, or `anonymous`."""
    client: str = getattr(request.state, "client", ANONYMOUS)
    return client


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is invalid; `param` names the parameter."},
    404: {"model": ErrorResponse, "description": "The model, file or batch does not exist."},
    401: {"model": ErrorResponse, "description": "Missing or invalid API key."},
    403: {"model": ErrorResponse, "description": "A web page of another site sent the request."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "The body or a picture exceeds a limit."},
    415: {"model": ErrorResponse, "description": "The content encoding or type of the body is not supported."},
    421: {"model": ErrorResponse, "description": "The server has no API keys and does not answer to this name."},
    429: {"model": ErrorResponse, "description": "Too many requests; `Retry-After` says when to try again."},
    431: {"model": ErrorResponse, "description": "The head of the request exceeds a limit."},
    500: {"model": ErrorResponse, "description": "The engine failed on this request; the log has the details."},
    503: {"model": ErrorResponse, "description": "The engine is loading, broken or shutting down."},
}
