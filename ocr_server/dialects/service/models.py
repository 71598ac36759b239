"""`GET /v1/models`: the served model, once under its plain name and once for each resolution mode."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ocr_server.dialects.dialect import Api
from ocr_server.dialects.http import ERRORS, runtime_of
from ocr_server.dialects.model_names import model_choice
from ocr_server.dialects.service.wire import Model, ModelList
from ocr_server.output.formats import TEXT_FORMATS
from ocr_server.runtime import Runtime

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("")
@router.get("/", include_in_schema=False)
async def list_models(request: Request) -> ModelList:
    """List the model under its plain name, and with each mode and output for clients that can only set this name.

    Modes and outputs can be combined, as in `<name>:<mode>:<output>`.
    """
    runtime = runtime_of(request)
    suffixes = (*runtime.settings.family.modes, *TEXT_FORMATS)
    name = runtime.settings.MODEL_NAME
    return ModelList(data=[_model(each, runtime) for each in (name, *(f"{name}:{suffix}" for suffix in suffixes))])


@router.get("/{model_id:path}", responses={404: ERRORS[404]})
async def retrieve_model(request: Request, model_id: str) -> Model:
    """Return one of the names of the model: a listed one, one of its aliases, or either with a mode and an output."""
    return _model(model_id.rstrip("/"), runtime_of(request))


def _model(name: str, runtime: Runtime) -> Model:
    """Return what a name stands for. Raises NotFound."""
    settings = runtime.settings
    choice = model_choice(name, settings)
    return Model(
        id=name,
        created=runtime.started,
        root=settings.checkpoint_name,
        name=name,
        max_model_len=settings.MAX_MODEL_LEN,
        max_context_length=settings.MAX_MODEL_LEN,
        mode=choice.mode_name or "default",
        output=choice.output,
        max_vision_tokens=(choice.mode or settings.resolution_mode).max_vision_tokens(),
    )


MODELS = Api(router, {"models": "GET /v1/models"})
