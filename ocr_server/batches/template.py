"""The body of each request of a PDF or a zip: the batch's own options, and in the picture's place a mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json

from ocr_server.dialects.chat.plan import translate
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.dialects.ocr.plan import translate_ocr
from ocr_server.dialects.ocr.wire import OcrRequest
from ocr_server.dialects.validation import parse_body, validation_body
from ocr_server.errors import ApiError, InvalidRequest
from ocr_server.intake.intake import Source

if TYPE_CHECKING:
    from config import Settings

CHAT, OCR = "/v1/chat/completions", "/v1/ocr"
MARK = "batch:input"
"""In the place of a picture's URL; whoever opens it knows which it is."""


def body_of(endpoint: str, request: Mapping[str, Any], settings: Settings) -> bytes:
    """The body that `request`, all of it but the picture, makes.

    Raises:
        InvalidRequest: it is no request of `endpoint`, or has a picture of its own.
        NotFound: there is no such model.
    """
    body = {"model": settings.MODEL_NAME} | dict(request)
    if endpoint == OCR:
        _refuse(request, "document")
        body["document"] = {"document_url": MARK}
    else:
        body["messages"] = _with_picture(body.get("messages"))
    _refuse(request, "stream")
    data = to_json(body)
    try:
        source_of(endpoint, data, settings)
    except RequestValidationError as error:
        problem = validation_body(error)["error"]
        raise InvalidRequest(problem["message"], param=_within(problem["param"]), code=problem["code"]) from error
    except ApiError as error:
        error.param = _within(error.param)
        raise
    return data


def source_of(endpoint: str, body: bytes, settings: Settings) -> Source:
    """How a body of `body_of` asks for its picture to be opened."""
    if endpoint == OCR:
        parsed = parse_body(body, OcrRequest)
        if parsed.output != "json":
            raise InvalidRequest("A request of a batch has output json.", param="output")
        return translate_ocr(parsed, settings).source
    sources = translate(parse_body(body, ChatCompletionRequest), settings).sources
    if len(sources) != 1:
        raise InvalidRequest("Beside that of the file there can be no picture.", param="messages")
    return sources[0]


def _with_picture(messages: Any) -> list[Any]:
    """The picture goes before what the last user message says."""
    picture = {"type": "image_url", "image_url": {"url": MARK}}
    made = list(messages) if isinstance(messages, list) else []
    if messages is not None and not made:
        raise InvalidRequest("messages must be a list that is not empty.", param="request.messages")
    for place in reversed(range(len(made))):
        if isinstance(made[place], dict) and made[place].get("role") == "user":
            said = made[place].get("content") or []
            parts = [{"type": "text", "text": said}] if isinstance(said, str) else said
            made[place] = made[place] | {"content": [picture, *parts] if isinstance(parts, list) else parts}
            return made
    return [*made, {"role": "user", "content": [picture]}]


def _refuse(request: Mapping[str, Any], name: str) -> None:
    if name in request:
        raise InvalidRequest(f"A batch of a PDF or zip has no {name} of its own.", param=f"request.{name}")


def _within(param: str | None) -> str:
    return f"request.{param}" if param else "request"
