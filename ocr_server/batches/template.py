"""Template of the requests of a PDF or zip: the options of the batch, without a picture or document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ocr_server.batches.endpoint import Endpoint
from ocr_server.errors import ApiError, InvalidRequest

if TYPE_CHECKING:
    from config import Settings


def body_of(endpoint: Endpoint, request: Mapping[str, Any], settings: Settings) -> bytes:
    """Check the template, and return the body of each request.

    Args:
        endpoint: The endpoint of the batch.
        request: The options that the client gave. Null values are ignored.
        settings: The settings of the server.

    Raises:
        InvalidRequest: The options are not valid for the endpoint, or contain a picture or document.
        NotFound: The model does not exist.
    """
    given = {name: value for name, value in request.items() if value is not None}
    for name in ("document", "stream"):
        if name in given:
            raise InvalidRequest(
                f"The requests of a batch of a PDF or zip cannot have the parameter {name}.", param=f"request.{name}"
            )
    body = to_json({"model": settings.MODEL_NAME} | given)
    try:
        endpoint.understand(body, settings, b"")  # only checks the plan: the file is not read
    except ApiError as error:
        error.param = f"request.{error.param}" if error.param else "request"
        raise
    return body
