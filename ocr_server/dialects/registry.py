"""All APIs of the server. A new dialect is a folder beside this file and a line here.

Routes, OpenAPI's types, the endpoints of batches and what `GET /` lists follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ocr_server.dialects.batches.route import BATCHES
from ocr_server.dialects.chat.route import CHAT
from ocr_server.dialects.dialect import Api, Dialect
from ocr_server.dialects.files.route import FILES
from ocr_server.dialects.ocr.route import OCR
from ocr_server.dialects.service.models import MODELS
from ocr_server.dialects.service.route import SERVICE

if TYPE_CHECKING:
    from config import Settings

DIALECTS: Mapping[str, Dialect[Any]] = {each.path: each for each in (CHAT, OCR)}
"""The APIs by which pages are read, by path."""


def apis(settings: Settings) -> Sequence[Api]:
    """Everything that is served."""
    of_batches = (FILES, BATCHES) if settings.BATCHES else ()
    return (*(dialect.api for dialect in DIALECTS.values()), *of_batches, MODELS, SERVICE)
