"""`ocr.include_page_images`: a stream contains the picture of each page before its text."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from ocr_server.errors import InvalidRequest
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, error_of, events, fails, message, picture, png, says, text

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"
PDF = "data:application/pdf;base64," + base64.b64encode((EXAMPLES / "papers.pdf").read_bytes()).decode()


def asked(*parts: dict[str, Any], **ocr: Any) -> dict[str, Any]:
    options = {"mode": "tiny", "include_page_images": True, **ocr}
    return chat(message(*parts, text("Free OCR.")), stream=True, ocr=options)


async def deltas(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    return [event["choices"][0]["delta"] for event in events(answer.text) if event != "[DONE]"]


def shown(page: dict[str, Any]) -> Image.Image:
    head, data = page["image"].split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def test_each_page_of_a_document_comes_before_its_text(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = says("Hello ", "there")
    order = []
    for delta in await deltas(client, asked(picture(PDF), pages="2-3", dpi=72)):
        if page := delta.get("ocr_page"):
            order.append("picture")
            assert shown(page).size == (page["width"], page["height"])
            assert (page["page"], page["pages"], page["dpi"]) == (page["index"] + 2, 2, 72)
        elif delta.get("content"):
            order += ["text"] if order[-1] != "text" else []
        elif "ocr" in delta:
            order.append("report")
    assert order == ["picture", "text", "report", "picture", "text", "report"]


async def test_the_picture_is_the_page_as_it_is_read(client: httpx.AsyncClient) -> None:
    found = await deltas(client, asked(picture(png(30, 20, (200, 40, 40)))))
    (page,) = [delta["ocr_page"] for delta in found if "ocr_page" in delta]
    red, green, blue = shown(page).getpixel((15, 10))
    assert (page["width"], page["height"]) == (30, 20)
    assert abs(red - 200) + abs(green - 40) + abs(blue - 40) < 12
    assert [delta["ocr"]["pages"][0]["finish_reason"] for delta in found if "ocr" in delta] == ["stop"]


async def test_no_pictures_unless_requested(client: httpx.AsyncClient) -> None:
    body = asked(picture(PDF), include_page_images=False)
    assert not any("ocr_page" in delta for delta in await deltas(client, body))


@pytest.mark.parametrize("output", ["markdown", "blocks"])
async def test_every_output_supports_it(client: httpx.AsyncClient, output: str) -> None:
    assert any("ocr_page" in delta for delta in await deltas(client, asked(picture(), output=output)))


async def test_a_page_that_fails_has_a_picture_and_an_error(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    whole, broken = says("fine"), fails(InvalidRequest("This page is too much."))
    engine.script = lambda number, page: (broken if number == 1 else whole)(number, page)
    found = await deltas(client, asked(picture(PDF)))
    assert [delta["ocr_page"]["page"] for delta in found if "ocr_page" in delta] == [1, 2, 3]
    reports = [delta["ocr"]["pages"][0] for delta in found if "ocr" in delta]
    assert sorted(report["finish_reason"] for report in reports) == ["error", "stop", "stop"]


async def test_it_needs_a_stream(client: httpx.AsyncClient) -> None:
    body = {**asked(picture()), "stream": False}
    error = error_of(await client.post(CHAT, json=body), 400)
    assert error["param"] == "ocr.include_page_images"
