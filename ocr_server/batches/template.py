"""The body of each request of a PDF or a zip: the batch's own options, without a picture or document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ocr_server.batches.endpoint import Endpoint
from ocr_server.errors import ApiError, InvalidRequest

if TYPE_CHECKING:
    from config import Settings


def body_of(endpoint: Endpoint, request: Mapping[str, Any], settings: Settings) -> bytes:
    """The body of each request, checked.

    Args:
        request: As the client gave it: everything except the picture or document.

    Raises:
        InvalidRequest: It is not a request of `endpoint`, or has a picture or document of its own.
        NotFound: There is no such model.
    """
    for name in ("document", "stream"):
        if name in request:
            raise InvalidRequest(f"A batch of a PDF or zip has no {name} of its own.", param=f"request.{name}")
    given = {name: value for name, value in request.items() if value is not None}
    body = to_json({"model": settings.MODEL_NAME} | given)
    try:
        endpoint.understand(body, settings, b"")  # the plan is only checked: no file is read for it
    except ApiError as error:
        error.param = f"request.{error.param}" if error.param else "request"
        raise
    return body
