"""What the app was made of, for whoever answers a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocr_server.engine.vllm_engine import Engine
from ocr_server.intake.intake import Intake
from ocr_server.reading.admission import Admission
from ocr_server.reading.reader import Reader

if TYPE_CHECKING:
    from config import Settings


@dataclass(frozen=True)
class Context:
    """`create_app` puts it on `app.state`."""

    settings: Settings
    engine: Engine
    intake: Intake
    reader: Reader
    admission: Admission
    fingerprint: str
    """OpenAI's `system_fingerprint`: changes when the model or the versions do."""
    started: int
    """Unix time."""
