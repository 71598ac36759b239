"""Checks decoding options before a request joins the queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ocr_server.engine.preflight import local_model
from ocr_server.engine.sampling import sampling_params
from ocr_server.engine.schemas import KINDS, Schemas
from ocr_server.reading.decoding import Decoding

if TYPE_CHECKING:
    from config import Settings


class DecodingCheck:
    """Checks options as vLLM does, and whether a schema or grammar compiles within the limits."""

    def __init__(self, settings: Settings) -> None:
        self._model = settings.model_path
        self._schemas = Schemas(self._tokenizer, settings.SCHEMA_TIMEOUT)

    async def __call__(self, decoding: Decoding) -> None:
        """Return if the options are valid. Raises as `Engine.check`."""
        sampling_params(decoding)
        for kind in KINDS:
            if (source := getattr(decoding, kind)) is not None:
                await self._schemas.check(source, kind)

    async def close(self) -> None:
        """End the process in which schemas are compiled."""
        await self._schemas.close()

    def _tokenizer(self) -> Path:
        folder, _ = local_model(self._model)
        return folder / "tokenizer.json"
