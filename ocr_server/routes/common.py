"""What routes share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from vllm.sampling_params import SamplingParams

from ocr_server.admission import Admission
from ocr_server.errors import InvalidRequest
from ocr_server.intake.prepare import Intake, Source
from ocr_server.reading.engine import Engine
from ocr_server.reading.reader import Reader
from ocr_server.schemas.errors import ErrorResponse
from ocr_server.session import Account, Session

if TYPE_CHECKING:
    from config import Settings


M = TypeVar("M", bound=BaseModel)

MOST_LEVELS = 64
"""How deep the lists and objects of a body may be nested; what reads a JSON schema recurses a few calls a level."""


@dataclass(frozen=True)
class Context:
    """What the app was made of; `create_app` puts it on `app.state`."""

    settings: Settings
    engine: Engine
    intake: Intake
    reader: Reader
    admission: Admission
    fingerprint: str
    """OpenAI's `system_fingerprint`: changes when the model or the versions do."""
    started: int
    """Unix time."""


def context(request: Request) -> Context:
    state: Context = request.app.state.context
    return state


async def parsed(request: Request, model: type[M]) -> M:
    """The body as `model`, straight from its bytes: no second copy of a picture as Python objects.

    Raises:
        RequestValidationError: it is no JSON, or not what `model` takes.
        InvalidRequest: it is nested deeper than `MOST_LEVELS`.
    """
    body = await request.body()
    try:
        value = model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        if "recursion limit exceeded" in str(problems[0]["msg"]):  # pydantic's own, of 200 levels
            raise _too_deep(None) from error
        raise RequestValidationError(problems) from error
    if body.count(b"{") + body.count(b"[") > MOST_LEVELS:
        for name, field in value.__dict__.items():
            if _levels_exceed(field, MOST_LEVELS - 1):
                raise _too_deep(name)
    return value


def _levels_exceed(value: Any, most: int) -> bool:
    """Whether lists, objects and models are nested deeper than `most` in `value`."""
    level = [value]
    for _ in range(most + 1):
        level = [inner for inner in level if isinstance(inner, BaseModel | dict | list)]
        if not level:
            return False
        level = [inner for outer in level for inner in _inside(outer)]
    return True


def _inside(value: BaseModel | dict[str, Any] | list[Any]) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return [*value.__dict__.values(), *(value.model_extra or {}).values()]
    return value.values() if isinstance(value, dict) else value


def _too_deep(param: str | None) -> InvalidRequest:
    return InvalidRequest(
        f"The body is nested too deep: at most {MOST_LEVELS} levels of lists and objects are read.",
        param=param,
        code="json_too_deep",
    )


async def begin(request: Request, sources: Sequence[Source], prompt: str, params: SamplingParams) -> Session:
    """The request's session. Raises as `Session.begin`."""
    state = context(request)
    client: str = getattr(request.state, "client", "anonymous")
    request.state.reading = account = Account()
    return await Session.begin(
        state.admission, state.intake, state.reader, sources, prompt, params, client=client, account=account
    )


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
