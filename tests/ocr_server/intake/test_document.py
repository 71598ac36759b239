"""Whatever is sent, opened: its pages one by one, and errors that name what is wrong with what."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import io
import os
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ocr_server.errors import ApiError, SourceError, SourceTooLarge
from ocr_server.intake import document
from ocr_server.intake.document import DEFAULT_DPI, Document, Opener
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.page_selection import parse_pages
from ocr_server.intake.pdf import PdfFile, PdfRenderer
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.workers import Workers
from tests.ocr_server.intake import pdfs
from tests.ocr_server.intake.pdfs import filled, pdf

RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


class Renderer(PdfRenderer):
    """Remembers what it was asked for."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(workers)
        self.rendered: list[int] = []
        self.files: list[str] = []

    async def inspect(self, file: PdfFile) -> Any:
        self.files.append(file.path)
        return await super().inspect(file)

    async def render(self, file: PdfFile, index: int, dpi: float, max_pixels: int) -> SourcePage:
        self.rendered.append(index)
        return await super().render(file, index, dpi, max_pixels)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """One process, which the tests of this module share."""
    workers = Workers(count=1, timeout_s=20, memory_bytes=2 << 30)
    yield workers
    asyncio.run(workers.close())


@pytest.fixture
def renderer(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Renderer]:
    renderer = Renderer(workers)
    monkeypatch.setattr(document, "PdfRenderer", lambda _: renderer)
    yield renderer
    if any(map(os.path.exists, renderer.files)):
        gc.collect()  # an exception's frames may hold a document
    assert not any(map(os.path.exists, renderer.files))


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def limits(limits: IntakeLimits) -> IntakeLimits:
    return dataclasses.replace(limits, max_image_pixels=3_000_000)


@dataclasses.dataclass
class Desk:
    """Opens things as a request would, and closes them at the end."""

    limits: IntakeLimits
    threads: ThreadPoolExecutor
    workers: Workers
    renderer: Renderer
    opened: list[Document] = dataclasses.field(default_factory=list)

    async def open(
        self,
        data: bytes,
        pages: str | None = None,
        password: str | None = None,
        dpi: float = DEFAULT_DPI,
        **limits: int,
    ) -> Document:
        opener = Opener(dataclasses.replace(self.limits, **limits), self.threads, self.workers)
        selection = None if pages is None else parse_pages(pages, first=1)
        self.opened.append(
            await opener.open(data, pages=selection, dpi=dpi, password=password, param="file", pages_param="pages")
        )
        return self.opened[-1]

    async def refusal(self, data: bytes, *args: Any, **options: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.open(data, *args, **options)
        return caught.value


@pytest.fixture
async def desk(
    limits: IntakeLimits, threads: ThreadPoolExecutor, workers: Workers, renderer: Renderer
) -> AsyncIterator[Desk]:
    desk = Desk(limits, threads, workers, renderer)
    yield desk
    for opened in desk.opened:
        await opened.close()


async def colours(opened: Document) -> list[Any]:
    return [(await opened.page(number)).image.getpixel((5, 5)) for number in range(opened.page_count)]


async def failure(opened: Document, number: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await opened.page(number)
    assert caught.value.param == "file"
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
    async def test_all_pages(self, desk: Desk) -> None:
        opened = await desk.open(THREE)
        assert (opened.page_count, list(opened.indices), opened.is_document) == (3, [0, 1, 2], True)
        assert opened.size_bytes == len(THREE)
        assert await colours(opened) == [RED, BLUE, LIME]
        page = await opened.page(0)
        assert (page.image.mode, page.image.size, page.dpi) == ("RGB", (1224, 1584), 144)

    async def test_one_page_is_a_document_too(self, desk: Desk) -> None:
        opened = await desk.open(pdf(filled(1, 0, 0)))
        assert (opened.page_count, opened.is_document) == (1, True)

    async def test_some_pages_in_the_order_asked_for(self, desk: Desk) -> None:
        opened = await desk.open(THREE, "3,1")
        assert list(opened.indices) == [2, 0]
        assert await colours(opened) == [LIME, RED]

    async def test_resolution(self, desk: Desk) -> None:
        assert (await (await desk.open(THREE, dpi=36)).page(0)).image.size == (306, 396)
        page = await (await desk.open(THREE, dpi=600)).page(0)
        assert 2_990_000 < page.image.width * page.image.height <= 3_000_000
        assert page.dpi == pytest.approx(179.1, abs=0.1)

    async def test_of_many_pages_only_those_taken_are_rendered(self, desk: Desk) -> None:
        many = pdf(*(filled(index / 300, 0, 0) for index in range(300)), size=(50, 50))
        opened = await desk.open(many, max_pages=300)
        assert opened.page_count == 300
        assert desk.renderer.rendered == []
        page = await opened.page(255)
        assert page.image.getpixel((5, 5)) == pytest.approx((217, 0, 0), abs=1)
        assert desk.renderer.rendered == [255]

    async def test_a_page_that_fails_is_lost_alone(self, desk: Desk) -> None:
        giant = THREE.replace(b"0 0 612.000000 792.000000", b"0 0 1000000.00 1000000.00", 1)
        missing = giant.replace(b"/Kids[3 0 R 5 0 R 7 0 R]", b"/Kids[3 0 R 99 0 R 7 0 R]")
        opened = await desk.open(missing)
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
    async def test_what_can_not_be_opened(self, data: bytes, password: str | None, code: str, desk: Desk) -> None:
        error = await desk.refusal(data, password=password)
        assert (type(error), error.code, error.param) == (SourceError, code, "file")
        assert error.message.startswith("The PDF ")

    async def test_with_its_password(self, desk: Desk) -> None:
        assert await colours(await desk.open(pdfs.encrypted(filled(1, 0, 0), "secret"), password="secret")) == [RED]

    async def test_a_pdf_behind_something_else(self, desk: Desk) -> None:
        assert await colours(await desk.open(b"\x1b%-12345X@PJL\n" + THREE)) == [RED, BLUE, LIME]

    async def test_the_temporary_file_lives_as_long_as_the_document(self, desk: Desk) -> None:
        opened = await desk.open(THREE)
        (path,) = map(Path, desk.renderer.files)
        assert path.read_bytes() == THREE
        await opened.close()
        assert not path.exists()
        forgotten = await desk.open(THREE)
        path = Path(desk.renderer.files[-1])
        assert path.exists()
        desk.opened.remove(forgotten)
        del forgotten
        gc.collect()
        assert not path.exists()

    async def test_time_out(self, limits: IntakeLimits, threads: ThreadPoolExecutor) -> None:
        own = Workers(count=1, timeout_s=0.5, memory_bytes=2 << 30)
        opened = await Opener(limits, threads, own).open(
            pdfs.endless(), pages=None, dpi=144, password=None, param="file", pages_param="pages"
        )
        error = await failure(opened, 0)
        assert (error.code, "0.5 s" in error.message) == ("pdf_timeout", True)
        await opened.close()
        await own.close()


class TestSelection:
    @pytest.mark.parametrize("data", [THREE, saved(*plain("red", "blue", "lime"))], ids=["pdf", "tiff"])
    async def test_what_counts_are_the_pages_selected(self, data: bytes, desk: Desk) -> None:
        assert (await desk.open(data, "2-3", max_pages=2)).page_count == 2
        for pages, param in ((None, "file"), ("1-", "pages")):
            error = await desk.refusal(data, pages, max_pages=2)
            assert (type(error), error.code, error.param) == (SourceError, "too_many_pages", param)
            assert "the limit is 2" in error.message

    @pytest.mark.parametrize(
        ("data", "pages"), [(THREE, 3), (saved(*plain("red", "blue")), 2), (saved(*plain("red"), format="PNG"), 1)]
    )
    async def test_a_page_that_does_not_exist(self, data: bytes, pages: int, desk: Desk) -> None:
        error = await desk.refusal(data, "1-4")
        assert (type(error), error.code, error.param) == (SourceError, "invalid_pages", "pages")
        assert error.message.startswith(f"Page 4 does not exist: the document has {pages} page")


class TestPictures:
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
    async def test_a_picture_has_one_page(self, format: str, desk: Desk) -> None:
        data = saved(*plain("red"), format=format)
        opened = await desk.open(data, "1")
        assert (opened.page_count, list(opened.indices), opened.is_document) == (1, [0], False)
        assert opened.size_bytes == len(data)
        for _ in range(2):
            page = await opened.page(0)
            assert (page.image.mode, page.image.size, page.dpi) == ("RGB", (20, 10), None)
            assert page.image.getpixel((5, 5)) == pytest.approx(RED, abs=2)

    async def test_a_broken_one_is_refused_at_once(self, desk: Desk) -> None:
        for format in ("PNG", "TIFF"):
            data = saved(Image.effect_noise((90, 90), 90), format=format)
            assert (await desk.refusal(data[: len(data) // 2])).code == "image_parse_error"

    async def test_it_is_let_go_when_it_is_taken(self, desk: Desk) -> None:
        opened = await desk.open(saved(*plain("red"), format="PNG"))
        page = await opened.page(0)
        kept = weakref.ref(page)
        del page
        await asyncio.sleep(0.01)  # until the loop has forgotten it too
        assert kept() is None

    async def test_a_large_one_is_not_kept_until_then(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(document, "KEPT_PIXELS", 199)
        opened = await desk.open(saved(*plain("red"), format="PNG"))
        assert not [each for each in gc.get_referents(opened.__dict__) if isinstance(each, SourcePage)]
        assert await colours(opened) == [RED]

    async def test_refusals(self, desk: Desk) -> None:
        assert (await desk.refusal(b"")).code == "empty_image_file"
        assert (await desk.refusal(b"hello")).code == "invalid_image_format"
        assert isinstance(await desk.refusal(THREE, max_image_bytes=len(THREE) - 1), SourceTooLarge)
        assert isinstance(await desk.refusal(saved(*plain("red")), max_image_pixels=199), SourceTooLarge)


class TestTiff:
    async def test_several_pages(self, desk: Desk) -> None:
        opened = await desk.open(saved(*plain("red", "blue", "lime"), compression="tiff_lzw"))
        assert (opened.page_count, opened.is_document) == (3, True)
        assert await colours(opened) == [RED, BLUE, LIME]
        assert (await opened.page(1)).dpi is None

    async def test_some_of_them(self, desk: Desk) -> None:
        assert await colours(await desk.open(saved(*plain("red", "blue", "lime")), "3,1")) == [LIME, RED]

    async def test_one_of_them_is_a_page_of_a_document(self, desk: Desk) -> None:
        opened = await desk.open(saved(*plain("red", "blue")), "2")
        assert opened.is_document
        assert await colours(opened) == [BLUE]

    async def test_several_at_a_time(self, desk: Desk) -> None:
        opened = await desk.open(saved(*plain("red", "blue", "lime"), compression="tiff_lzw"))
        pages = await asyncio.gather(*(opened.page(number) for number in (2, 1, 0) * 5))
        assert [page.image.getpixel((5, 5)) for page in pages] == [LIME, BLUE, RED] * 5

    async def test_a_damaged_page_is_lost_alone(self, desk: Desk) -> None:
        data = saved(*plain("red", "blue", "lime"), compression="tiff_adobe_deflate")
        with Image.open(io.BytesIO(data)) as image:
            image.seek(1)
            (place,) = image.tag_v2[273]  # type: ignore[attr-defined]
        opened = await desk.open(data[:place] + b"????" + data[place + 4 :])
        for _ in range(2):
            assert (await failure(opened, 1)).code == "image_parse_error"
        assert (await opened.page(0)).image.getpixel((5, 5)) == RED
        assert (await opened.page(2)).image.getpixel((5, 5)) == LIME

    async def test_the_size_of_every_selected_page_is_checked_at_once(self, desk: Desk) -> None:
        data = saved(*plain("red"), *plain("blue", size=(40, 10)))
        error = await desk.refusal(data, max_image_pixels=399)
        assert isinstance(error, SourceTooLarge)
        assert "40 x 10" in error.message
        assert (await desk.open(data, "1", max_image_pixels=399)).page_count == 1

    async def test_nothing_but_a_closed_document_is_left_at_the_end(self, desk: Desk) -> None:
        opened = await desk.open(saved(*plain("red", "blue")))
        await opened.close()
        assert not [each for each in gc.get_referents(opened.__dict__) if isinstance(each, bytes) and each]
