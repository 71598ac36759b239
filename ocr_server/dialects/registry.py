"""All APIs of the server. To add a dialect, add a folder beside this file and its name here.

The routes, the types in the OpenAPI schema, the endpoints of batches and the list in `GET /` follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ocr_server.dialects.batches.route import BATCHES
from ocr_server.dialects.chat.route import CHAT
from ocr_server.dialects.dialect import Api, Dialect
from ocr_server.dialects.files.route import FILES
from ocr_server.dialects.ocr.route import OCR
from ocr_server.dialects.process.route import PROCESS
from ocr_server.dialects.responses.route import RESPONSES
from ocr_server.dialects.service.models import MODELS
from ocr_server.dialects.service.route import SERVICE

if TYPE_CHECKING:
    from config import Settings

DIALECTS: Mapping[str, Dialect[Any]] = {each.path: each for each in (CHAT, RESPONSES, OCR)}
"""Path → API through which pages are read."""


def apis(settings: Settings) -> Sequence[Api]:
    """Return all APIs that the server has with these settings."""
    of_batches = (FILES, BATCHES) if settings.serves_batches else ()
    return (*(dialect.api for dialect in DIALECTS.values()), PROCESS, *of_batches, MODELS, SERVICE)
