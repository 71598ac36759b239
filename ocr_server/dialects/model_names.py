"""The names under which clients ask for the model.

A name is the model's own or an alias, and may be followed by a resolution mode and an output format in any order, for
clients that can set nothing else: `deepseek-ocr:base`, `deepseek-ocr:markdown`, `deepseek-ocr:markdown:base`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_ocr.modes import ResolutionMode
from ocr_server.dialects.validation import MAX_NAME_CHARS
from ocr_server.errors import NotFound
from ocr_server.output.formats import TEXT_FORMATS

if TYPE_CHECKING:
    from config import Settings

MAX_MODEL_CHARS = 256
"""Maximum length of a name. The answer repeats it."""


@dataclass(frozen=True)
class ModelChoice:
    """What a model's name asks for."""

    mode_name: str | None = None
    mode: ResolutionMode | None = None
    output: str | None = None
    """Name of an output format for the text of an answer."""


def model_choice(model: str, settings: Settings) -> ModelChoice:
    """Return what a model's name asks for. Upper and lower case are the same.

    Raises:
        NotFound: The model does not exist.
    """
    modes = settings.family.modes
    mode: str | None = None
    output: str | None = None
    base = model.casefold() if len(model) <= MAX_MODEL_CHARS else ""
    while ":" in base:
        rest, _, suffix = base.rpartition(":")
        if suffix in modes and mode is None:
            mode = suffix
        elif suffix in TEXT_FORMATS and output is None:
            output = suffix
        else:
            break  # it may be part of an alias
        base = rest
    if base and _is_base(base, settings):
        return ModelChoice(mode, modes[mode] if mode is not None else None, output)
    raise NotFound(
        f"The model {model[:MAX_NAME_CHARS]!r} does not exist; GET /v1/models lists the available models, and the "
        "setting MODEL_ALIASES adds names.",
        param="model",
        code="model_not_found",
    )


def _is_base(name: str, settings: Settings) -> bool:
    """Return whether a name in lower case is the model's own or an alias."""
    if name == settings.MODEL_NAME.casefold():
        return True
    return any(
        re.fullmatch(".*".join(map(re.escape, alias.casefold().split("*"))), name, re.DOTALL)
        for alias in settings.model_aliases
    )
