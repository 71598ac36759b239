"""What the server needs of an engine. `engine/` has vLLM's; tests have fakes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta


class Engine(Protocol):
    """Reads pages, many at a time."""

    def unavailable(self) -> str | None:
        """Why no page can be read now, as a sentence for the client; None if pages can be read."""

    @property
    def retry_after(self) -> float:
        """While no page can be read: seconds after which trying again makes sense, as far as can be told."""

    def check(self, decoding: Decoding) -> None:
        """Raise DecodingError if an option is not valid. Works while no page can be read, too."""

    def start(self) -> None:
        """Begin to load, in the background."""

    async def close(self) -> None:
        """Stop, and leave no process behind."""

    def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        """Read one page. Closing the generator aborts the work in the engine.

        Raises:
            DecodingError: The page does not fit the context, or an option is not valid; before the first delta.
            Unavailable: The engine is loading or has died.
            EngineFailure: The engine failed on this page.
        """
