"""The wire types of `/v1/models`, of the probes, and of `/`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ModelCapabilities(BaseModel):
    """What the model can do, under the names of Mistral's API."""

    completion_chat: bool = True
    vision: bool = True
    ocr: bool = True
    function_calling: bool = False
    completion_fim: bool = False
    fine_tuning: bool = False
    classification: bool = False


class Model(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "deepseek-ai"
    root: str
    """The checkpoint that is served."""
    max_model_len: int
    mode: str
    """The resolution mode that this name selects; `default` for the server's default mode."""
    output: str | None
    """The output format that this name selects; null for the server's default."""
    max_vision_tokens: int
    """Maximum number of tokens that a picture takes in this mode."""
    type: Literal["base"] = "base"
    """Mistral: not a model that was fine-tuned there. The following fields are Mistral's as well."""
    name: str
    """The same as `id`."""
    max_context_length: int
    """The same as `max_model_len`."""
    capabilities: ModelCapabilities = ModelCapabilities()


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok", "unavailable"]
    reason: str | None = None
    """Why no page can be read at the moment."""
    model: str
    version: str
    """Version of the server."""


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ready", "unavailable"]
    reason: str | None = None
    """Why no page can be read at the moment."""
    version: str
    """Version of the server."""
    pages_in_flight: int
    """Number of pages that are being loaded, prepared or read."""
    pages_waiting: int
    """Number of pages of accepted requests that are still in the queue."""


class ApiInformation(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    version: str
    model: str
    checkpoint: str
    endpoints: dict[str, str]
    """Name → method and path."""
    modes: list[str]
    """Names of the model's resolution modes."""
    prompts: list[str]
    """Prompts that the model was trained with."""
    formats: dict[str, str]
    """Output formats: name → description."""
    documentation: str
