"""Opens files: determines their type, counts their pages and applies the selection of pages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ocr_server.errors import TooLarge, TooMany, out_of_resources
from ocr_server.intake.decode import PicturePage, check_pixels, find_pages, is_pdf
from ocr_server.intake.document import Document
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.page_selection import Selection, TooManyPages
from ocr_server.intake.pdf import PdfFile, PdfRenderer
from ocr_server.intake.pdf_errors import Kind, PdfError
from ocr_server.intake.source import Source
from ocr_server.intake.source_page import DECODING_BYTES, KEPT_PIXELS, Rgb, SourcePage
from ocr_server.intake.workers import WorkerLost, Workers, WorkerTimeout
from ocr_server.memory import ClientMemory, MemoryBudget, Use

_numbers = itertools.count()

_PDF_ERRORS: dict[Kind, tuple[str, str]] = {
    "password_required": ("pdf_password_required", "The PDF is encrypted; a password is required."),
    "password_wrong": ("pdf_password_wrong", "The PDF is encrypted, and the password is wrong."),
    "damaged": ("pdf_damaged", "The PDF can't be opened: it is damaged, incomplete or of an unsupported variant."),
    "empty": ("pdf_empty", "The PDF has no pages."),
    "giant_page": ("pdf_page_too_large", "The page of the PDF is too large to be rendered at a legible resolution."),
    "page_failed": ("pdf_page_failed", "The page of the PDF can't be rendered: it is damaged or missing."),
    "timeout": ("pdf_timeout", "The PDF took longer than the limit of {timeout:g} s to be processed."),
    "failed": ("pdf_failed", "The PDF can't be read: it took too much memory, or the process that read it crashed."),
}


class Opener:
    """Opens files under limits. One for each process."""

    def __init__(
        self, limits: IntakeLimits, threads: ThreadPoolExecutor, workers: Workers, memory: MemoryBudget
    ) -> None:
        """Args:
        limits: What is accepted.
        threads: Threads that count pages and write temporary files.
        workers: Processes that decode pictures and render PDFs.
        memory: What decoded pages draw on.
        """
        self._limits = limits
        self._memory = memory
        self._threads = threads
        self._workers = workers
        self._pdf = PdfRenderer(workers)

    async def open(self, source: Source, client: str = "") -> Document:
        """Open a file. Its content decides what it is. A single picture is decoded, so that a broken one fails here.

        Args:
            source: Its `content` is the file: a PDF, or a picture file as `find_pages` describes.
            client: On whose behalf: clients take turns with memory.

        Raises:
            SourceError: The file is empty, of another type or damaged, the password is missing or wrong, or the pages
                do not exist or are more than `limits.max_pages`.
            SourceTooLarge: The file has more than `limits.max_image_bytes` bytes, or a selected page of a picture file
                more than `limits.max_image_pixels` pixels.
            Unavailable: No process can be started to decode it in, or the machine has run out of memory or disk space.
        """
        data = source.content
        assert isinstance(data, bytes), "URLs are loaded first"
        if not data:
            raise SourceError("The file is empty (0 bytes).", code="empty_image_file")
        if len(data) > self._limits.max_image_bytes:
            raise SourceTooLarge(
                f"The file has {len(data):,} bytes; the limit is {self._limits.max_image_bytes:,} bytes."
            )
        memory = ClientMemory(self._memory, client)
        if is_pdf(data):
            return await self._open_pdf(data, source, memory)
        return await self._open_picture(data, source.pages, memory)

    async def _open_pdf(self, data: bytes, source: Source, memory: ClientMemory) -> Document:
        run = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        try:
            file = await run(PdfFile, data, source.password)
        except OSError as error:
            raise out_of_resources(error) or error from error
        try:
            info = await self._pdf.inspect(file)
            indices = await run(self._select, info.page_count, source.pages)
        except PdfError as error:
            self._pdf.discard(file)
            raise _source_error(error, self._pdf) from error
        except BaseException:
            self._pdf.discard(file)
            raise
        return _Pdf(self._pdf, file, indices, len(data), source.dpi, self._limits, memory)

    async def _open_picture(self, data: bytes, pages: Selection | None, memory: ClientMemory) -> Document:
        document = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._find_pages, data, pages, memory
        )
        if not document.is_document:
            await document.keep()
        return document

    def _find_pages(self, data: bytes, pages: Selection | None, memory: ClientMemory) -> _Picture:
        found = find_pages(data)
        if len(found) == 1 and pages is not None and pages.documents_only:
            pages = None
        indices = self._select(len(found), pages)
        selected = [found[index] for index in indices]
        for page in selected:
            check_pixels(page.width, page.height, self._limits)
        return _Picture(data, selected, indices, len(found) > 1, self._limits, self._workers, memory)

    def _select(self, page_count: int, pages: Selection | None) -> Sequence[int]:
        """Return the indices of the selected pages. Not for the event loop: hostile selections take a while."""
        most = self._limits.max_pages
        if pages is None:
            if page_count > most:
                raise SourceError(
                    f"The document has {page_count:,} pages; the limit is {most:,}. Select some of them.",
                    code="too_many_pages",
                )
            return range(page_count)
        try:
            return pages.resolve(page_count, most=most)
        except ValueError as error:
            code = "too_many_pages" if isinstance(error, TooManyPages) else "invalid_pages"
            raise SourceError(str(error), about="pages", code=code) from error


class _Pdf(Document):
    """A PDF, whose pages are rendered when they are asked for."""

    def __init__(
        self,
        renderer: PdfRenderer,
        file: PdfFile,
        indices: Sequence[int],
        size_bytes: int,
        dpi: float,
        limits: IntakeLimits,
        memory: ClientMemory,
    ) -> None:
        super().__init__(indices, size_bytes, is_document=True)
        self._memory = memory
        self._renderer = renderer
        self._file = file
        self._dpi = dpi
        self._limits = limits

    async def page(self, number: int) -> SourcePage:
        which = self._file, self.indices[number], self._dpi, self._limits.max_image_pixels
        try:
            width, height = await self._renderer.measure(*which)
            memory = await self._memory.wait(Use.PIXELS, width * height * DECODING_BYTES)
            try:
                return replace(await self._renderer.render(*which), memory=memory)
            except BaseException:
                memory.close()
                raise
        except PdfError as error:
            raise _source_error(error, self._renderer) from error

    async def close(self) -> None:
        self._renderer.discard(self._file)
        await super().close()


class _Picture(Document):
    """A picture file: a single picture, or a TIFF of several pages."""

    def __init__(
        self,
        data: bytes,
        pages: Sequence[PicturePage],
        indices: Sequence[int],
        is_document: bool,
        limits: IntakeLimits,
        workers: Workers,
        memory: ClientMemory,
    ) -> None:
        super().__init__(indices, len(data), is_document=is_document)
        self._memory = memory
        self._data = data
        self._pages = pages
        self._limits = limits
        self._workers = workers
        self._name = f"picture {next(_numbers)}"
        self._kept: SourcePage | None = None

    async def keep(self) -> None:
        """Decode the only page in advance. Raises as `page`."""
        page = await self._decode(0)
        if math.prod(page.size) <= KEPT_PIXELS:
            with contextlib.suppress(TooMany, TooLarge):
                # Not as pixels: it waits for its turn, which may depend on pages that wait for memory for their pixels.
                self._kept = replace(page, memory=self._memory.reserve(Use.SOURCES, page.pixels.nbytes))
        page.close()

    async def page(self, number: int) -> SourcePage:
        page, self._kept = self._kept, None
        if page is None:
            return await self._decode(number)
        try:
            return replace(page, memory=await self._memory.wait(Use.PIXELS, page.pixels.nbytes))
        finally:
            page.close()

    async def close(self) -> None:
        self._data = b""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._workers.forget(self._name, "picture_worker.forget")
        await super().close()

    async def _decode(self, number: int) -> SourcePage:
        (width, height), _ = await self._call("measure", number)
        memory = await self._memory.wait(Use.PIXELS, width * height * DECODING_BYTES)
        try:
            _, pixels = await self._call("decode", number)
            if pixels is None:
                raise _decoder_crashed()
        except BaseException:
            memory.close()
            raise
        return SourcePage(pixels, None, memory)

    async def _call(self, function: str, number: int) -> tuple[Any, Rgb | None]:
        arguments = self._pages[number], asdict(self._limits)
        try:
            return await self._workers.call(self._name, f"picture_worker.{function}", *arguments, data=self._data)
        except WorkerTimeout as error:
            raise SourceError(
                f"The picture took longer than the limit of {self._workers.timeout_s:g} s to be decoded.",
                code="image_timeout",
            ) from error
        except WorkerLost as error:
            raise _decoder_crashed() from error


def _decoder_crashed() -> SourceError:
    return SourceError(
        "The picture can't be decoded: it took too much memory, or the process that decoded it crashed.",
        code="image_parse_error",
    )


def _source_error(error: PdfError, renderer: PdfRenderer) -> SourceError:
    code, message = _PDF_ERRORS[error.kind]
    return SourceError(message.format(timeout=renderer.timeout_s), code=code)
