"""Only the first error of a body is collected, however many it has, and an error message is never as long as a body."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from ocr_server.dialects.batches.wire import BatchRequest
from ocr_server.dialects.chat.wire import ChatCompletionRequest, ChatTemplate
from ocr_server.dialects.ocr.wire import OcrParameters, OcrRequest
from ocr_server.dialects.validation import parse_body
from ocr_server.dialects.wire import Wire
from ocr_server.errors import InvalidRequest
from ocr_server.runtime import LARGE_BODY_BYTES, Runtime
from ocr_server.transport.json_limits import MAX_VALUES
from tests.ocr_server.conftest import CHAT, WHITE, chat, error_of

MANY = 10_000
UNKNOWN = {f"x{number}": 1 for number in range(MANY)}
WORDS = ["x"] * MANY
OCR_BODY = {"document": {"document_url": WHITE}}
BATCH_BODY = {"input_file_id": "file", "endpoint": CHAT, "completion_window": "24h"}
SCHEMA = {"name": "a", "schema": {}}


def content(*parts: Any) -> dict[str, Any]:
    return chat({"role": "user", "content": list(parts)})


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (ChatCompletionRequest, chat() | UNKNOWN, "x0"),
        (ChatCompletionRequest, chat() | {"tools": []} | UNKNOWN, "x0"),
        (ChatCompletionRequest, chat(messages=[1] * 900), "messages[0]"),
        (ChatCompletionRequest, content(*[1] * 900), "messages[0].content[0]"),
        (ChatCompletionRequest, content({"type": "text", "text": "x"} | UNKNOWN), "messages[0].content[0].x0"),
        (ChatCompletionRequest, chat(stop=[1] * MANY), "stop[0]"),
        (ChatCompletionRequest, chat(stop=WORDS), "stop"),
        (ChatCompletionRequest, chat(stop_token_ids=WORDS), "stop_token_ids[0]"),
        (ChatCompletionRequest, chat(logit_bias=dict.fromkeys(UNKNOWN, "x")), "logit_bias.x0"),
        (ChatCompletionRequest, chat(logit_bias=UNKNOWN), "logit_bias"),
        (ChatCompletionRequest, chat(metadata=UNKNOWN), "metadata"),
        (ChatCompletionRequest, chat(ocr=UNKNOWN), "ocr.x0"),
        (ChatCompletionRequest, chat(ocr={"pages": WORDS}), "ocr.pages[0]"),
        (ChatCompletionRequest, chat(ocr={"pages": [1] * (MANY + 1)}), "ocr.pages"),
        (ChatCompletionRequest, chat(ocr={"whitelist_token_ids": WORDS}), "ocr.whitelist_token_ids[0]"),
        (
            ChatCompletionRequest,
            chat(response_format={"type": "json_schema", "json_schema": SCHEMA | UNKNOWN}),
            "response_format.json_schema.x0",
        ),
        (ChatTemplate, {"model": "deepseek-ocr", "messages": [1] * 900}, "messages[0]"),
        (OcrRequest, OCR_BODY | UNKNOWN, "x0"),
        (OcrRequest, {"document": OCR_BODY["document"] | UNKNOWN}, "document.x0"),
        (OcrParameters, UNKNOWN, "x0"),
        (BatchRequest, BATCH_BODY | {"metadata": dict.fromkeys(UNKNOWN, 1)}, "metadata.x0"),
        (BatchRequest, BATCH_BODY | {"request": UNKNOWN}, "request"),
    ],
)
def test_the_first_error_only(model: type[Wire], body: dict[str, Any], param: str) -> None:
    text = json.dumps(body).encode()
    with pytest.raises(ValidationError) as collected:
        model.model_validate_json(text)
    assert collected.value.error_count() <= 2
    with pytest.raises(InvalidRequest) as refused:
        parse_body(text, model)
    assert refused.value.param == param


@pytest.mark.parametrize("body", [chat(**{"x" * MANY: 1}), chat(model="x" * MANY), content({"type": "x" * MANY})])
async def test_messages_are_short(body: dict[str, Any], client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body)
    assert response.status_code in (400, 404)
    assert len(response.content) < 1000


@pytest.mark.parametrize("url", [CHAT, "/v1/ocr"])
async def test_too_many_values(url: str, client: httpx.AsyncClient) -> None:
    body = b'{"a":[' + b"1," * MAX_VALUES + b"1]}"
    error = error_of(await client.post(url, content=body), 400)
    assert error["code"] == "json_too_large"
    assert f"{MAX_VALUES:,}" in error["message"]


async def test_a_large_body_is_parsed_in_a_thread(app: FastAPI) -> None:
    runtime: Runtime = app.state.runtime
    here = threading.get_ident()
    assert await runtime.sized(LARGE_BODY_BYTES - 1, threading.get_ident) == here
    assert await runtime.sized(LARGE_BODY_BYTES, threading.get_ident) != here


async def test_a_large_body_is_read(client: httpx.AsyncClient) -> None:
    earlier = {"role": "assistant", "content": "word, " * LARGE_BODY_BYTES}
    response = await client.post(CHAT, json=chat(earlier, *chat()["messages"]))
    assert response.status_code == 200, response.text
