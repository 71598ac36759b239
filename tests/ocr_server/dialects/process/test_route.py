"""`PUT /process`: what Open WebUI's external document loader sends and expects."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from config import Settings
from ocr_server.errors import EngineFailure
from tests.ocr_server.conftest import WHITE, FakeEngine, error_of, fails, says
from tests.ocr_server.dialects.ocr.requests import pdf

PNG = base64.b64decode(WHITE.partition(",")[2])
HEADERS = {"content-type": "application/pdf", "authorization": "Bearer ", "x-filename": "M%C3%BCller%20%231.pdf"}


@pytest.mark.parametrize("path", ["/process", "/v1/process"])
async def test_a_document(client: httpx.AsyncClient, engine: FakeEngine, settings: Settings, path: str) -> None:
    engine.script = says(
        "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n# Report<table><tr><td>a</td></tr></table>"
    )
    response = await client.put(path, content=pdf(2), headers=HEADERS)
    pages: list[Any] = response.json()
    assert [page["metadata"]["page_label"] for page in pages] == ["1", "2"]
    first = pages[0]
    assert first["page_content"] == "# Report\n\n| a |\n| --- |"
    assert first["metadata"] == {
        "source": "Müller #1.pdf",
        "page": 0,
        "page_label": "1",
        "total_pages": 2,
        "finish_reason": "stop",
    }
    assert {page.prompt for page in engine.pages} == {settings.DEFAULT_PROMPT}


async def test_a_picture_without_headers(client: httpx.AsyncClient) -> None:
    response = await client.put("/process", content=PNG)
    assert [page["page_content"] for page in response.json()] == ["Hello"]


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "empty_image_file"), (b"hello", "invalid_image_format"), (b"%PDF-1.4", "pdf_damaged")]
)
async def test_what_cannot_be_read(client: httpx.AsyncClient, data: bytes, code: str) -> None:
    error = error_of(await client.put("/process", content=data, headers=HEADERS), 400)
    assert (error["code"], error["param"]) == (code, "body")


async def test_an_error_of_all_pages_is_that_of_the_response(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = fails(EngineFailure("The engine failed on this page."))
    error = error_of(await client.put("/process", content=pdf(2)), 500)
    assert error["message"] == "The engine failed on this page."


async def test_an_error_of_one_page_is_in_its_metadata(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    good, bad = says("Hello"), fails(EngineFailure("The engine failed on this page."))
    engine.script = lambda number, page: (bad if number == 0 else good)(number, page)
    pages = (await client.put("/process", content=pdf(2))).json()
    assert sorted(page["page_content"] for page in pages) == ["", "Hello"]
    assert sorted(page["metadata"].get("error", "") for page in pages) == ["", "The engine failed on this page."]


async def test_a_web_page_of_another_site_cannot_use_it(client: httpx.AsyncClient) -> None:
    response = await client.put("/process", content=PNG, headers={"origin": "https://example.org"})
    assert error_of(response, 403)["code"] == "origin_not_allowed"
