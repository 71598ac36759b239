"""`Dialect.understand`: a batch's request, with or without content of its own, becomes a plan."""

from __future__ import annotations

import json
from typing import Any

import pytest

from config import Settings
from ocr_server.dialects.registry import DIALECTS
from ocr_server.errors import ApiError
from ocr_server.intake.source import Url
from ocr_server.plan import ReadPlan
from tests.ocr_server.conftest import WHITE, chat, message, picture, text

CHAT, OCR, RESPONSES = "/v1/chat/completions", "/v1/ocr", "/v1/responses"
MODEL = {"model": "deepseek-ocr"}


def understood(settings: Settings, path: str, body: dict[str, Any], content: bytes | None) -> ReadPlan:
    _, plan = DIALECTS[path].understand(json.dumps(body).encode(), settings, content)
    return plan


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (OCR, {"document": {"image_url": WHITE}}),
        (RESPONSES, MODEL | {"input": [message({"type": "input_image", "image_url": WHITE})]}),
    ],
)
def test_a_request_names_its_own_source(settings: Settings, path: str, body: dict[str, Any]) -> None:
    plan = understood(settings, path, body, None)
    assert [planned.source.content for planned in plan.sources] == [Url(WHITE)]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (CHAT, {}),
        (CHAT, {"max_tokens": 7}),
        (OCR, {}),
        (OCR, {"max_tokens": 7}),
        (RESPONSES, {}),
        (RESPONSES, {"max_output_tokens": 7}),
    ],
)
def test_a_template_is_given_its_source(settings: Settings, path: str, options: dict[str, Any]) -> None:
    plan = understood(settings, path, MODEL | options, b"content")
    (planned,) = plan.sources
    assert (planned.source.content, planned.parameters["file"]) == (b"content", "input_file_id")
    assert plan.prompt == settings.DEFAULT_PROMPT
    assert plan.decoding.max_tokens == next(iter(options.values()), None)


def test_a_template_of_a_chat_has_text(settings: Settings) -> None:
    body = MODEL | {"messages": [message("Be exact.", role="system"), message(text("Free OCR."))]}
    assert understood(settings, CHAT, body, b"content").prompt == "Free OCR."


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, {"model": "gpt-4o"}, 404, "model"),
        (CHAT, MODEL | {"stream": True}, 400, "stream"),
        (CHAT, MODEL | {"messages": [message("x", role="boss")]}, 400, "messages[0].role"),
        (CHAT, MODEL | {"messages": [message(picture(), "Free OCR.")]}, 400, "messages"),
        (CHAT, MODEL | {"ocr": {"colour": "red"}}, 400, "ocr.colour"),
        (CHAT, MODEL | {"ocr": {"pages": "x"}}, 400, "ocr.pages"),
        (CHAT, MODEL | {"tool_choice": "required"}, 400, "tool_choice"),
        (RESPONSES, MODEL | {"stream": True}, 400, "stream"),
        (RESPONSES, MODEL | {"input": [message({"type": "input_image", "image_url": WHITE})]}, 400, "input"),
        (OCR, {"model": "gpt-4o"}, 404, "model"),
        (OCR, MODEL | {"stream": True}, 400, "stream"),
        (OCR, MODEL | {"output": "markdown"}, 400, "output"),
        (OCR, MODEL | {"document": {"document_url": "data:a"}}, 400, "document"),
        (OCR, MODEL | {"pages": "x"}, 400, "pages"),
    ],
)
def test_a_template_that_is_refused(
    settings: Settings, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        understood(settings, path, body, b"content")
    assert (caught.value.status, caught.value.param) == (status, param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, MODEL, "messages"),
        (CHAT, MODEL | {"messages": [message("ping")]}, "messages"),
        (CHAT, chat(stream=True), "stream"),
        (OCR, MODEL, "document"),
        (OCR, {"document": {"image_url": WHITE}, "stream": True}, "stream"),
        (OCR, {"document": {"image_url": WHITE}, "output": "raw"}, "output"),
    ],
)
def test_a_request_that_is_refused(settings: Settings, path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        understood(settings, path, body, None)
    assert (caught.value.status, caught.value.param) == (400, param)
