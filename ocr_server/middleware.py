"""Plain ASGI middleware, which unlike Starlette's base class leaves streams alone."""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import TooLarge

REQUEST_ID = "x-request-id"
DRAIN_BYTES = 100_000_000
DRAIN_SECONDS = 10
_SOUND_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestId:
    """Give every answer an `x-request-id`: the client's own, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
        request_id = given if _SOUND_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """Stop reading a body that is larger than `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        declared = int(length[:20]) if length.isdigit() else 0
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, declared) > self._limit:
                await _drain(receive, message)
                raise TooLarge(f"The request body is larger than {self._limit // 1_000_000} MB.", code="body_too_large")
            return message

        await self._app(scope, receive_within_limit, send)


async def _drain(receive: Receive, message: Message) -> None:
    """Throw away what still comes, within bounds: a client that is sending would otherwise see a broken
    connection instead of the answer."""
    drained = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while message.get("more_body") and drained < DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
