"""The body of a request becomes its wire type; what is wrong with it is said as OpenAI says it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from ocr_server.dialects.chat.wire import REFUSED, ChatCompletionRequest
from ocr_server.errors import InvalidRequest, error_body, parameter_name

M = TypeVar("M", bound=BaseModel)

MOST_LEVELS = 64
"""How deep the lists and objects of a body may be nested; what reads a JSON schema recurses a few calls a level."""


def parse_body(body: bytes, model: type[M]) -> M:
    """A request's body as `model`, straight from its bytes: no second copy of a picture as Python objects.

    Raises:
        RequestValidationError: it is no JSON, or not what `model` takes.
        InvalidRequest: it is nested deeper than `MOST_LEVELS`.
    """
    try:
        value = model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        if "recursion limit exceeded" in str(problems[0]["msg"]):  # pydantic's own, of 200 levels
            raise _too_deep(None) from error
        raise RequestValidationError(problems) from error
    if body.count(b"{") + body.count(b"[") > MOST_LEVELS:
        for name, field in value.__dict__.items():
            if _levels_exceed(field, MOST_LEVELS - 1):
                raise _too_deep(name)
    return value


def _levels_exceed(value: Any, most: int) -> bool:
    """Whether lists, objects and models are nested deeper than `most` in `value`."""
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
        f"The body is nested too deep: at most {MOST_LEVELS} levels of lists and objects are read.",
        param=param,
        code="json_too_deep",
    )


def validation_body(error: RequestValidationError) -> dict[str, Any]:
    """The first thing that is wrong, said as OpenAI says it."""
    problem = error.errors()[0]
    location = [part for part in problem["loc"] if part != "body"]
    param = parameter_name(location)
    kind = problem["type"]
    if kind == "json_invalid":
        message = f"The body is not valid JSON: {problem['ctx']['error']}."
    elif kind == "extra_forbidden" and len(location) == 1 and location[0] in REFUSED:
        message = f"{param} is not supported: {REFUSED[str(location[0])]}."
    elif kind == "extra_forbidden":
        message = f"Unknown parameter: {param}."
    else:
        message = f"{param}: {problem['msg']}." if param else f"{problem['msg']}."
        param = param or (kind if kind in ChatCompletionRequest.model_fields else None)
    code = "unsupported_parameter" if kind == "extra_forbidden" else None
    return error_body(message, type_="invalid_request_error", param=param, code=code)
