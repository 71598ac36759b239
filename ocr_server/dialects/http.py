"""What routes share."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from ocr_server.batches.service import Batches
from ocr_server.dialects.endpoints import Caller
from ocr_server.dialects.errors import ErrorResponse
from ocr_server.dialects.validation import parse_body
from ocr_server.reading.session import Account
from ocr_server.runtime import Context
from ocr_server.transport.auth import ANONYMOUS

M = TypeVar("M", bound=BaseModel)


def context(request: Request) -> Context:
    state: Context = request.app.state.context
    return state


def batches(request: Request) -> Batches:
    found: Batches = request.app.state.batches
    return found


async def parsed(request: Request, model: type[M]) -> M:
    """The body as `model`. Raises as `parse_body`."""
    return parse_body(await request.body(), model)


def caller(request: Request) -> Caller:
    """Whose request it is; what it comes to is told to the log."""
    request.state.reading = account = Account()
    return Caller(client=client_of(request), account=account)


def client_of(request: Request) -> str:
    """The label of the request's key, or `anonymous`."""
    client: str = getattr(request.state, "client", ANONYMOUS)
    return client


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is wrong; `param` names the part."},
    404: {"model": ErrorResponse, "description": "There is no such model."},
    401: {"model": ErrorResponse, "description": "An API key is needed, and this is none."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "The body or a picture is over a limit."},
    429: {"model": ErrorResponse, "description": "Too much at a time; `Retry-After` says when to try again."},
    500: {"model": ErrorResponse, "description": "The engine failed on this request; the log has the details."},
    503: {"model": ErrorResponse, "description": "The engine is loading, broken or shutting down."},
}
