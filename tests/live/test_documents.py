"""Documents with the real server: PDFs in chat messages and at /v1/ocr, with the usual clients."""

from __future__ import annotations

import base64
import io
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pypdfium2
import pytest
from live_requests import MODEL, PROMPT, RECEIPT, SEPARATOR, SIGN, data_uri, image_part, saved, text_part, truth, user
from live_server import WAIT_SECONDS, Server
from mistralai.client import Mistral
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from tests.processes import descendants

pytestmark = pytest.mark.live


def scanned(*pictures: Path, dpi: int = 144) -> bytes:
    """Return a PDF with an image on each page."""
    first, *others = (Image.open(picture).convert("RGB") for picture in pictures)
    file = io.BytesIO()
    first.save(file, "PDF", save_all=True, append_images=others, resolution=dpi)
    return file.getvalue()


def long_document(pages: int) -> bytes:
    """Return a PDF of blank pages, except the first and the last one, which are the sign."""
    sign = pypdfium2.PdfDocument(scanned(SIGN))
    document, file = pypdfium2.PdfDocument.new(), io.BytesIO()
    document.import_pages(sign)
    for _ in range(pages - 2):
        document.new_page(300, 200)
    document.import_pages(sign)
    document.save(file)
    return file.getvalue()


def file_part(data: bytes | str, name: str = "document.pdf") -> dict[str, Any]:
    return {"type": "file", "file": {"filename": name, "file_data": data if isinstance(data, str) else pdf_uri(data)}}


def pdf_uri(data: bytes) -> str:
    return data_uri(data, "application/pdf")


def ask(*parts: dict[str, Any]) -> list[Any]:
    return [user(*parts, text_part())]


THREE = (SIGN, RECEIPT, SIGN)


class TestChat:
    def test_a_stream_contains_the_pages_in_order(self, client: OpenAI) -> None:
        pages = [SIGN, RECEIPT] * 15
        stream = client.chat.completions.create(
            model=MODEL, messages=ask(file_part(scanned(*pages))), stream=True, stream_options={"include_usage": True}
        )
        text, reports, ends = "", [], []
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for report in (getattr(choice.delta, "ocr", None) or {}).get("pages", []):
                    reports.append(report)
                    assert text.count(SEPARATOR) == report["index"], "the report of a page should come at its end"
                ends += [choice.finish_reason] if choice.finish_reason else []
            usage = chunk.usage
        assert text == SEPARATOR.join(truth(page) for page in pages)
        assert [report["page"] for report in reports] == list(range(1, 31))
        assert {report["finish_reason"] for report in reports} == {"stop"}
        assert ends == ["stop"]
        assert usage is not None
        assert usage.prompt_tokens == sum(report["prompt_tokens"] for report in reports)

    @pytest.mark.parametrize("form", ["base64 alone", "image_url", "url"])
    def test_a_pdf_is_accepted_wherever_an_image_is(self, client: OpenAI, files: Any, form: str) -> None:
        data = scanned(*THREE)
        files.paths["/three.pdf"] = data
        part = {
            "base64 alone": file_part(base64.b64encode(data).decode()),
            "image_url": image_part(pdf_uri(data)),
            "url": image_part(f"{files.url}/three.pdf"),
        }[form]
        answer = client.chat.completions.create(model=MODEL, messages=ask(part))
        assert answer.choices[0].message.content == SEPARATOR.join(map(truth, THREE))

    def test_selected_pages_and_separator(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=ask(file_part(scanned(*THREE)), image_part(SIGN)),
            extra_body={"ocr": {"pages": [2], "page_separator": " | "}},
        )
        assert answer.choices[0].message.content == f"{truth(RECEIPT)} | {truth(SIGN)}"

    def test_a_tiff_of_several_pages(self, client: OpenAI) -> None:
        first, *others = (Image.open(picture).convert("RGB") for picture in THREE)
        tiff = saved(first, "TIFF", save_all=True, append_images=others)
        answer = client.chat.completions.create(model=MODEL, messages=ask(image_part(data_uri(tiff, "image/tiff"))))
        assert answer.choices[0].message.content == SEPARATOR.join(map(truth, THREE))

    @pytest.mark.parametrize(
        ("part", "options", "param", "code"),
        [
            (file_part(b"%PDF-1.7 and then nothing"), {}, "messages[0].content[0].file.file_data", "pdf_damaged"),
            (file_part(scanned(SIGN)), {"pages": "2"}, "ocr.pages", "invalid_pages"),
            (file_part(scanned(SIGN)), {"pages": "0"}, "ocr.pages", "invalid_pages"),
            (file_part("*"), {}, "messages[0].content[0].file.file_data", "invalid_base64_image"),
        ],
    )
    def test_errors_name_the_parameter_and_code(
        self, client: OpenAI, part: dict[str, Any], options: dict[str, Any], param: str, code: str | None
    ) -> None:
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=ask(part), extra_body={"ocr": options})
        assert caught.value.param == param
        assert code is None or caught.value.code == code

    def test_a_file_that_does_not_exist(self, client: OpenAI) -> None:
        with pytest.raises(NotFoundError) as caught:
            client.chat.completions.create(model=MODEL, messages=ask({"type": "file", "file": {"file_id": "file-1"}}))
        assert (caught.value.param, caught.value.code) == ("messages[0].content[0].file.file_id", "file_not_found")

    def test_blocks_are_returned_with_the_text(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=ask(image_part(SIGN)),
            extra_body={"ocr": {"output": "blocks", "confidence": True}},
        )
        message = answer.choices[0].message
        assert message.content == truth(SIGN)
        (page,) = message.ocr["pages"]  # type: ignore[attr-defined]
        assert [block["text"] for block in page["blocks"]] == [truth(SIGN)]
        assert 0.5 < page["confidence"] <= 1


class TestOcr:
    @pytest.fixture
    def mistral(self, server: Server) -> Mistral:
        return Mistral(api_key="EMPTY", server_url=server.url)

    def test_a_pdf_with_mistrals_client(self, mistral: Mistral) -> None:
        document: Any = {"type": "document_url", "document_url": pdf_uri(scanned(*THREE))}
        answer = mistral.ocr.process(model=MODEL, document=document, pages=[0, 1])
        assert [page.index for page in answer.pages] == [0, 1]
        width, height = Image.open(SIGN).size
        assert answer.pages[0].dimensions is not None
        assert abs(answer.pages[0].dimensions.width - width) <= 1
        assert abs(answer.pages[0].dimensions.height - height) <= 1
        assert answer.usage_info.pages_processed == 2

    def test_an_image_url_with_mistrals_client(self, mistral: Mistral, files: Any) -> None:
        files.paths["/sign.png"] = SIGN.read_bytes()
        document: Any = {"type": "image_url", "image_url": f"{files.url}/sign.png"}
        answer = mistral.ocr.process(model=f"{MODEL}:base", document=document, confidence_scores_granularity="page")
        scores = answer.pages[0].confidence_scores
        assert scores
        assert 0 < scores.average_page_confidence_score <= 1

    def test_uploading_a_pdf_with_curl(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "three.pdf"
        path.write_bytes(scanned(*THREE))
        command = ["curl", "-sS", "-f", f"{server.url}/v1/ocr", "-F", f"file=@{path}", "-F", f"prompt={PROMPT}"]
        text = subprocess.run([*command, "-F", "output=markdown"], capture_output=True, text=True, check=True).stdout
        assert text == SEPARATOR.join(map(truth, THREE))

    def test_a_stream_of_pages(self, http: httpx.Client) -> None:
        request = {"document": {"document_url": pdf_uri(scanned(*THREE))}, "prompt": PROMPT, "stream": True}
        events: list[str] = []
        with http.stream("POST", "/v1/ocr", json=request) as response:
            events += [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert ['"object":"ocr.page"' in event for event in events[:-1]] == [True] * 3 + [False]


class TestMemory:
    def test_the_pages_of_a_long_document_are_not_all_in_memory(self, http: httpx.Client, server: Server) -> None:
        """As images, all 1,000 pages would take 700 MB. The processes of the server use less than that."""
        before = memory(server)
        samples = [before]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                samples.append(memory(server))

        watching = threading.Thread(target=watch)
        watching.start()
        request = {
            "document": {"document_url": pdf_uri(long_document(1000))},
            "prompt": PROMPT,
            "mode": "tiny",
            "max_tokens": 2,
            "pages": "0-60,999",
            "include_blocks": False,
        }
        try:
            answer = http.post("/v1/ocr", json=request, timeout=WAIT_SECONDS)
            assert answer.status_code == 200, answer.text
            pages = answer.json()["pages"]
        finally:
            done.set()
            watching.join()
        assert [page["index"] for page in pages] == [*range(61), 999]
        assert max(samples) - before < 600e6, f"{(max(samples) - before) / 1e6:.0f} MB"


def memory(server: Server) -> float:
    """Return the memory of the server and its PDF processes in bytes, without the engine's."""
    process = psutil.Process(server.process.pid)
    engines = {engine.pid for engine in descendants(process.pid, "EngineCore")}
    total = 0.0
    for one in (process, *descendants(process.pid)):
        if one.pid not in engines:
            with suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().uss
    return total
