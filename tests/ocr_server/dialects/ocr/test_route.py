"""`POST /v1/ocr`: JSON and forms, errors, files instead of JSON, streams, the queue."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import pypdfium2
import pytest
from fastapi import FastAPI
from PIL import Image, ImageChops

from config import EMBEDDED_CHECKPOINT, Settings
from deepseek_ocr.modes import MODES
from ocr_server.output.formats import FILE_FORMATS, FORMATS
from ocr_server.runtime import LOADED_AHEAD
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, error_of, events, never, says, until
from tests.ocr_server.dialects.ocr.requests import HEIGHT, OCR, WIDTH, body, pdf, uri

LOCATED = "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n# Report"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(LOCATED))


class TestJson:
    async def test_options_reach_the_engine(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        options = {"prompt": "Free OCR.", "mode": "tiny", "ngram_size": 20, "window_size": 50, "max_tokens": 7}
        assert (await client.post(OCR, json=body(**options))).status_code == 200
        (page,) = engine.pages
        assert (page.prompt, page.decoding.max_tokens, page.decoding.temperature) == ("Free OCR.", 7, 0.0)
        assert page.image.global_view.shape[0] == MODES["tiny"].base_size
        assert (page.decoding.guard.ngram_size, page.decoding.guard.window_size) == (20, 50)

    async def test_the_default_prompt_and_a_mode_by_name(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        response = await client.post(OCR, json=body() | {"model": "deepseek-ocr:small"})
        assert response.json()["model"] == "deepseek-ocr:small"
        assert engine.pages[0].prompt == "<|grounding|>Convert the document to markdown."
        assert engine.pages[0].image.global_view.shape[0] == MODES["small"].base_size

    @pytest.mark.parametrize(
        ("more", "status", "param"),
        [
            ({"pages": [7]}, 400, "pages"),
            ({"pages": "1-"}, 400, "pages"),
            ({"pages": "x"}, 400, "pages"),
            ({"dpi": 10}, 400, "dpi"),
            ({"dpi": "144"}, 400, "dpi"),
            ({"mode": "huge"}, 400, "mode"),
            ({"ngram_size": -1}, 400, "ngram_size"),
            ({"table_format": "latex"}, 400, "table_format"),
            ({"image_limit": -1}, 400, "image_limit"),
            ({"model": "gpt"}, 404, "model"),
            ({"document": {"type": "file", "file_id": "x"}}, 400, "document.file_id"),
            ({"document": {"type": "document_url"}}, 400, "document"),
            ({"document": {"document_url": "data:;base64,AAAA"}}, 400, "document.document_url"),
            ({"document": {"image_url": {"url": "/etc/passwd"}}}, 400, "document.image_url.url"),
            ({"document": None}, 400, "document"),
            ({"document_annotation_format": {"type": "json_schema"}}, 400, "document_annotation_format"),
            ({"bbox_annotation_format": {"type": "json_schema"}}, 400, "bbox_annotation_format"),
            ({"stream": True, "output": "markdown"}, 400, "output"),
            ({"output": "blocks"}, 400, "output"),
            ({"output": "docx"}, 400, "output"),
            ({"temperature": 1}, 400, "temperature"),
        ],
    )
    async def test_what_cannot_be_honoured_is_refused_by_name(
        self, client: httpx.AsyncClient, engine: FakeEngine, more: dict[str, Any], status: int, param: str
    ) -> None:
        error = error_of(await client.post(OCR, json=body() | more), status)
        assert error["param"] == param, error
        assert engine.pages == []


class TestUpload:
    async def test_a_form(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        form = {"pages": "1-2", "mode": "tiny", "include_blocks": "false", "dpi": "72", "prompt": "Free OCR."}
        response = await client.post(OCR, files={"file": ("invoice.pdf", pdf(3), "application/pdf")}, data=form)
        assert response.status_code == 200, response.text
        pages = response.json()["pages"]
        assert [page["index"] for page in pages] == [1, 2]
        assert pages[0]["blocks"] is None
        assert pages[0]["dimensions"]["dpi"] == 72
        assert {page.prompt for page in engine.pages} == {"Free OCR."}

    @pytest.mark.parametrize(
        ("form", "param"), [({"dpi": "many"}, "dpi"), ({"modes": "red"}, "modes"), ({"document": "{}"}, "document")]
    )
    async def test_invalid_fields(self, client: httpx.AsyncClient, form: dict[str, str], param: str) -> None:
        response = await client.post(OCR, files={"file": ("a.png", b"x")}, data=form)
        assert error_of(response, 400)["param"] == param

    @pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-16", "no-such-codec"])
    async def test_a_form_that_is_not_in_utf_8_is_refused_before_it_is_parsed(
        self, client: httpx.AsyncClient, charset: str
    ) -> None:
        """Python's punycode took minutes for a megabyte, and undefined raised an error of its own."""
        field = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * 100_000 + b"-b\r\n--b--\r\n"
        headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
        error = error_of(await client.post(OCR, content=field, headers=headers), 400)
        assert (error["param"], error["code"]) == ("content-type", "unsupported_charset")

    async def test_a_form_may_say_that_it_is_in_utf_8(self, client: httpx.AsyncClient) -> None:
        body = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
        headers = {"content-type": "multipart/form-data; boundary=b; charset=UTF-8"}
        assert error_of(await client.post(OCR, content=body, headers=headers), 400)["param"] == "file"

    async def test_no_file(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, files={"picture": ("a.png", b"x")})
        assert error_of(response, 400)["param"] == "file"

    @pytest.mark.parametrize(
        ("file", "form", "param"),
        [
            (b"", {}, "file"),
            (b"neither a PDF nor a picture", {}, "file"),
            (pdf(2), {"pages": "5"}, "pages"),
        ],
    )
    async def test_an_error_of_the_file_names_the_field(
        self, client: httpx.AsyncClient, engine: FakeEngine, file: bytes, form: dict[str, str], param: str
    ) -> None:
        response = await client.post(OCR, files={"file": ("invoice.pdf", file)}, data=form)
        assert error_of(response, 400)["param"] == param
        assert engine.pages == []

    async def test_the_size_in_the_response_is_that_of_the_file(self, client: httpx.AsyncClient) -> None:
        file = pdf(1)
        response = await client.post(OCR, files={"file": ("invoice.pdf", file)}, data={"dpi": "72"})
        assert response.json()["usage_info"]["doc_size_bytes"] == len(file)

    async def test_a_broken_form(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, content=b"nonsense", headers={"content-type": "multipart/form-data"})
        error_of(response, 400)


class TestOutputs:
    async def test_markdown(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = says("page")
        response = await client.post(OCR, json={"document": {"document_url": uri(pdf(2))}, "output": "markdown"})
        assert response.headers["content-type"].startswith("text/markdown")
        assert response.text == "page\n\n<--- Page Split --->\n\npage"

    async def test_raw(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, json={"document": {"document_url": uri(pdf(2))}, "output": "raw"})
        assert response.headers["content-type"].startswith("text/plain")
        assert response.text == f"{LOCATED}\n\n<--- Page Split --->\n\n{LOCATED}"

    @pytest.mark.parametrize("output", FILE_FORMATS)
    async def test_every_file_format_has_its_media_type(self, client: httpx.AsyncClient, output: str) -> None:
        response = await client.post(OCR, json={"document": {"document_url": uri(pdf(1))}, "output": output})
        assert response.headers["content-type"].partition(";")[0] == FORMATS[output].media_type

    async def test_an_unknown_output_is_refused_with_the_known_names(self, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(OCR, json=body(output="docx")), 400)
        assert error["param"] == "output"
        assert ", ".join(("json", *FILE_FORMATS)) in error["message"]

    async def test_overlay_of_a_picture(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, json=body(output="overlay"))
        assert response.headers["content-type"] == "image/png"
        overlay = Image.open(io.BytesIO(response.content)).convert("RGB")
        assert overlay.size == (WIDTH, HEIGHT)
        white = Image.new("RGB", (WIDTH, HEIGHT), "white")
        assert ImageChops.difference(overlay, white).getbbox() is not None, "nothing is drawn"

    async def test_overlay_of_a_document(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, json={"document": {"document_url": uri(pdf(3))}, "output": "overlay"})
        assert response.headers["content-type"] == "application/pdf"
        document = pypdfium2.PdfDocument(response.content)
        assert [document[index].get_size() for index in range(len(document))] == [pytest.approx((200, 100), abs=1)] * 3

    async def test_a_stream_has_an_event_for_each_page(self, client: httpx.AsyncClient) -> None:
        request = {"document": {"document_url": uri(pdf(3))}, "dpi": 72, "stream": True}
        whole = (await client.post(OCR, json=request | {"stream": False})).json()
        *pages, done, end = events((await client.post(OCR, json=request)).text)
        assert [(event["object"], event["done"], event["total"]) for event in pages] == [
            ("ocr.page", number, 3) for number in (1, 2, 3)
        ]
        assert [event["page"] for event in pages] == whole["pages"]
        assert done == {"object": "ocr.done", "model": "deepseek-ocr", "usage_info": whole["usage_info"]}
        assert end == "[DONE]"


class TestQueue:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(MODEL_PATH=str(EMBEDDED_CHECKPOINT), MAX_CONCURRENCY=1, MAX_WAITING_PAGES=1, ALLOW_URLS=False)

    async def test_a_full_queue_refuses_requests_before_they_are_opened(
        self, app: FastAPI, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.script = never
        long = asyncio.create_task(client.post(OCR, json={"document": {"document_url": uri(pdf(40))}, "dpi": 36}))
        admission = app.state.runtime.admission
        await until(lambda: admission.pages_in_flight == LOADED_AHEAD + 1)
        assert admission.pages_waiting == 40 - LOADED_AHEAD - 1
        for path, request in ((OCR, body("data:;base64,AAAA")), (CHAT, chat())):
            refused = await client.post(path, json=request)
            error = error_of(refused, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert int(refused.headers["retry-after"]) >= 1
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        await until(lambda: (admission.pages_in_flight, admission.pages_waiting) == (0, 0))
        engine.script = says("x")
        assert (await client.post(OCR, json=body())).status_code == 200


async def test_the_route_is_documented(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert {"OcrRequest", "OcrPageEvent", "OcrResponse"} <= set(schema["components"]["schemas"])
    assert set(schema["paths"]["/v1/ocr"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
    success = schema["paths"]["/v1/ocr"]["post"]["responses"]["200"]["content"]
    assert set(success) == {
        "application/json",
        "text/event-stream",
        "text/plain",
        "text/markdown",
        "application/pdf",
        "image/png",
    }
