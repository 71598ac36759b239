"""Helpers for the routes of all dialects."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from ocr_server.batches.service import Batches
from ocr_server.dialects.validation import parse_body
from ocr_server.dialects.wire import Wire
from ocr_server.observability.logs import ANONYMOUS
from ocr_server.runtime import Runtime
from ocr_server.session import Account, Caller

W = TypeVar("W", bound=Wire)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


def runtime_of(request: Request) -> Runtime:
    """Return the application's runtime."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def batches_of(request: Request) -> Batches:
    """Return the application's files and batches."""
    batches: Batches = request.app.state.batches
    return batches


async def parsed(request: Request, model: type[W]) -> W:
    """Parse the request's body as `model`. Raises the errors of `parse_body`."""
    return parse_body(await request.body(), model)


def is_form(request: Request) -> bool:
    """Return whether the body is a multipart form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def caller_of(request: Request) -> Caller:
    """Return who sent the request, with an account whose totals go to the access log."""
    request.state.reading = account = Account()
    return Caller(client=client_of(request), account=account)


def client_of(request: Request) -> str:
    """Return the label of the request's API key, or `anonymous`."""
    client: str = getattr(request.state, "client", ANONYMOUS)
    return client


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is invalid; `param` names the parameter."},
    404: {"model": ErrorResponse, "description": "The model, file or batch does not exist."},
    401: {"model": ErrorResponse, "description": "Missing or invalid API key."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "The body or a picture exceeds a limit."},
    429: {"model": ErrorResponse, "description": "Too many requests; `Retry-After` says when to try again."},
    500: {"model": ErrorResponse, "description": "The engine failed on this request; the log has the details."},
    503: {"model": ErrorResponse, "description": "The engine is loading, broken or shutting down."},
}
