"""Parses request bodies into wire types. The first problem of a body becomes an `InvalidRequest`."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ocr_server.dialects.wire import UNION_TAGS, Ignored, Wire
from ocr_server.errors import InvalidRequest, UnsupportedMediaType
from ocr_server.transport.json_limits import check_json

W = TypeVar("W", bound=Wire)

MAX_NAME_CHARS = 100
"""Maximum length of a name in an error message. Names of unknown parameters are the client's choice."""
MAX_LEVELS = 64
"""Deepest nesting of lists and objects in a body. Code that reads a JSON schema recurses a few calls for each level."""


def parse_body(body: bytes, model: type[W]) -> W:
    """Parse a request body. `ignored` of the result names the fields that have no effect.

    Raises:
        InvalidRequest: The body is not JSON, does not match `model`, is nested deeper than `MAX_LEVELS`, or has more
            values than `check_json` allows.
        UnsupportedMediaType: The body is not in UTF-8.
    """
    body = _utf8(body)
    check_json(body)
    ignored = Ignored()
    try:
        value = model.model_validate_json(body, context=ignored)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        if "recursion limit exceeded" in str(problems[0]["msg"]):  # pydantic's own limit, 200 levels
            raise _too_deep(None) from error
        raise invalid_request(problems, model) from error
    if body.count(b"{") + body.count(b"[") > MAX_LEVELS:
        for name, field in value.__dict__.items():
            if _levels_exceed(field, MAX_LEVELS - 1):
                raise _too_deep(name)
    value.set_ignored(ignored.names)
    return value


def _utf8(body: bytes) -> bytes:
    """Return a JSON text without a byte order mark. Raises UnsupportedMediaType for UTF-16 and UTF-32."""
    # JSON begins with two ASCII characters, in UTF-8 without null bytes.
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:2]:
        raise UnsupportedMediaType(
            "The body is in UTF-16 or UTF-32; send JSON in UTF-8.", param="content-type", code="unsupported_charset"
        )
    return body.removeprefix(codecs.BOM_UTF8)


def _levels_exceed(value: Any, most: int) -> bool:
    """Return whether lists, objects and models are nested deeper than `most` in `value`."""
    level = [value]
    for _ in range(most + 1):
        level = [inner for inner in level if isinstance(inner, BaseModel | dict | list)]
        if not level:
            return False
        level = [inner for outer in level for inner in _inside(outer)]
    return True


def _inside(value: BaseModel | dict[str, Any] | list[Any]) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return [*value.__dict__.values(), *(value.model_extra or {}).values()]
    return value.values() if isinstance(value, dict) else value


def _too_deep(param: str | None) -> InvalidRequest:
    return InvalidRequest(
        f"The body is nested too deeply; the limit is {MAX_LEVELS} levels of lists and objects.",
        param=param,
        code="json_too_deep",
    )


def parse_fields(fields: Mapping[str, str], model: type[W]) -> W:
    """Parse the fields of a form, all of whose values are strings. Raises InvalidRequest."""
    ignored = Ignored()
    try:
        value = model.model_validate(fields, strict=False, context=ignored)
    except ValidationError as error:
        raise invalid_request(error.errors(include_input=False, include_url=False), model) from error
    value.set_ignored(ignored.names)
    return value


def invalid_request(problems: Sequence[ErrorDetails], model: type[Wire] = Wire) -> InvalidRequest:
    """Return the first of pydantic's problems as an error in OpenAI's form.

    Args:
        model: What was to be parsed. An error of a validator of the whole model has the parameter's name as its type.
    """
    problem = problems[0]
    location = problem["loc"]
    param = parameter_name(location)
    kind, code = problem["type"], None
    if kind == "json_invalid":
        message = f"The body is not valid JSON: {problem['ctx']['error']}."
    elif kind == "extra_forbidden" and len(location) == 1 and location[0] in model.REFUSED:
        message, code = f"{param} is not supported: {model.REFUSED[str(location[0])]}.", "unsupported_parameter"
    elif kind == "extra_forbidden":
        message, code = f"Unknown parameter: {param}.", "unknown_parameter"
    else:
        message = f"{param}: {problem['msg']}." if param else f"{problem['msg']}."
        param = param or (kind if kind in model.model_fields else None)
    return InvalidRequest(message, param=param, code=code)


def parameter_name(location: Sequence[str | int]) -> str | None:
    """Return a place in a request as OpenAI writes it, such as `messages[0].content`."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in UNION_TAGS:
            part = part[:MAX_NAME_CHARS] or '""'
            name += f".{part}" if name else part
    return name or None
