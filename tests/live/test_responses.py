"""`POST /v1/responses` with OpenAI's SDK and the real engine."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from live_requests import MODEL, PROMPT, ROOT, SIGN, data_uri, truth
from openai import OpenAI
from pydantic import BaseModel

pytestmark = pytest.mark.live


def asks(part: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [part, {"type": "input_text", "text": PROMPT}]}]


SIGN_PART = {"type": "input_image", "image_url": data_uri(SIGN), "detail": "auto"}


def test_a_picture(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=asks(SIGN_PART), instructions="You are a helpful assistant.")
    assert response.status == "completed"
    assert response.output_text == truth(SIGN)
    assert response.usage is not None
    assert response.usage.output_tokens > 0


def test_a_stream(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=asks(SIGN_PART)) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len([delta for delta in deltas if delta]) > 1
    assert "".join(deltas) == final.output_text == truth(SIGN)


def test_a_document(client: OpenAI) -> None:
    pdf = base64.b64encode((ROOT / "examples" / "papers.pdf").read_bytes()).decode()
    part = {"type": "input_file", "filename": "papers.pdf", "file_data": f"data:application/pdf;base64,{pdf}"}
    response = client.responses.create(model=MODEL, input=asks(part), extra_body={"ocr": {"pages": "1-2"}})
    pages = response.output[0].to_dict()["ocr"]["pages"]
    assert [page["page"] for page in pages] == [1, 2]
    assert response.output_text


def test_a_parsed_answer(client: OpenAI) -> None:
    class Sign(BaseModel):
        open: bool

    response = client.responses.parse(model=MODEL, input=asks(SIGN_PART), text_format=Sign)
    assert isinstance(response.output_parsed, Sign)


def test_an_answer_that_is_cut_off(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=asks(SIGN_PART), max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert truth(SIGN).startswith(response.output_text)
