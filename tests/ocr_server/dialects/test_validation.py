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
from ocr_server.dialects.text_options import OcrOptions
from ocr_server.dialects.validation import parse_body
from ocr_server.dialects.wire import MAX_IGNORED, MAX_IGNORED_CHARS, Wire
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
        (ChatCompletionRequest, chat(messages=[1] * 900), "messages[0]"),
        (ChatCompletionRequest, content(*[1] * 900), "messages[0].content[0]"),
        (ChatCompletionRequest, chat(stop=[1] * MANY), "stop[0]"),
        (ChatCompletionRequest, chat(stop=WORDS), "stop"),
        (ChatCompletionRequest, chat(stop_token_ids=WORDS), "stop_token_ids[0]"),
        (ChatCompletionRequest, chat(logit_bias=dict.fromkeys(UNKNOWN, "x")), "logit_bias.x0"),
        (ChatCompletionRequest, chat(logit_bias=UNKNOWN), "logit_bias"),
        (ChatCompletionRequest, chat(ocr=UNKNOWN), "ocr.x0"),
        (ChatCompletionRequest, chat(ocr={"pages": WORDS}), "ocr.pages[0]"),
        (ChatCompletionRequest, chat(ocr={"pages": [1] * (MANY + 1)}), "ocr.pages"),
        (ChatCompletionRequest, chat(ocr={"whitelist_token_ids": WORDS}), "ocr.whitelist_token_ids[0]"),
        (ChatTemplate, {"model": "deepseek-ocr", "messages": [1] * 900}, "messages[0]"),
        (OcrRequest, OCR_BODY | dict.fromkeys((f"pages{number}" for number in range(MANY)), 1), "pages0"),
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


@pytest.mark.parametrize(
    ("model", "body", "first"),
    [
        (ChatCompletionRequest, chat() | UNKNOWN, "x0"),
        (ChatCompletionRequest, content({"type": "text", "text": "x"} | UNKNOWN), "x0"),
        (ChatCompletionRequest, chat({"role": "user", "content": "x", "name": "Ada"}), "name"),
        (ChatCompletionRequest, chat(metadata={"a": [{}] * 5000}), "metadata"),
        (
            ChatCompletionRequest,
            chat(response_format={"type": "json_schema", "json_schema": SCHEMA | UNKNOWN}),
            "x0",
        ),
        (OcrRequest, OCR_BODY | UNKNOWN, "x0"),
        (OcrRequest, {"document": OCR_BODY["document"] | UNKNOWN}, "x0"),
        (OcrParameters, UNKNOWN, "x0"),
        (ChatCompletionRequest, chat() | {"x" * MANY: 1}, "x" * MAX_IGNORED_CHARS),
    ],
)
def test_unknown_fields_are_named_and_not_kept(model: type[Wire], body: dict[str, Any], first: str) -> None:
    value = parse_body(json.dumps(body).encode(), model)
    assert value.ignored[0] == first
    assert len(value.ignored) <= MAX_IGNORED
    assert value.model_extra is None
    with pytest.raises(ValidationError):  # the options of a Python program must exist
        model.model_validate(body)


def test_names_are_not_repeated() -> None:
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "uuid": "1"}
    assert parse_body(json.dumps(content(part, part)).encode(), ChatCompletionRequest).ignored == (
        "cache_control",
        "uuid",
    )


@pytest.mark.parametrize("name", ["page", "Pages", "tableFormat", "promt", "include_image_base_64"])
def test_a_misspelt_option_of_ocr_is_an_error(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Unknown parameter"):
        parse_body(json.dumps(OCR_BODY | {name: 1}).encode(), OcrRequest)


@pytest.mark.parametrize("name", ["include_table_images", "document_hints", "moderation", "priority"])
def test_a_new_option_of_mistral_is_accepted(name: str) -> None:
    assert parse_body(json.dumps(OCR_BODY | {name: 1}).encode(), OcrRequest).ignored == (name,)


@pytest.mark.parametrize("model", [ChatCompletionRequest, OcrRequest, BatchRequest])
def test_every_optional_field_can_be_null(model: type[Wire]) -> None:
    body = {ChatCompletionRequest: chat(), OcrRequest: OCR_BODY, BatchRequest: BATCH_BODY}[model]
    nulls = {field.alias or name: None for name, field in model.model_fields.items()}
    assert parse_body(json.dumps(nulls | body).encode(), model) == parse_body(json.dumps(body).encode(), model)
    options = {"ocr": dict.fromkeys(OcrOptions.model_fields)}
    if model is ChatCompletionRequest:
        assert parse_body(json.dumps(body | options).encode(), model).ignored == ()


@pytest.mark.parametrize(
    "body", [chat(**{"x" * MANY: 1}), chat(ocr={"x" * MANY: 1}), chat(model="x" * MANY), content({"type": "x" * MANY})]
)
async def test_messages_are_short(body: dict[str, Any], client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body)
    assert response.status_code in (200, 400, 404)
    assert len(response.content) + len(str(response.headers)) < 2000


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
