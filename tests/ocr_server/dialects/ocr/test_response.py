"""`OcrPages`: what a reader yields becomes Mistral's pages."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from ocr_server.errors import EngineFailure
from ocr_server.reading.page import LogprobStep, Page, PageDelta, ScoredToken
from tests.ocr_server.conftest import FakeEngine, delta, says
from tests.ocr_server.dialects.ocr.requests import HEIGHT, OCR, PICTURE, WIDTH, body, pdf, uri


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


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(ANSWER))


async def read(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await client.post(OCR, json=body(**more))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


class TestResponse:
    async def test_a_whole_response(self, client: httpx.AsyncClient) -> None:
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

    async def test_an_answer_without_boxes_is_one_block(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
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

    async def test_image_min_size_and_image_limit(self, client: httpx.AsyncClient) -> None:
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
    async def test_tables_are_returned_separately(
        self, client: httpx.AsyncClient, table_format: str, name: str, content: str
    ) -> None:
        (page,) = (await read(client, table_format=table_format))["pages"]
        (table,) = page["tables"]
        assert (table["id"], table["content"].strip(), table["format"]) == (name, content, table_format)
        assert f"[{name}]({name})" in page["markdown"]
        assert "<table>" not in page["markdown"]
        assert page["blocks"][3]["table_id"] == name

    async def test_header_and_footer_are_returned_separately(self, client: httpx.AsyncClient) -> None:
        (page,) = (await read(client, extract_header=True, extract_footer=True))["pages"]
        assert (page["header"], page["footer"]) == ("ACME Inc.", "page 1")
        assert page["markdown"].startswith("# Report")
        assert page["markdown"].endswith(f"({SPECK})")

    @pytest.mark.parametrize("granularity", ["page", "block", "word"])
    async def test_confidence(self, client: httpx.AsyncClient, engine: FakeEngine, granularity: str) -> None:
        tokens = [("Sure", -0.0), (" ", -0.0), ("do", -0.6931), ("ubt", -0.6931)]
        steps = [LogprobStep(ScoredToken(token, logprob), []) for token, logprob in tokens]

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

    @pytest.mark.slow
    async def test_a_thousand_pages_are_not_all_in_memory(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        """Decoded, they would take 720 MB, and prepared for the engine as much again."""
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
