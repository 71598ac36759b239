"""What a batch needs of an endpoint: the dialects have it, see `dialects.dialect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ocr_server.intake.source import Content
from ocr_server.plan import ReadPlan
from ocr_server.runtime import Runtime
from ocr_server.session import Caller

if TYPE_CHECKING:
    from config import Settings


class Endpoint(Protocol):
    """An endpoint whose requests a batch may have."""

    async def answer(self, runtime: Runtime, body: bytes, caller: Caller, content: Content | None = None) -> str:
        """A request's body → the answer as JSON. With `content`, the body names no picture or document of its own.

        Raises:
            ApiError: The request cannot be answered.
        """

    def understand(self, body: bytes, settings: Settings, content: Content | None) -> tuple[Any, ReadPlan]:
        """The request and its plan. Raises InvalidRequest, NotFound."""


Endpoints = Mapping[str, Endpoint]
"""By path."""
