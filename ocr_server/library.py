"""Reading without a server: the same engine, intake and reader, in a Python program.

    from config import Settings
    from ocr_server.library import Ocr

    if __name__ == "__main__":
        with Ocr(Settings()) as ocr:
            for page in ocr.read("invoices/"):
                print(page.path, page.number, page.markdown)

The guard around the program is needed: the engine runs in processes that import it anew.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ocr_server.dialects.ocr.plan import translate_ocr
from ocr_server.dialects.ocr.wire import OcrRequest
from ocr_server.engine.environment import set_up
from ocr_server.engine.process import begin_imports
from ocr_server.event_loop_thread import EventLoopThread
from ocr_server.intake.build import intake_for
from ocr_server.intake.intake import Intake
from ocr_server.output.artifacts import Figure, product_of
from ocr_server.output.blocks import Block
from ocr_server.output.markdown import to_markdown
from ocr_server.reading.admission import admission_for
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import Reader
from ocr_server.reading.session import Session

if TYPE_CHECKING:
    from config import Settings
    from ocr_server.engine.vllm_engine import VllmEngine

SUFFIXES = frozenset("pdf jpg jpeg png bmp gif webp tif tiff heic heif avif".split())


@dataclass(frozen=True)
class ReadPage:
    """A page of a file, read."""

    path: Path
    number: int
    """In the file, from 1."""
    answer: str
    """Exactly what the model said."""
    markdown: str
    """Without markers; figures linked by their names."""
    blocks: list[Block]
    figures: list[Figure]
    overlay: bytes | None
    """The page with its blocks drawn on it, if it was asked for: a PNG."""
    finish_reason: str
    """stop, length, repetition or error."""
    error: str | None


class Ocr:
    """Reads files with an engine of its own; the model is loaded on entering."""

    def __init__(self, settings: Settings, engine: VllmEngine | None = None) -> None:
        """Args:
        settings: as the server's.
        engine: in the place of one of its own.
        """
        self._settings = settings
        self._engine = engine
        self._admission = admission_for(settings)

    def __enter__(self) -> Ocr:
        """Raises what keeps the model from loading."""
        set_up(self._settings)
        if self._engine is None:
            begin_imports()
        self._loop = EventLoopThread("ocr")
        self._intake, self._reader = self._loop.run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._close())
        self._loop.close()

    def read(self, path: str | Path, **options: Any) -> Iterator[ReadPage]:
        """The pages of a file, or of all PDFs and pictures in a folder, in order.

        Args:
            options: those of `POST /v1/ocr`: `pages` (from 0), `prompt`, `mode`, `dpi`, `password`, `max_tokens` …;
                `include_image_base64=True` cuts the figures out, `output="overlay"` draws the blocks.

        Raises:
            ApiError: a file can't be read at all, or an option is wrong.
            OSError: a file isn't there.
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
        data = base64.b64encode(await asyncio.to_thread(file.read_bytes)).decode()
        document = {"document_url": f"data:;base64,{data}"}
        reading = translate_ocr(OcrRequest.model_validate(options | {"document": document}), self._settings)
        session = await Session.begin(
            self._admission, self._intake, self._reader, [reading.source], reading.prompt, reading.params
        )
        async with aclosing(session.events(finish=reading.wanted)) as events:
            async for event in events:
                if isinstance(event, PageReading):
                    yield _read_page(file, event)

    async def _open(self) -> tuple[Intake, Reader]:
        if self._engine is None:
            from ocr_server.engine.vllm_engine import VllmEngine

            self._engine = VllmEngine(self._settings)
        await self._engine.loaded()
        intake = intake_for(self._settings)
        return intake, Reader(
            self._engine, intake.prepare, at_once=self._settings.PAGES_AT_ONCE, loops=self._settings.LOOPS
        )

    async def _close(self) -> None:
        await self._intake.close()
        if self._engine is not None:
            await self._engine.close()


def files(folder: Path) -> list[Path]:
    """The PDFs and pictures in a folder and all below it, by name."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix.lower().removeprefix(".") in SUFFIXES
    )


def _read_page(file: Path, reading: PageReading) -> ReadPage:
    product = product_of(reading)
    answer = reading.text()
    return ReadPage(
        path=file,
        number=reading.number + 1,
        answer=answer,
        markdown=to_markdown(answer, figures=[figure.name if min(figure.size) else "" for figure in product.figures]),
        blocks=product.blocks,
        figures=product.figures,
        overlay=product.overlay,
        finish_reason=reading.finish_reason() or "error",
        error=None if reading.error is None else reading.error.message,
    )
