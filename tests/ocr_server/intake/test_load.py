"""Data URIs are decoded, http(s) URLs are fetched; anything else is refused with a hint."""

from __future__ import annotations

import base64

import httpx
import pytest

from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.load import load
from tests.ocr_server.intake.memory import room


@pytest.fixture
def fetcher(limits: IntakeLimits) -> Fetcher:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    def answer(request: httpx.Request) -> httpx.Response:
        body = f"{request.url.scheme} {request.headers['Host']}".encode()
        return httpx.Response(200, stream=httpx.ByteStream(body))

    return Fetcher(limits, resolve=resolve, transport=lambda: httpx.MockTransport(answer))


@pytest.mark.parametrize("uri", ["data:image/png;base64,aGVsbG8=", "  DATA:;base64,aGVsbG8=\n"])
async def test_data_uris_are_decoded(uri: str, fetcher: Fetcher, limits: IntakeLimits) -> None:
    assert await load(uri, fetcher, limits, room()) == b"hello"


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS"])
async def test_http_urls_are_fetched(scheme: str, fetcher: Fetcher, limits: IntakeLimits) -> None:
    body = await load(f"{scheme}://pictures.example/a.png", fetcher, limits, room())
    assert body.decode() == f"{scheme.lower()} pictures.example"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://pictures.example/a.png",
        "gopher://127.0.0.1:6379/_",
        "C:\\scans\\a.png",
        "/etc/passwd",
        "../a.png",
        "pictures.example/a.png",
        "//pictures.example/a.png",
        "",
        "   ",
        base64.b64encode(bytes(range(256))).decode(),
    ],
)
async def test_anything_else_is_refused(url: str, fetcher: Fetcher, limits: IntakeLimits) -> None:
    with pytest.raises(SourceError) as caught:
        await load(url, fetcher, limits, room())
    assert caught.value.about == "file"
    assert "an http or https URL or a base64 data URI" in caught.value.message


async def test_bare_base64_gets_a_hint_and_is_not_echoed(fetcher: Fetcher, limits: IntakeLimits) -> None:
    with pytest.raises(SourceError) as caught:
        await load("/9j/4AAQSkZJRg" * 1000, fetcher, limits, room())
    assert "data:image/png;base64," in caught.value.message
    assert len(caught.value.message) < 300
