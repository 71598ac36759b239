"""`POST /v1/ocr`: Mistral's shape, uploads, streams and other outputs, over a played engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import psutil
import pypdfium2
import pytest
from fastapi import FastAPI
from PIL import Image

from config import EMBEDDED_CHECKPOINT, Settings
from deepseek_ocr.modes import MODES
from ocr_server.errors import EngineFailure
from ocr_server.reading.admission import LOADED_AHEAD
from ocr_server.reading.page import LogprobStep, Page, PageDelta, TokenLogprob
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, delta, error_of, events, never, png, says, until

OCR = "/v1/ocr"
WIDTH, HEIGHT = 400, 200
PICTURE = png(WIDTH, HEIGHT)


def mark(label: str, left: int, top: int, right: int, bottom: int) -> str:
    return f"<|ref|>{label}<|/ref|><|det|>[[{left}, {top}, {right}, {bottom}]]<|/det|>"


TABLE = "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"
ANSWER = "\n\n".join(
    [
        mark("header", 0, 0, 999, 50) + "\nACME Inc.",
        mark("title", 0, 100, 999, 200) + "\n# Report",
        mark("text", 0, 200, 999, 300) + "\nAll is well.",
        mark("table", 0, 300, 999, 500) + "\n" + TABLE,
        mark("image", 0, 500, 499, 999),
        mark("image", 500, 500, 519, 519),
        mark("footer", 0, 950, 999, 999) + "\npage 1",
    ]
)
FIGURE, SPECK = "page-1-figure-1.jpeg", "page-1-figure-2.jpeg"
MARKDOWN = "\n\n".join(
    [
        "ACME Inc.",
        "# Report",
        "All is well.",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        f"![{FIGURE}]({FIGURE})",
        f"![{SPECK}]({SPECK})",
        "page 1",
    ]
)


def body(url: str = PICTURE, **more: Any) -> dict[str, Any]:
    return {"model": "deepseek-ocr", "document": {"type": "image_url", "image_url": url}, **more}


def pdf(pages: int, size: tuple[int, int] = (200, 100)) -> bytes:
    """Blank pages, `size` in points."""
    document, file = pypdfium2.PdfDocument.new(), io.BytesIO()
    for _ in range(pages):
        document.new_page(*size)
    document.save(file)
    return file.getvalue()


def uri(data: bytes) -> str:
    return f"data:application/pdf;base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(ANSWER))


async def read(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await client.post(OCR, json=body(**more))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


class TestResponse:
    async def test_all_of_it(self, client: httpx.AsyncClient) -> None:
        got = await read(client)
        assert got["model"] == "deepseek-ocr"
        assert got["document_annotation"] is None
        assert got["usage_info"] == {
            "pages_processed": 1,
            "doc_size_bytes": len(base64.b64decode(PICTURE.partition(",")[2])),
            "prompt_tokens": 10,
            "completion_tokens": 1,
        }
        (page,) = got["pages"]
        assert (page["index"], page["finish_reason"]) == (0, "stop")
        assert page["markdown"] == MARKDOWN
        assert page["dimensions"] == {"dpi": 72, "height": HEIGHT, "width": WIDTH}
        assert (page["header"], page["footer"], page["tables"], page["confidence_scores"]) == (None, None, [], None)
        assert page["images"] == [
            {
                "id": FIGURE,
                "top_left_x": 0,
                "top_left_y": 100,
                "bottom_right_x": 199,
                "bottom_right_y": 200,
                "image_base64": None,
                "image_annotation": None,
            },
            {
                "id": SPECK,
                "top_left_x": 200,
                "top_left_y": 100,
                "bottom_right_x": 207,
                "bottom_right_y": 103,
                "image_base64": None,
                "image_annotation": None,
            },
        ]
        assert [block["type"] for block in page["blocks"]] == [
            "header",
            "title",
            "text",
            "table",
            "image",
            "image",
            "footer",
        ]
        assert page["blocks"][1] == {
            "type": "title",
            "top_left_x": 0,
            "top_left_y": 20,
            "bottom_right_x": 400,
            "bottom_right_y": 40,
            "content": "# Report",
        }
        assert page["blocks"][4]["image_id"] == FIGURE

    async def test_an_answer_without_places_is_one_block(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = says("Only words.")
        (page,) = (await read(client))["pages"]
        (block,) = page["blocks"]
        assert page["markdown"] == block["content"] == "Only words."
        assert (block["bottom_right_x"], block["bottom_right_y"]) == (WIDTH, HEIGHT)

    async def test_without_blocks(self, client: httpx.AsyncClient) -> None:
        assert (await read(client, include_blocks=False))["pages"][0]["blocks"] is None

    async def test_figures_are_cut_out(self, client: httpx.AsyncClient) -> None:
        picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
        picture.paste("red", (0, 100, 200, 200))
        file = io.BytesIO()
        picture.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        (page,) = (await read(client, url=url, include_image_base64=True))["pages"]
        head, data = page["images"][0]["image_base64"].split(",")
        assert head == "data:image/jpeg;base64"
        figure = Image.open(io.BytesIO(base64.b64decode(data)))
        assert figure.size == (199, 100)
        assert figure.getpixel((5, 95))[0] > 240  # type: ignore[index]
        assert figure.getpixel((5, 95))[1] < 15  # type: ignore[index]

    async def test_least_size_and_most_figures(self, client: httpx.AsyncClient) -> None:
        for more in ({"image_min_size": 10}, {"image_limit": 1}):
            (page,) = (await read(client, **more))["pages"]
            assert [image["id"] for image in page["images"]] == [FIGURE]
            assert SPECK not in page["markdown"]
            assert [block.get("image_id") for block in page["blocks"] if block["type"] == "image"] == [FIGURE]

    @pytest.mark.parametrize(
        ("table_format", "name", "content"),
        [
            ("html", "page-1-table-1.html", TABLE),
            ("markdown", "page-1-table-1.md", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ],
    )
    async def test_tables_apart(self, client: httpx.AsyncClient, table_format: str, name: str, content: str) -> None:
        (page,) = (await read(client, table_format=table_format))["pages"]
        (table,) = page["tables"]
        assert (table["id"], table["content"].strip(), table["format"]) == (name, content, table_format)
        assert f"[{name}]({name})" in page["markdown"]
        assert "<table>" not in page["markdown"]
        assert page["blocks"][3]["table_id"] == name

    async def test_header_and_footer_apart(self, client: httpx.AsyncClient) -> None:
        (page,) = (await read(client, extract_header=True, extract_footer=True))["pages"]
        assert (page["header"], page["footer"]) == ("ACME Inc.", "page 1")
        assert page["markdown"].startswith("# Report")
        assert page["markdown"].endswith(f"({SPECK})")

    @pytest.mark.parametrize("granularity", ["page", "block", "word"])
    async def test_confidence(self, client: httpx.AsyncClient, engine: FakeEngine, granularity: str) -> None:
        tokens = [("Sure", -0.0), (" ", -0.0), ("do", -0.6931), ("ubt", -0.6931)]
        steps = [LogprobStep(TokenLogprob(token, logprob), []) for token, logprob in tokens]

        async def script(_: int, page: Page) -> AsyncGenerator[PageDelta]:
            assert page.decoding.logprobs == 0
            yield delta("Sure doubt", logprobs=steps, finish="stop")

        engine.script = script
        (page,) = (await read(client, confidence_scores_granularity=granularity))["pages"]
        scores = page["confidence_scores"]
        assert scores["minimum_page_confidence_score"] == pytest.approx(0.5, abs=1e-3)
        if granularity == "word":
            assert [(word["text"], word["start_index"]) for word in scores["word_confidence_scores"]] == [
                ("Sure", 0),
                ("doubt", 5),
            ]
            assert [word["confidence"] for word in scores["word_confidence_scores"]] == pytest.approx(
                [1, 0.5], abs=1e-3
            )
        else:
            assert "word_confidence_scores" not in scores
            assert scores["average_page_confidence_score"] == pytest.approx(0.7071, abs=1e-3)
        assert ("confidence_scores" in page["blocks"][0]) == (granularity == "block")


class TestDocuments:
    async def test_pages_of_a_pdf(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        document = {"type": "document_url", "document_url": uri(pdf(5)), "document_name": "x.pdf"}
        response = await client.post(OCR, json={"model": None, "document": document, "pages": "0,3-4", "dpi": 72})
        pages = response.json()["pages"]
        assert [page["index"] for page in pages] == [0, 3, 4]
        assert pages[0]["dimensions"] == {"dpi": 72, "height": 100, "width": 200}
        assert pages[1]["images"][0]["id"] == "page-4-figure-1.jpeg"
        assert len(engine.pages) == 3

    async def test_what_is_asked_reaches_the_engine(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        await read(client, prompt="Free OCR.", mode="tiny", ngram_size=20, window_size=50, max_tokens=7)
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
            ({"temperature": 1}, 400, "temperature"),
        ],
    )
    async def test_what_can_not_be_done_is_refused_by_name(
        self, client: httpx.AsyncClient, engine: FakeEngine, more: dict[str, Any], status: int, param: str
    ) -> None:
        error = error_of(await client.post(OCR, json=body() | more), status)
        assert error["param"] == param, error
        assert engine.pages == []

    async def test_a_page_that_fails_is_reported(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number == 1:
                raise EngineFailure("The engine stopped reading this page.")
            yield delta("fine", finish="stop")

        engine.script = script
        document = {"document_url": uri(pdf(3))}
        pages = (await client.post(OCR, json={"document": document, "dpi": 72})).json()["pages"]
        assert sorted(page["finish_reason"] for page in pages) == ["error", "stop", "stop"]
        for page in pages:
            error = {"message": "The engine stopped reading this page.", "code": "engine_error"}
            assert page.get("error") == (error if page["finish_reason"] == "error" else None)
            assert page["markdown"] == ("" if page["finish_reason"] == "error" else "fine")

    async def test_a_thousand_pages_are_never_in_memory(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        """As pictures they would take 720 MB, and prepared as much again."""
        engine.script, engine.forgets = says("x"), True
        process = psutil.Process()
        before = process.memory_info().rss
        most = before

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        request = {"document": {"document_url": uri(pdf(1000, (300, 200)))}, "mode": "tiny", "include_blocks": False}
        response = await client.post(OCR, json=request)
        watching.cancel()
        assert [page["index"] for page in response.json()["pages"]] == list(range(1000))
        assert most - before < 250e6, f"{(most - before) / 1e6:.0f} MB"


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
        ("form", "param"), [({"dpi": "many"}, "dpi"), ({"colour": "red"}, "colour"), ({"document": "{}"}, "document")]
    )
    async def test_wrong_fields(self, client: httpx.AsyncClient, form: dict[str, str], param: str) -> None:
        response = await client.post(OCR, files={"file": ("a.png", b"x")}, data=form)
        assert error_of(response, 400)["param"] == param

    async def test_no_file(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, files={"picture": ("a.png", b"x")})
        assert error_of(response, 400)["param"] == "file"

    async def test_a_broken_form(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, content=b"nonsense", headers={"content-type": "multipart/form-data"})
        error_of(response, 400)


class TestOutputs:
    async def test_markdown(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = says("page")
        response = await client.post(OCR, json={"document": {"document_url": uri(pdf(2))}, "output": "markdown"})
        assert response.headers["content-type"].startswith("text/markdown")
        assert response.text == "page\n\n<--- Page Split --->\n\npage"

    async def test_overlay_of_a_picture(self, client: httpx.AsyncClient) -> None:
        response = await client.post(OCR, json=body(output="overlay"))
        assert response.headers["content-type"] == "image/png"
        overlay = Image.open(io.BytesIO(response.content)).convert("RGB")
        assert overlay.size == (WIDTH, HEIGHT)
        assert len(overlay.getcolors(100_000) or ()) > 5

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

    async def test_where_too_much_waits_more_is_refused_before_it_is_looked_at(
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


async def test_it_is_documented(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert {"OcrRequest", "OcrPageEvent", "OcrResponse"} <= set(schema["components"]["schemas"])
    assert set(schema["paths"]["/v1/ocr"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
    json.dumps(schema)
