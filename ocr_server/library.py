"""Reads documents in a Python program, without a server: with the same engine, intake and reader.

    from config import Settings
    from ocr_server.library import Ocr

    if __name__ == "__main__":
        with Ocr(Settings()) as ocr:
            for page in ocr.read("invoices/"):
                print(page.path, page.number, page.markdown)

The `__main__` guard is required: the engine runs in processes that import the program again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ocr_server.dialects.ocr.plan import plan_ocr
from ocr_server.dialects.ocr.wire import OcrParameters
from ocr_server.engine.build import guest_engine, prepare_process
from ocr_server.event_loop_thread import EventLoopThread
from ocr_server.output.artifacts import Figure, artifacts_of
from ocr_server.output.blocks import Block
from ocr_server.output.markdown import to_markdown
from ocr_server.reading.page import PageReading
from ocr_server.runtime import Runtime
from ocr_server.session import Caller

if TYPE_CHECKING:
    from config import Settings
    from ocr_server.engine.vllm_engine import VllmEngine

SUFFIXES = frozenset("pdf jpg jpeg png bmp gif webp tif tiff heic heif avif".split())


@dataclass(frozen=True)
class ReadPage:
    """A page of a file that has been read."""

    path: Path
    number: int
    """Page number in the file, from 1."""
    answer: str
    """The model's text, verbatim."""
    markdown: str
    """Markdown without markers, with links to figures by their names."""
    blocks: list[Block]
    figures: list[Figure]
    overlay: bytes | None
    """The page with its blocks drawn on it, if requested: a PNG, or a JPEG for a page of a document."""
    finish_reason: str
    """`stop`, `length`, `repetition` or `error`."""
    error: str | None
    """Why the page could not be read."""


class Ocr:
    """Reads files with an engine of its own. Use it as a context manager: the model is loaded on entering."""

    def __init__(self, settings: Settings, engine: VllmEngine | None = None) -> None:
        """Args:
        settings: The same settings as the server's.
        engine: Engine to use instead of one of its own.
        """
        self._settings = settings
        self._engine = engine

    def __enter__(self) -> Ocr:
        """Load the model. Raises the exception that keeps it from loading."""
        prepare_process(self._settings)
        self._loop = EventLoopThread("ocr")
        self._runtime = self._loop.run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._runtime.close())
        self._loop.close()

    def read(self, path: str | Path, **options: Any) -> Iterator[ReadPage]:
        """Yield the pages of a file, or of all PDFs and pictures in a folder, in order.

        Args:
            options: The options of `POST /v1/ocr`: `pages` (from 0), `prompt`, `mode`, `dpi`, `password`, `max_tokens`
                and so on. `include_image_base64=True` cuts out the figures, `output="overlay"` draws the blocks.

        Raises:
            ApiError: A file cannot be read at all, or an option is not valid for the served model.
            pydantic.ValidationError: An option does not exist, or its value has the wrong type or is out of range.
            OSError: A file does not exist or cannot be opened.
        """
        path = Path(path)
        for file in files(path) if path.is_dir() else [path]:
            pages = self._pages(file, options)
            try:
                while (page := self._loop.run(anext(pages, None))) is not None:
                    yield page
            finally:
                self._loop.run(pages.aclose())

    async def _pages(self, file: Path, options: dict[str, Any]) -> AsyncGenerator[ReadPage]:
        data = await asyncio.to_thread(file.read_bytes)
        plan = plan_ocr(OcrParameters.model_validate(options), self._settings, data, parameter=str(file))
        session = await self._runtime.begin(plan, Caller())
        async with aclosing(session.events()) as events:
            async for event in events:
                if isinstance(event, PageReading):
                    yield _read_page(file, event)

    async def _open(self) -> Runtime:
        engine = self._engine or guest_engine(self._settings)
        await engine.loaded()
        return Runtime.build(self._settings, engine)


def files(folder: Path) -> list[Path]:
    """Return the PDFs and pictures in a folder and its subfolders, sorted by name."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix.lower().removeprefix(".") in SUFFIXES
    )


def _read_page(file: Path, reading: PageReading) -> ReadPage:
    artifacts = artifacts_of(reading)
    answer = reading.text()
    return ReadPage(
        path=file,
        number=reading.number + 1,
        answer=answer,
        markdown=to_markdown(answer, figures=[figure.name if min(figure.size) else "" for figure in artifacts.figures]),
        blocks=artifacts.blocks,
        figures=artifacts.figures,
        overlay=artifacts.overlay,
        finish_reason=reading.finish_reason() or "error",
        error=None if reading.error is None else reading.error.message,
    )
