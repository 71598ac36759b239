"""The interface of an engine. `engine/` implements it with vLLM; tests have fake engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta


class Engine(Protocol):
    """Reads pages, many of them at the same time."""

    def unavailable(self) -> str | None:
        """Return why no page can be read now, as a sentence for the client, or None if pages can be read."""

    @property
    def retry_after(self) -> float:
        """While no page can be read: estimated time after which to try again, in seconds."""

    async def check(self, decoding: Decoding) -> None:
        """Return if the options are valid. Also works while no page can be read.

        Raises:
            DecodingError: An option is not valid.
            Unavailable: An option cannot be checked now.
        """

    def start(self) -> None:
        """Start to load in the background."""

    async def close(self) -> None:
        """Stop, and end all processes of the engine."""

    def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        """Read one page. Closing the generator aborts the work in the engine.

        Raises:
            DecodingError: The page does not fit the context, or an option is not valid. Raised before the first delta.
            Unavailable: The engine is loading or has crashed.
            EngineFailure: The engine failed on this page.
        """
