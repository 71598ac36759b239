"""Documents that are derived from another one or were decoded elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from ocr_server.intake.document import Document, LoadedPage
from ocr_server.intake.errors import SourceError
from ocr_server.intake.source_page import SourcePage


class FakeDocument(Document):
    """A document whose page `number` is a picture of one colour, and whose last page is damaged."""

    def __init__(self, indices: list[int], *, is_document: bool = True) -> None:
        super().__init__(indices, 1234, is_document=is_document)
        self.closed = 0

    async def page(self, number: int) -> SourcePage:
        if number == self.page_count - 1:
            raise SourceError("The page is damaged.", code="pdf_page_failed")
        return source_page(self.indices[number])

    async def close(self) -> None:
        self.closed += 1


def source_page(value: int) -> SourcePage:
    return SourcePage(np.full((4, 6, 3), value, np.uint8), 144.0)


class TestSingle:
    async def test_it_reads_the_same_page(self) -> None:
        document = FakeDocument([4, 2, 7])
        single = document.single(1)
        assert (single.page_count, list(single.indices)) == (1, [2])
        assert single.size_bytes == document.size_bytes
        page = await single.page(0)
        assert (page.pixels == (await document.page(1)).pixels).all()
        assert page.dpi == 144.0

    async def test_closing_it_does_not_close_its_owner(self) -> None:
        document = FakeDocument([4, 2, 7])
        first, second = document.single(0), document.single(1)
        await first.close()
        await first.close()
        assert document.closed == 0
        assert (await second.page(0)).pixels[0, 0, 0] == 2

    async def test_its_error_is_that_of_the_page(self) -> None:
        with pytest.raises(SourceError) as caught:
            await FakeDocument([4, 2, 7]).single(2).page(0)
        assert caught.value.code == "pdf_page_failed"

    @pytest.mark.parametrize("is_document", [True, False])
    def test_it_is_a_page_of_a_document_if_its_owner_is_one(self, is_document: bool) -> None:
        assert FakeDocument([0, 1], is_document=is_document).single(0).is_document is is_document

    def test_a_page_that_is_not_selected(self) -> None:
        with pytest.raises(IndexError):
            FakeDocument([4, 2, 7]).single(3)


class TestLoadedPage:
    async def test_it_has_the_page_it_was_given(self) -> None:
        page = source_page(9)
        loaded = LoadedPage(page)
        assert (loaded.page_count, list(loaded.indices), loaded.is_document) == (1, [0], False)
        assert loaded.size_bytes == 4 * 6 * 3
        assert await loaded.page(0) is page

    async def test_it_can_be_read_after_close(self) -> None:
        page = source_page(9)
        loaded = LoadedPage(page)
        for _ in range(2):
            await loaded.close()
        assert await loaded.page(0) is page
