"""The requests in an input file: the pages of a PDF, and the pictures in a zip."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import Settings
from ocr_server.batches.documents import PdfRequests, ZipRequests
from ocr_server.batches.requests import Item, Requests
from ocr_server.batches.storage import Storage
from ocr_server.dialects.registry import DIALECTS
from ocr_server.errors import InvalidRequest
from ocr_server.intake.document import Document
from ocr_server.intake.errors import SourceError
from ocr_server.intake.source import Source
from ocr_server.intake.source_page import SourcePage
from tests.ocr_server.batches.test_documents import zipped

BODY = b'{"model": "deepseek-ocr"}'
LIMITS = {"max_requests": 3, "max_member_bytes": 1000, "max_bytes": 100_000}


class ThreePages(Document):
    """An open PDF of which the pages 1, 3 and 4 are selected. The width of a page is its position plus one."""

    def __init__(self) -> None:
        super().__init__([0, 2, 3], 100, is_document=True)
        self.closes = 0

    async def page(self, number: int) -> SourcePage:
        assert not self.closes, "it is open while its pages are read"
        return SourcePage(np.zeros((1, number + 1, 3), np.uint8), 72)

    async def close(self) -> None:
        self.closes += 1


class FakeIntake:
    """Opens every source as the same document, or raises an error."""

    def __init__(self, document: Document, error: SourceError | None = None) -> None:
        self.document = document
        self.error = error
        self.opened: list[Source] = []

    async def open(self, sources: Sequence[Source]) -> list[Document]:
        self.opened += sources
        if self.error is not None:
            raise self.error
        return [self.document]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    storage.write("file-pdf", [b"%PDF-", b"1.7"])
    return storage


def pdf_requests(storage: Storage, intake: Any, settings: Settings, *, max_requests: int = 10) -> PdfRequests:
    def plan(file: bytes) -> Any:
        return DIALECTS["/v1/ocr"].understand(BODY, settings, file)[1]

    return PdfRequests(storage, "file-pdf", intake, BODY, plan, max_requests=max_requests, max_bytes=1000)


async def items(requests: Requests, done: Collection[int] = ()) -> list[Item]:
    return [item async for item in requests.items(done)]


async def width(item: Item) -> int:
    """The width of a request's only page, which is read and closed as an endpoint does it."""
    assert item.content is not None
    document = await item.content()
    assert isinstance(document, Document)
    assert document.page_count == 1
    page = await document.page(0)
    await document.close()
    return page.size[0]


class TestPdf:
    async def test_the_pages_are_read_from_one_open_document(self, storage: Storage, settings: Settings) -> None:
        document = ThreePages()
        intake = FakeIntake(document)
        requests = pdf_requests(storage, intake, settings)
        checked = await requests.check()
        assert (checked.total, checked.errors) == (3, [])
        found = await items(requests)
        assert [(item.line, item.custom_id, item.body) for item in found] == [
            (1, "page-1", BODY),
            (3, "page-3", BODY),
            (4, "page-4", BODY),
        ]
        assert [await width(item) for item in reversed(found)] == [3, 2, 1]
        assert [source.content for source in intake.opened] == [b"%PDF-1.7"], "the file is opened once"
        assert document.closes == 0
        await requests.close()
        assert document.closes == 1

    async def test_pages_that_are_done_are_left_out(self, storage: Storage, settings: Settings) -> None:
        requests = pdf_requests(storage, FakeIntake(ThreePages()), settings)
        (item,) = await items(requests, done={1, 4})
        assert (item.custom_id, await width(item)) == ("page-3", 2)

    async def test_a_page_is_a_page_of_a_document(self, storage: Storage, settings: Settings) -> None:
        """So that its number in the PDF and its resolution are in the answer."""
        first, second, _ = await items(pdf_requests(storage, FakeIntake(ThreePages()), settings))
        for item, index in ((first, 0), (second, 2)):
            assert item.content is not None
            document = await item.content()
            assert isinstance(document, Document)
            assert (list(document.indices), document.is_document, document.size_bytes) == ([index], True, 100)

    async def test_a_pdf_that_cannot_be_opened_is_an_error_of_the_input(
        self, storage: Storage, settings: Settings
    ) -> None:
        broken = SourceError("The PDF is damaged.", code="pdf_damaged")
        checked = await pdf_requests(storage, FakeIntake(ThreePages(), broken), settings).check()
        assert checked.errors == [
            {"code": "pdf_damaged", "message": "The PDF is damaged.", "line": None, "param": "input_file_id"}
        ]

    async def test_too_many_pages(self, storage: Storage, settings: Settings) -> None:
        requests = pdf_requests(storage, FakeIntake(ThreePages()), settings, max_requests=2)
        assert [error["code"] for error in (await requests.check()).errors] == ["too_many_requests"]


class TestZip:
    async def test_the_content_of_a_request_is_its_file(self, storage: Storage) -> None:
        storage.write("file-zip", [zipped({"a.png": b"first", "b/": b"", "b/c.png": b"second"})])
        requests = ZipRequests(storage, "file-zip", BODY, **LIMITS)
        assert (await requests.check()).total == 2
        found = await items(requests)
        assert [(item.line, item.custom_id, item.body) for item in found] == [
            (1, "a.png", BODY),
            (2, "b/c.png", BODY),
        ]
        assert [await item.content() for item in found if item.content is not None] == [b"first", b"second"]
        assert [item.line for item in await items(requests, done={1})] == [2]
        await requests.close()

    async def test_a_damaged_file_fails_alone(self, storage: Storage) -> None:
        data = bytearray(zipped({"good": b"good" * 50, "bad": b"bad" * 50, "also good": b"fine" * 50}))
        data[data.index(b"bad") + len(b"bad") + 2] ^= 0xFF  # in its compressed bytes
        storage.write("file-zip", [bytes(data)])
        requests = ZipRequests(storage, "file-zip", BODY, **LIMITS)
        assert (await requests.check()).errors == []
        good, bad, also_good = [item.content for item in await items(requests)]
        assert good is not None
        assert bad is not None
        assert also_good is not None
        with pytest.raises(InvalidRequest) as caught:
            await bad()
        assert (caught.value.code, caught.value.param) == ("invalid_zip", "input_file_id")
        assert (await good(), await also_good()) == (b"good" * 50, b"fine" * 50)
        await requests.close()

    async def test_of_a_file_that_is_too_large_one_byte_more_than_the_limit_is_read(self, storage: Storage) -> None:
        """So that the intake refuses it by its size."""
        storage.write("file-zip", [zipped({"large": bytes(5000)})])
        requests = ZipRequests(storage, "file-zip", BODY, **LIMITS)
        (item,) = await items(requests)
        assert item.content is not None
        assert await item.content() == bytes(1001)
        await requests.close()
