"""The interface that batches need of an endpoint. `dialects.dialect.Dialect` implements it."""

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
    """An endpoint that can be used in batches."""

    async def answer(self, runtime: Runtime, body: bytes, caller: Caller, content: Content | None = None) -> str:
        """Answer a request, and return the answer as JSON.

        Args:
            runtime: Reads the pages.
            body: Body of the request.
            caller: The client that the pages are read for.
            content: The picture or document, if the body does not have one of its own.

        Raises:
            ApiError: The request cannot be answered.
        """

    def understand(self, body: bytes, settings: Settings, content: Content | None) -> tuple[Any, ReadPlan]:
        """Return the parsed request and its plan. Arguments as for `answer`.

        Raises:
            InvalidRequest: The request is not valid.
            NotFound: The model does not exist.
        """


Endpoints = Mapping[str, Endpoint]
"""Path → endpoint."""
