"""The fuzzing targets. Each function takes a case, and raises if the code misbehaves. `SEEDS` has the seed cases."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_address

import httpx

from ocr_server.intake import pdf_worker
from ocr_server.intake.decode import find_pages
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.picture_worker import decode_page
from ocr_server.output.blocks import blocks
from ocr_server.output.grounding import GroundingParser, Located, parse
from ocr_server.output.markdown import MarkdownStream, to_markdown
from ocr_server.output.tables import html_tables_to_markdown
from tests.ocr_server.intake import pdfs
from tests.ocr_server.intake.bad_files import good_files
from tests.ocr_server.intake.memory import room

LIMITS = IntakeLimits(
    max_image_bytes=1_000_000,
    max_image_pixels=1_000_000,
    max_pages=100,
    fetch_timeout_s=5.0,
    max_redirects=5,
    allow_private_urls=False,
    allowed_hosts=(),
    allow_urls=True,
)
PUBLIC = "93.184.216.34"


def picture(data: bytes) -> None:
    """Pages within the limits, or a SourceError about the file."""
    try:
        for page in find_pages(data)[:3]:
            image = decode_page(data, page, LIMITS)
            assert image.mode == "RGB"
            assert 0 < image.width * image.height <= LIMITS.max_image_pixels
    except SourceError as error:
        _check(error, (SourceError, SourceTooLarge))


def _check(error: SourceError, types: Sequence[type[SourceError]]) -> None:
    """The error is of one of these types, about the file, and its message shows nothing of the server's memory."""
    assert type(error) in types
    assert (error.about, error.source) == ("file", 0)
    assert "0x" not in error.message


def pdf(data: bytes) -> None:
    """A PDF has pages within the limits, or raises a PdfError."""
    file = os.memfd_create("case")
    try:
        os.pwrite(file, data, 0)
        pdf_worker.take(file)
        for index in range(min(pdf_worker.count_pages(None), 3)):
            _, (width, height, rows) = pdf_worker.render(None, index, 72, 500_000)
            assert 0 < width * height <= 500_000
            assert len(rows) == 3 * width * height
    except PdfError:
        pass
    finally:
        pdf_worker.forget()
        os.close(file)


def grounding(data: bytes) -> None:
    """The parts of an answer add up to it, and how it was split into pieces for streaming changes nothing."""
    size, answer = (data[0] if data else 1) % 17 + 1, data[1:].decode("utf-8", "replace")
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    whole = parse(answer)
    assert "".join(part.raw if isinstance(part, Located) else part for part in whole) == answer
    parser = GroundingParser()
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.close()
    assert [part for part in parts if isinstance(part, Located)] == [
        part for part in whole if isinstance(part, Located)
    ]
    assert "".join(part.raw if isinstance(part, Located) else part for part in parts) == answer
    for table_format in ("html", "markdown"):
        stream = MarkdownStream(name="figure-{}".format, table_format=table_format)
        streamed = "".join([stream.feed(piece) for piece in pieces]) + stream.close()
        names = [f"figure-{number}" for number in range(1, answer.count("[") + 2)]
        assert streamed == to_markdown(answer, figures=names, table_format=table_format)
    html_tables_to_markdown(answer)
    for block in blocks(answer, 700, 900):
        assert 0 <= block.start <= block.end <= len(answer)


class _RedirectingInternet(httpx.AsyncBaseTransport):
    """Checks that every request goes to a public address. Responds with the given redirects, then with a file."""

    def __init__(self, targets: list[str]) -> None:
        self._targets = targets

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        address = ip_address(request.url.host)
        assert not isinstance(address, IPv6Address) or address.ipv4_mapped is None or address.ipv4_mapped.is_global
        assert address.is_global, address
        assert request.url.scheme in ("http", "https")
        assert "authorization" not in request.headers
        if not self._targets:
            return httpx.Response(200, stream=httpx.ByteStream(b"picture"))
        headers = [(b"Location", self._targets.pop(0).encode("utf-8", "replace"))]
        return httpx.Response(302, headers=headers, stream=httpx.ByteStream(b""))


async def _resolve(host: str, port: int) -> Sequence[str]:
    """Resolve numeric addresses as the C library does, in all their spellings; every other name is public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return ["127.0.0.1"] if "local" in host else [PUBLIC]
    return [str(place[0]) for *_, place in found]


_loop = asyncio.new_event_loop()


def url(data: bytes) -> None:
    """A URL and its redirect targets, one a line: no request goes to an address that is not public."""
    first, *targets = data.decode("utf-8", "replace").split("\n")

    async def fetch() -> None:
        fetcher = Fetcher(LIMITS, resolve=_resolve, transport=lambda: _RedirectingInternet(targets))
        try:
            assert await fetcher.fetch(first, room()) == b"picture"
        except SourceError as error:
            _check(error, (SourceError,))

    _loop.run_until_complete(fetch())


def _answers() -> list[bytes]:
    box = "<|ref|>%s<|/ref|><|det|>[[1, 2, 30.5, -4], [5,6,7,8]]<|/det|>\n"
    table = "<table><tr><td rowspan='2'>a<b</td><td>|</td></tr><tr><th colspan=3>c</th></tr></table>"
    texts = [box % "title" + "# Title", box % "image" * 3, box % "table" + table, table * 2, box % "a word" + "tail"]
    texts += ["<|ref|>x<|/ref|> <|det|>[[1,2,3", "\\coloneqq \n\n\n\\eqqcolon", "<table><table></td>", ""]
    return [b"\x03" + text.encode() for text in texts]


def _urls() -> list[bytes]:
    hosts = "example.com 127.0.0.1 0x7f.1 2130706433 0177.0.0.1 [::1] [::ffff:127.0.0.1] [64:ff9b::7f00:1] localhost."
    hosts += " a:b@example.com example.com@127.0.0.1 169.254.169.254 example.com:99999 [fe80::1%25eth0]"
    urls = [f"http://{host}/a.png" for host in hosts.split()]
    return [
        each.encode() for each in [*urls, *(f"https://example.com/\n{each}" for each in urls), "https://a/\n//b\n/c"]
    ]


def _pdfs() -> list[bytes]:
    inner = [pdfs.CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 50 60]>>"]
    seeds = [pdfs.pdf(pdfs.text("Hello")), pdfs.pdf(pdfs.filled(1, 0, 0), b"", size=(90, 90)), pdfs.NO_PAGES]
    return [*seeds, pdfs.pdf_of(inner), pdfs.encrypted(pdfs.filled(1, 0, 0), ""), pdfs.encrypted(b"", "secret")]


SEEDS: dict[str, Callable[[], Sequence[bytes]]] = {
    "grounding": _answers,
    "pdf": _pdfs,
    "picture": lambda: [data for data in good_files().values() if len(data) <= 8192],
    "url": _urls,
}
