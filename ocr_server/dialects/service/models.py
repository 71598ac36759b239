"""`GET /v1/models`: the served model, once under its plain name and once for each resolution mode."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deepseek_ocr.modes import ResolutionMode
from ocr_server.dialects.dialect import Api
from ocr_server.dialects.http import ERRORS, runtime_of
from ocr_server.dialects.service.wire import Model, ModelList
from ocr_server.errors import NotFound
from ocr_server.runtime import Runtime

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("")
async def list_models(request: Request) -> ModelList:
    """List the model under its plain name, and as `<name>:<mode>` for clients that can only set the model's name."""
    return ModelList(data=list(_models(runtime_of(request)).values()))


@router.get("/{model_id}", responses={404: ERRORS[404]})
async def retrieve_model(request: Request, model_id: str) -> Model:
    """Return one of the names of the model."""
    models = _models(runtime_of(request))
    if model_id not in models:
        raise NotFound(
            f"The model {model_id!r} does not exist; GET /v1/models lists the available models.",
            param="model",
            code="model_not_found",
        )
    return models[model_id]


def _models(runtime: Runtime) -> dict[str, Model]:
    name, checkpoint = runtime.settings.MODEL_NAME, runtime.settings.checkpoint_name
    modes: dict[str, tuple[str, ResolutionMode]] = {name: ("default", runtime.settings.resolution_mode)}
    modes |= {f"{name}:{mode}": (mode, each) for mode, each in runtime.settings.family.modes.items()}
    return {
        model_id: Model(
            id=model_id,
            created=runtime.started,
            root=checkpoint,
            max_model_len=runtime.settings.MAX_MODEL_LEN,
            mode=mode,
            max_vision_tokens=resolution.max_vision_tokens(),
        )
        for model_id, (mode, resolution) in modes.items()
    }


MODELS = Api(router, {"models": "GET /v1/models"})
