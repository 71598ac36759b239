"""Tools that clients offer to the model, which cannot call any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ocr_server.dialects.validation import MAX_NAME_CHARS
from ocr_server.errors import InvalidRequest

CLIENT_SIDE = ("function", "custom")
"""Types of tools that the client runs itself. Agents send them with every request."""


def check_tools(tools: Sequence[Any] | None, choice: Any) -> None:
    """Refuse a request that cannot be answered without calling a tool. The model answers all others without a call.

    Raises:
        InvalidRequest: A call is required, or the server is to run a tool.
    """
    for number, tool in enumerate(tools or ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in CLIENT_SIDE:
            raise InvalidRequest(
                f"The server has no tool of type {str(kind)[:MAX_NAME_CHARS]!r}; leave it out.",
                param=f"tools[{number}].type",
                code="unsupported_parameter",
            )
    if choice not in (None, "auto", "none"):
        raise InvalidRequest(
            "DeepSeek-OCR cannot call tools, so a call cannot be required. Leave out tool_choice for an answer without "
            "a call; for structured fields, send a JSON schema as the response format.",
            param="tool_choice",
            code="unsupported_parameter",
        )
