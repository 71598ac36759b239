"""Batches with the real engine and the official SDK."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from live_server import ROOT, WAIT_SECONDS, Server, running, wait_until
from openai import OpenAI

pytestmark = pytest.mark.live

EXAMPLES = ROOT / "examples"
ENDED = ("completed", "failed", "expired", "cancelled")
SECONDS = 240.0
"""Limit for a batch; it only guards against hanging."""


def body(picture: str, **more: Any) -> dict[str, Any]:
    data = base64.b64encode((EXAMPLES / picture).read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "Free OCR."},
    ]
    return {"model": "deepseek-ocr", "messages": [{"role": "user", "content": parts}], **more}


def line(name: str, request: dict[str, Any]) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": request})


def create_batch(client: OpenAI, data: bytes, endpoint: str, **more: Any) -> Any:
    file = client.files.create(file=("input", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)  # type: ignore[arg-type]


def wait_for_batch(client: OpenAI, batch: Any) -> Any:
    """Wait until a batch has ended, and return it."""
    wait_until("the batch has ended", lambda: client.batches.retrieve(batch.id).status in ENDED, SECONDS, every=0.2)
    return client.batches.retrieve(batch.id)


def lines_of(client: OpenAI, file_id: str) -> dict[str, Any]:
    return {line["custom_id"]: line for line in map(json.loads, client.files.content(file_id).text.splitlines())}


def test_a_batch_gives_the_same_answers_as_requests(client: OpenAI) -> None:
    requests = [line("receipt", body("receipt.png")), line("sign", body("sign.png")), line("wrong", {"model": "none"})]
    batch = wait_for_batch(client, create_batch(client, "\n".join(requests).encode(), "/v1/chat/completions"))
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    answers = lines_of(client, batch.output_file_id)
    for name in ("receipt", "sign"):
        direct = client.chat.completions.create(**body(f"{name}.png"))
        content = answers[name]["response"]["body"]["choices"][0]["message"]["content"]
        assert content == direct.choices[0].message.content
    assert lines_of(client, batch.error_file_id)["wrong"]["response"]["status_code"] == 400


def test_the_selected_pages_of_a_pdf_are_read(client: OpenAI) -> None:
    pdf = (EXAMPLES / "papers.pdf").read_bytes()
    request = {"prompt": "Free OCR.", "pages": [0, 2], "max_tokens": 40}
    batch = wait_for_batch(client, create_batch(client, pdf, "/v1/ocr", extra_body={"request": request}))
    answers = lines_of(client, batch.output_file_id)
    assert list(answers) == ["page-1", "page-3"]
    assert all(answer["response"]["body"]["pages"][0]["markdown"] for answer in answers.values())


@pytest.mark.timeout(600)
def test_a_killed_server_loses_no_answer(tmp_path: Path) -> None:
    """The next server, with its own engine, continues where the first one was killed."""
    requests = "\n".join(line(f"r{number}", body("sign.png", max_tokens=8)) for number in range(60)).encode()
    flags = ("--batch-concurrency", "2", "--batch-lease", "2")

    def api(server: Server) -> OpenAI:
        return OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0, timeout=WAIT_SECONDS)

    with running(tmp_path / "first", *flags) as server:
        server.wait_ready()
        client = api(server)
        batch = create_batch(client, requests, "/v1/chat/completions")
        wait_until(
            "some requests are answered",
            lambda: client.batches.retrieve(batch.id).request_counts.completed > 4,
            SECONDS,
        )
        server.process.kill()
    with running(tmp_path / "second", *flags) as server:
        server.wait_ready()
        batch = wait_for_batch(api(server), batch)
        assert batch.request_counts.completed == 60
        assert list(lines_of(api(server), batch.output_file_id)) == [f"r{number}" for number in range(60)]
