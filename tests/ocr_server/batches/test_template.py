"""The options of a batch of a PDF or zip, which become the body of each of its requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from config import Settings
from ocr_server.batches.template import body_of
from ocr_server.dialects.registry import DIALECTS
from ocr_server.errors import InvalidRequest, NotFound
from tests.ocr_server.conftest import CHAT, picture

OCR = "/v1/ocr"


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        (OCR, {}),
        (OCR, {"model": "deepseek-ocr:tiny", "prompt": "Free OCR.", "pages": "0-1"}),
        (CHAT, {}),
        (CHAT, {"messages": [{"role": "user", "content": "Free OCR."}], "ocr": {"mode": "tiny"}}),
        (CHAT, {"messages": [{"role": "system", "content": "Free OCR."}]}),
    ],
)
def test_the_body_has_the_options_and_no_source(settings: Settings, endpoint: str, options: dict[str, Any]) -> None:
    body = json.loads(body_of(DIALECTS[endpoint], options, settings))
    assert body == {"model": "deepseek-ocr"} | options


@pytest.mark.parametrize("endpoint", [OCR, CHAT])
def test_null_values_are_ignored(settings: Settings, endpoint: str) -> None:
    options = {"document": None, "stream": None, "model": None, "max_tokens": 9}
    body = json.loads(body_of(DIALECTS[endpoint], options, settings))
    assert body == {"model": "deepseek-ocr", "max_tokens": 9}


@pytest.mark.parametrize("endpoint", [OCR, CHAT])
@pytest.mark.parametrize(
    "options", [{"document": {"document_url": "http://a/b.png"}}, {"document": {}}, {"stream": True}, {"stream": False}]
)
def test_a_document_or_stream_is_refused(settings: Settings, endpoint: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body_of(DIALECTS[endpoint], options, settings)
    assert caught.value.param == f"request.{next(iter(options))}"


@pytest.mark.parametrize(
    ("endpoint", "options", "param"),
    [
        (OCR, {"mode": "huge"}, "request.mode"),
        (OCR, {"file": "x"}, "request.file"),
        (CHAT, {"messages": [{"role": "user", "content": [picture()]}]}, "request.messages"),
    ],
)
def test_errors_name_the_option(settings: Settings, endpoint: str, options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body_of(DIALECTS[endpoint], options, settings)
    assert caught.value.param == param


def test_an_unknown_model_is_an_error_of_the_option(settings: Settings) -> None:
    with pytest.raises(NotFound) as caught:
        body_of(DIALECTS[OCR], {"model": "gpt-4o"}, settings)
    assert caught.value.param == "request.model"
