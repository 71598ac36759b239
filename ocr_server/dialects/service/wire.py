"""The wire types of `/v1/models`, of the probes, and of `/`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


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
    """The resolution mode that this name asks for; `default` is the server's."""
    max_vision_tokens: int
    """Most tokens that one picture takes in this mode."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok", "unavailable"]
    reason: str | None = None
    """Why no page can be read now."""
    model: str
    version: str
    """The server's."""


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ready", "unavailable"]
    reason: str | None = None
    """Why no page can be read now."""
    version: str
    pages_in_flight: int
    """Pages being loaded, prepared or read."""
    pages_waiting: int
    """Pages of accepted requests that have not had their turn."""


class ApiInformation(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    version: str
    model: str
    checkpoint: str
    endpoints: dict[str, str]
    modes: list[str]
    prompts: list[str]
    formats: dict[str, str]
    """Output formats: name → description."""
    documentation: str
