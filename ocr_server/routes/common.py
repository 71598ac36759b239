"""What routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request

from ocr_server.intake.prepare import Intake
from ocr_server.reading.engine import Engine
from ocr_server.schemas.errors import ErrorResponse

if TYPE_CHECKING:
    from config import Settings


@dataclass(frozen=True)
class Context:
    """What the app was made of; `create_app` puts it on `app.state`."""

    settings: Settings
    engine: Engine
    intake: Intake
    fingerprint: str
    """OpenAI's `system_fingerprint`: changes when the model or the versions do."""
    started: int
    """Unix time."""


def context(request: Request) -> Context:
    state: Context = request.app.state.context
    return state


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is wrong; `param` names the part."},
    404: {"model": ErrorResponse, "description": "There is no such model."},
    413: {"model": ErrorResponse, "description": "The body or a picture is over a limit."},
    503: {"model": ErrorResponse, "description": "The engine is loading, broken or shutting down."},
}
