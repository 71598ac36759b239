"""Opening files: their pages one by one, and errors that say what is wrong with the file or the selection."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from ocr_server.intake.document import DEFAULT_DPI, Document
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.opener import Opener
from ocr_server.intake.page_selection import parse_pages
from ocr_server.intake.source import Source
from ocr_server.intake.source_page import DECODING_BYTES, KEPT_PIXELS
from ocr_server.intake.workers import Workers
from ocr_server.memory import MemoryBudget, Use
from tests.ocr_server.intake import pdfs
from tests.ocr_server.intake.memory import budget
from tests.ocr_server.intake.pdfs import filled, pdf
from tests.ocr_server.intake.recording import RecordingWorkers

RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


@pytest.fixture(scope="module")
def shared_workers() -> Iterator[RecordingWorkers]:
    """One process, which the tests of this module share."""
    workers = RecordingWorkers(memory_bytes=2 << 30)
    yield workers
    asyncio.run(workers.close())


@pytest.fixture
def workers(shared_workers: RecordingWorkers) -> Iterator[RecordingWorkers]:
    """The shared process with nothing recorded yet; no temporary file of a PDF is left at the end."""
    shared_workers.calls.clear()
    shared_workers.pdfs.clear()
    yield shared_workers
    assert all(file.closed for file in shared_workers.pdfs)


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def limits(limits: IntakeLimits) -> IntakeLimits:
    return dataclasses.replace(limits, max_image_pixels=3_000_000)


@dataclasses.dataclass
class OpenFiles:
    """Opens files as a request would, and closes them at the end of the test."""

    limits: IntakeLimits
    threads: ThreadPoolExecutor
    workers: RecordingWorkers
    opened: list[Document] = dataclasses.field(default_factory=list)
    memory: MemoryBudget = dataclasses.field(default_factory=budget)

    async def open(
        self,
        data: bytes,
        pages: str | None = None,
        password: str | None = None,
        dpi: float = DEFAULT_DPI,
        **limits: Any,
    ) -> Document:
        opener = Opener(dataclasses.replace(self.limits, **limits), self.threads, self.workers, self.memory)
        selection = None if pages is None else parse_pages(pages, first=1)
        self.opened.append(await opener.open(Source(data, selection, dpi, password)))
        return self.opened[-1]

    async def refusal(self, data: bytes, *args: Any, **options: Any) -> SourceError:
        with pytest.raises(SourceError) as caught:
            await self.open(data, *args, **options)
        return caught.value


@pytest.fixture
async def files(
    limits: IntakeLimits, threads: ThreadPoolExecutor, workers: RecordingWorkers
) -> AsyncIterator[OpenFiles]:
    files = OpenFiles(limits, threads, workers)
    yield files
    for opened in files.opened:
        await opened.close()


async def colours(opened: Document) -> list[Any]:
    return [(await opened.page(number)).image.getpixel((5, 5)) for number in range(opened.page_count)]


async def failure(opened: Document, number: int) -> SourceError:
    """The error of a page that can't be read."""
    with pytest.raises(SourceError) as caught:
        await opened.page(number)
    assert caught.value.about == "file"
    return caught.value


def saved(*frames: Image.Image, format: str = "TIFF", **options: Any) -> bytes:
    file = io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(file, format, **more, **options)
    return file.getvalue()


def plain(*names: str, size: tuple[int, int] = (20, 10)) -> list[Image.Image]:
    return [Image.new("RGB", size, name) for name in names]


THREE = pdf(filled(1, 0, 0), filled(0, 0, 1), filled(0, 1, 0))


class TestPdf:
    async def test_all_pages(self, files: OpenFiles) -> None:
        opened = await files.open(THREE)
        assert (opened.page_count, list(opened.indices), opened.is_document) == (3, [0, 1, 2], True)
        assert opened.size_bytes == len(THREE)
        assert await colours(opened) == [RED, BLUE, LIME]
        page = await opened.page(0)
        assert (page.image.mode, page.image.size, page.dpi) == ("RGB", (1224, 1584), 144)

    async def test_a_pdf_of_one_page_is_a_document(self, files: OpenFiles) -> None:
        opened = await files.open(pdf(filled(1, 0, 0)))
        assert (opened.page_count, opened.is_document) == (1, True)

    async def test_selected_pages_come_in_the_order_of_the_selection(self, files: OpenFiles) -> None:
        opened = await files.open(THREE, "3,1")
        assert list(opened.indices) == [2, 0]
        assert await colours(opened) == [LIME, RED]

    async def test_resolution(self, files: OpenFiles) -> None:
        assert (await (await files.open(THREE, dpi=36)).page(0)).image.size == (306, 396)
        page = await (await files.open(THREE, dpi=600)).page(0)
        assert 2_990_000 < page.image.width * page.image.height <= 3_000_000
        assert page.dpi == pytest.approx(179.1, abs=0.1)

    async def test_only_pages_that_are_asked_for_are_rendered(self, files: OpenFiles) -> None:
        many = pdf(*(filled(index / 300, 0, 0) for index in range(300)), size=(50, 50))
        opened = await files.open(many, max_pages=300)
        assert opened.page_count == 300
        assert files.workers.rendered == []
        page = await opened.page(255)
        assert page.image.getpixel((5, 5)) == pytest.approx((217, 0, 0), abs=1)
        assert files.workers.rendered == [255]

    async def test_a_page_that_fails_leaves_the_others_readable(self, files: OpenFiles) -> None:
        giant = THREE.replace(b"0 0 612.000000 792.000000", b"0 0 1000000.00 1000000.00", 1)
        missing = giant.replace(b"/Kids[3 0 R 5 0 R 7 0 R]", b"/Kids[3 0 R 99 0 R 7 0 R]")
        opened = await files.open(missing)
        assert (await failure(opened, 0)).code == "pdf_page_too_large"
        assert (await failure(opened, 1)).code == "pdf_page_failed"
        assert (await opened.page(2)).image.getpixel((5, 5)) == LIME

    @pytest.mark.parametrize(
        ("data", "password", "code"),
        [
            (pdfs.encrypted(b"", "secret"), None, "pdf_password_required"),
            (pdfs.encrypted(b"", "secret"), "", "pdf_password_required"),
            (pdfs.encrypted(b"", "secret"), "wrong", "pdf_password_wrong"),
            (THREE[:300], None, "pdf_damaged"),
            (b"%PDF-1.7\n" + b"garbage" * 100, None, "pdf_damaged"),
            (pdfs.NO_PAGES, None, "pdf_empty"),
        ],
    )
    async def test_files_that_cannot_be_opened(
        self, data: bytes, password: str | None, code: str, files: OpenFiles
    ) -> None:
        error = await files.refusal(data, password=password)
        assert (type(error), error.code, error.about) == (SourceError, code, "file")
        assert error.message.startswith("The PDF ")

    async def test_the_right_password_opens_an_encrypted_pdf(self, files: OpenFiles) -> None:
        assert await colours(await files.open(pdfs.encrypted(filled(1, 0, 0), "secret"), password="secret")) == [RED]

    async def test_a_pdf_may_begin_with_other_bytes(self, files: OpenFiles) -> None:
        assert await colours(await files.open(b"\x1b%-12345X@PJL\n" + THREE)) == [RED, BLUE, LIME]

    async def test_the_temporary_file_lives_as_long_as_the_document(self, files: OpenFiles) -> None:
        opened = await files.open(THREE)
        (file,) = files.workers.pdfs
        assert os.pread(file.fileno(), len(THREE) + 1, 0) == THREE
        await opened.close()
        assert file.closed

    @pytest.mark.slow
    async def test_timeout(self, limits: IntakeLimits, threads: ThreadPoolExecutor) -> None:
        own = Workers(count=1, timeout_s=1.5, memory_bytes=2 << 30)
        opened = await Opener(limits, threads, own, budget()).open(Source(pdfs.endless()))
        error = await failure(opened, 0)
        assert error.code == "pdf_timeout"
        assert "1.5 s" in error.message
        await opened.close()
        await own.close()


class TestSelection:
    @pytest.mark.parametrize("data", [THREE, saved(*plain("red", "blue", "lime"))], ids=["pdf", "tiff"])
    async def test_the_page_limit_applies_to_the_selected_pages(self, data: bytes, files: OpenFiles) -> None:
        assert (await files.open(data, "2-3", max_pages=2)).page_count == 2
        for pages, about in ((None, "file"), ("1-", "pages")):
            error = await files.refusal(data, pages, max_pages=2)
            assert (type(error), error.code, error.about) == (SourceError, "too_many_pages", about)
            assert "the limit is 2" in error.message

    @pytest.mark.parametrize(
        ("data", "pages"), [(THREE, 3), (saved(*plain("red", "blue")), 2), (saved(*plain("red"), format="PNG"), 1)]
    )
    async def test_a_page_that_does_not_exist(self, data: bytes, pages: int, files: OpenFiles) -> None:
        error = await files.refusal(data, "1-4")
        assert (type(error), error.code, error.about) == (SourceError, "invalid_pages", "pages")
        assert error.message.startswith(f"Page 4 does not exist: the document has {pages} page")


class TestPictures:
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
    async def test_a_picture_has_one_page(self, format: str, files: OpenFiles) -> None:
        data = saved(*plain("red"), format=format)
        opened = await files.open(data, "1")
        assert (opened.page_count, list(opened.indices), opened.is_document) == (1, [0], False)
        assert opened.size_bytes == len(data)
        for _ in range(2):
            page = await opened.page(0)
            assert (page.image.mode, page.image.size, page.dpi) == ("RGB", (20, 10), None)
            assert page.image.getpixel((5, 5)) == pytest.approx(RED, abs=2)

    async def test_a_damaged_picture_is_refused_when_it_is_opened(self, files: OpenFiles) -> None:
        for format in ("PNG", "TIFF"):
            data = saved(Image.effect_noise((90, 90), 90), format=format)
            assert (await files.refusal(data[: len(data) // 2])).code == "image_parse_error"

    async def test_a_picture_is_decoded_once_and_released_when_its_page_is_read(self, files: OpenFiles) -> None:
        opened = await files.open(saved(*plain("red"), format="PNG"))
        page = await opened.page(0)
        assert files.workers.decoded == 1
        released = weakref.ref(page)
        del page
        async with asyncio.timeout(10):
            while released() is not None:  # noqa: ASYNC110  # the event loop may still refer to the last result
                await asyncio.sleep(0.001)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["picture", "tiff", "pdf"])
    async def test_what_pages_take_of_the_budget(self, files: OpenFiles, kind: str) -> None:
        """Memory is reserved for decoding, then for a kept picture, then for the page, and given back in the end."""
        data = {"picture": saved(*plain("red")), "tiff": saved(*plain("red", "blue")), "pdf": THREE}[kind]
        opened = await files.open(data, dpi=72)
        pixels = 612 * 792 if kind == "pdf" else 20 * 10
        assert files.memory.total == (3 * pixels if kind == "picture" else 0)
        page = await opened.page(0)
        assert files.memory.used[Use.PIXELS] == pixels * (3 if kind == "picture" else DECODING_BYTES)
        assert files.memory.used[Use.SOURCES] == 0
        page.close()
        assert files.memory.total == 0
        page = await opened.page(0)  # decoded again
        assert files.memory.total == pixels * DECODING_BYTES
        page.close()
        await opened.close()
        assert files.memory.total == 0

    async def test_a_kept_picture_is_given_back_when_it_is_closed_unread(self, files: OpenFiles) -> None:
        await (await files.open(saved(*plain("red")))).close()
        assert files.memory.total == 0
        assert files.memory.peak == 20 * 10 * (DECODING_BYTES + 3)

    async def test_pages_wait_for_memory_and_a_picture_that_cannot_be_kept_is_decoded_again(
        self, files: OpenFiles
    ) -> None:
        files.memory = MemoryBudget(5_000)
        with files.memory.reserve(Use.SOURCES, 3_000):
            opened = await files.open(saved(*plain("red")))
            first = await opened.page(0)
            second = asyncio.create_task(opened.page(0))
            await asyncio.sleep(0.3)
            assert not second.done()
            first.close()
            (await asyncio.wait_for(second, 10)).close()

    async def test_a_failed_page_gives_its_memory_back(self, files: OpenFiles) -> None:
        data = saved(Image.effect_noise((300, 300), 50), format="PNG")
        await files.refusal(data[: len(data) // 2])
        assert files.memory.total == 0
        assert files.memory.peak > 0

    async def test_a_large_picture_is_not_kept_until_its_page_is_read(self, files: OpenFiles) -> None:
        """It is decoded when it is opened, to find out whether it is damaged, and again for its page."""
        for extra, decoded in ((0, 1), (1, 2)):
            files.workers.calls.clear()
            picture = saved(*plain("red", size=(1000, KEPT_PIXELS // 1000 + extra)), format="PNG")
            opened = await files.open(picture, max_image_pixels=2 * KEPT_PIXELS)
            assert await colours(opened) == [RED]
            assert files.workers.decoded == decoded

    async def test_refusals(self, files: OpenFiles) -> None:
        assert (await files.refusal(b"")).code == "empty_image_file"
        assert (await files.refusal(b"hello")).code == "invalid_image_format"
        assert isinstance(await files.refusal(THREE, max_image_bytes=len(THREE) - 1), SourceTooLarge)
        assert isinstance(await files.refusal(saved(*plain("red")), max_image_pixels=199), SourceTooLarge)


class TestTiff:
    async def test_several_pages(self, files: OpenFiles) -> None:
        opened = await files.open(saved(*plain("red", "blue", "lime"), compression="tiff_lzw"))
        assert (opened.page_count, opened.is_document) == (3, True)
        assert await colours(opened) == [RED, BLUE, LIME]
        assert (await opened.page(1)).dpi is None

    async def test_selected_pages_come_in_the_order_of_the_selection(self, files: OpenFiles) -> None:
        assert await colours(await files.open(saved(*plain("red", "blue", "lime")), "3,1")) == [LIME, RED]

    async def test_a_single_selected_page_is_still_of_a_document(self, files: OpenFiles) -> None:
        opened = await files.open(saved(*plain("red", "blue")), "2")
        assert opened.is_document
        assert await colours(opened) == [BLUE]

    async def test_pages_can_be_read_concurrently(self, files: OpenFiles) -> None:
        opened = await files.open(saved(*plain("red", "blue", "lime"), compression="tiff_lzw"))
        pages = await asyncio.gather(*(opened.page(number) for number in (2, 1, 0) * 5))
        assert [page.image.getpixel((5, 5)) for page in pages] == [LIME, BLUE, RED] * 5

    async def test_a_damaged_page_leaves_the_others_readable(self, files: OpenFiles) -> None:
        data = saved(*plain("red", "blue", "lime"), compression="tiff_adobe_deflate")
        with Image.open(io.BytesIO(data)) as image:
            image.seek(1)
            (place,) = image.tag_v2[273]  # type: ignore[attr-defined]
        opened = await files.open(data[:place] + b"????" + data[place + 4 :])
        for _ in range(2):
            assert (await failure(opened, 1)).code == "image_parse_error"
        assert (await opened.page(0)).image.getpixel((5, 5)) == RED
        assert (await opened.page(2)).image.getpixel((5, 5)) == LIME

    async def test_the_size_of_every_selected_page_is_checked_when_it_is_opened(self, files: OpenFiles) -> None:
        data = saved(*plain("red"), *plain("blue", size=(40, 10)))
        error = await files.refusal(data, max_image_pixels=399)
        assert isinstance(error, SourceTooLarge)
        assert "40 x 10" in error.message
        assert (await files.open(data, "1", max_image_pixels=399)).page_count == 1

    async def test_a_closed_document_releases_the_file(self, files: OpenFiles) -> None:
        data = saved(*plain("red", "blue"))
        before = sys.getrefcount(data)
        opened = await files.open(data)
        assert sys.getrefcount(data) > before
        await opened.close()
        assert sys.getrefcount(data) == before
