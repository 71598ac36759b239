"""Refuses requests before their body is read."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from ocr_server.errors import ApiError

LINGER_SECONDS = 2.0
LINGER_BYTES = 10_000_000
"""How long, and how much, a client may go on sending after its request has been refused."""


async def refuse(
    error: ApiError,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    linger_seconds: float = LINGER_SECONDS,
    linger_bytes: int = LINGER_BYTES,
) -> None:
    """Answer an HTTP request with `error`. If it has a body, the connection is closed afterwards.

    Args:
        error: What the client is told.
        scope, receive, send: The request.
        linger_seconds: How long a client may go on sending its body.
        linger_bytes: How many bytes of its body are read and discarded.
    """
    response = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
    if not _has_body(scope):
        await response(scope, receive, send)
        return
    response.headers["connection"] = "close"

    async def send_and_linger(message: Message) -> None:
        """Send the complete answer at once, but mark its end a little later. The server then closes the connection.

        If it were closed while the client is still sending, the client could lose the answer.
        """
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        await _linger(receive, linger_seconds, linger_bytes)
        await send({"type": "http.response.body", "body": b""})

    await response(scope, receive, send_and_linger)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0"


async def _linger(receive: Receive, seconds: float, most: int) -> None:
    """Read and discard what the client still sends, up to a limit of time and size."""
    taken, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while more and taken < most:
                message = await receive()
                taken += len(message.get("body", b""))
                more = message.get("more_body", False)
