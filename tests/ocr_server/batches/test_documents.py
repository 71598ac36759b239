"""PDFs and zips of pictures as the input of batches, including malicious ones."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from config import ROOT
from ocr_server.batches import archive
from ocr_server.reading.page import Page, PageDelta
from tests.ocr_server.batches.conftest import Serve, Served, refusal
from tests.ocr_server.conftest import CHAT, FakeEngine, delta, picture, png

PDF = (ROOT / "examples" / "papers.pdf").read_bytes()
OCR = "/v1/ocr"


def picture_file(width: int = 8, height: int = 8) -> bytes:
    return base64.b64decode(png(width, height).split(",")[1])


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return made.getvalue()


async def repeats_the_options(_: int, page: Page) -> AsyncGenerator[PageDelta]:
    yield delta(f"{page.prompt} {page.decoding.max_tokens}", finish="stop")


async def made_of(served: Served, data: bytes, endpoint: str = OCR, **options: Any) -> Any:
    return await served.batch(data, endpoint=endpoint, extra_body={"request": options} if options else None)


async def test_every_page_of_a_pdf_is_a_request(serve: Serve) -> None:
    async with serve(FakeEngine(repeats_the_options)) as served:
        options = {"prompt": "Free OCR.", "mode": "tiny", "dpi": 72, "max_tokens": 9}
        done = await served.ended(await made_of(served, PDF, **options))
        lines = await served.lines(done.output_file_id)
        assert list(lines) == [f"page-{number}" for number in range(1, done.request_counts.total + 1)]
        assert len(lines) >= 3
        for number, line in enumerate(lines.values()):
            (page,) = line["response"]["body"]["pages"]
            assert (page["index"], page["markdown"], page["dimensions"]["dpi"]) == (number, "Free OCR. 9", 72)


async def test_pages_of_a_pdf_as_chat(serve: Serve) -> None:
    async with serve(FakeEngine(repeats_the_options)) as served:
        options = {"messages": [{"role": "user", "content": "Free OCR."}], "max_tokens": 9, "ocr": {"pages": "2-3"}}
        done = await served.ended(await made_of(served, PDF, CHAT, **options))
        lines = await served.lines(done.output_file_id)
        assert list(lines) == ["page-2", "page-3"]
        message = lines["page-3"]["response"]["body"]["choices"][0]["message"]
        assert (message["content"], message["ocr"]["pages"][0]["page"]) == ("Free OCR. 9", 3)


async def test_every_picture_of_a_zip_is_a_request(served: Served) -> None:
    files = {
        "scans/a.png": picture_file(20, 10),
        "scans/ü 2.png": picture_file(30, 10),
        "scans/": b"",
        "__MACOSX/scans/._a.png": b"x",
        ".DS_Store": b"x",
        "notes.txt": b"no picture",
    }
    done = await served.ended(await made_of(served, zipped(files), mode="tiny"))
    assert done.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    lines = await served.lines(done.output_file_id)
    widths = {name: line["response"]["body"]["pages"][0]["dimensions"]["width"] for name, line in lines.items()}
    assert widths == {"scans/a.png": 20, "scans/ü 2.png": 30}
    refused = (await served.lines(done.error_file_id))["notes.txt"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "input_file_id")


@pytest.mark.parametrize(
    ("endpoint", "options", "status", "param"),
    [
        (OCR, {"mode": "huge"}, 400, "request.mode"),
        (OCR, {"document": {"document_url": "http://a/b.png"}}, 400, "request.document"),
        (OCR, {"stream": True}, 400, "request.stream"),
        (OCR, {"output": "overlay"}, 400, "request.output"),
        (OCR, {"model": "gpt-4o"}, 404, "request.model"),
        (CHAT, {"temperature": 9}, 400, "request.temperature"),
        (CHAT, {"messages": [{"role": "user", "content": [picture()]}]}, 400, "request.messages"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "request.messages[0].content"),
    ],
)
async def test_invalid_options_are_refused_at_once(
    served: Served, endpoint: str, options: dict[str, Any], status: int, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await made_of(served, PDF, endpoint, **options)
    assert refusal(caught.value)[:2] == (status, param)


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        (b"%PDF-1.7\nnothing", {}, "pdf_damaged"),
        (PDF, {"pages": "7-900"}, "invalid_pages"),
        (b"PK\x03\x04 nothing", {}, "invalid_zip"),
        (zipped({}), {}, "empty_file"),
        (zipped({"../a.png": b"x"}), {}, "invalid_zip"),
        (zipped({"/a.png": b"x"}), {}, "invalid_zip"),
        (zipped({"..\\a.png": b"x"}), {}, "invalid_zip"),
        (zipped({"a\x07.png": b"x"}), {}, "invalid_zip"),
        (zipped({"a" * 600: b"x"}), {}, "invalid_zip"),
        (zipped({str(number): b"x" for number in range(6)}), {}, "too_many_requests"),
        (zipped({"a": bytes(11_000_000)}), {}, "invalid_zip"),
    ],
)
async def test_an_invalid_document_fails(serve: Serve, data: bytes, options: dict[str, Any], code: str) -> None:
    async with serve(MAX_BATCH_REQUESTS=5, MAX_FILE_MB=1) as served:
        done = await served.ended(await made_of(served, data, **options))
        assert (done.status, [error.code for error in done.errors.data]) == ("failed", [code])


async def test_files_that_cannot_be_read_are_errors_of_their_own(serve: Serve) -> None:
    data = bytearray(zipped({"good": picture_file(), "bad": picture_file(9, 9), "bomb": bytes(1_500_000)}))
    place = data.index(b"bad") + len(b"bad") + 4  # in its compressed bytes
    data[place] ^= 0xFF
    async with serve(MAX_IMAGE_MB=1) as served:
        done = await served.ended(await made_of(served, bytes(data), mode="tiny"))
        assert list(await served.lines(done.output_file_id)) == ["good"]
        errors = await served.lines(done.error_file_id)
        codes = {name: line["response"]["body"]["error"]["code"] for name, line in errors.items()}
        assert codes == {"bad": "invalid_zip", "bomb": "too_large"}


async def test_encryption_and_other_compression_methods_are_refused(served: Served) -> None:
    encrypted = bytearray(zipped({"a.png": picture_file()}))
    directory = encrypted.index(b"PK\x01\x02")
    encrypted[directory + 8] |= 1
    for data in (bytes(encrypted), zipped({"a.png": picture_file()}, zipfile.ZIP_LZMA)):
        done = await served.ended(await made_of(served, data))
        (line,) = (await served.lines(done.error_file_id)).values()
        assert line["response"]["body"]["error"]["code"] == "invalid_zip"


def test_a_long_directory_is_not_read() -> None:
    """The declared size of the directory is checked first. Here it is wrong, so that reading it would fail."""
    data = bytearray(zipped({"a": b"x"}))
    struct.pack_into("<I", data, data.rindex(b"PK\x05\x06") + 12, archive.MAX_DIRECTORY_BYTES + 1)
    with pytest.raises(archive.BadArchive, match="too many files"):
        archive.Archive(io.BytesIO(bytes(data)), max_bytes=1000)


def test_zip64_is_refused() -> None:
    data = zipped({"a": b"x"})
    end = data.rindex(b"PK\x05\x06")
    with pytest.raises(archive.BadArchive, match="zip64"):
        archive.Archive(io.BytesIO(data[:end] + b"PK\x06\x07" + bytes(16) + data[end:]), max_bytes=1000)


def test_no_more_of_a_file_is_read_than_its_declared_size_and_the_limit() -> None:
    data = bytearray(zipped({"a": bytes(100_000)}))
    read = archive.Archive(io.BytesIO(bytes(data)), max_bytes=200_000)
    assert len(read.read(read.members[0], 10)) == 11
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 24, 5)  # declares 5 bytes
    lying = archive.Archive(io.BytesIO(bytes(data)), max_bytes=100)
    with pytest.raises(archive.BadMember):
        lying.read(lying.members[0], 1_000_000)


async def test_the_kind_of_a_file_is_not_guessed_from_its_text(served: Served) -> None:
    file = await served.api.files.create(file=("a.jsonl", b'{"custom_id": "%PDF-"}'), purpose="batch")
    with pytest.raises(openai.BadRequestError) as caught:
        await served.api.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", extra_body={"request": {}}
        )
    assert refusal(caught.value)[:2] == (400, "request")
