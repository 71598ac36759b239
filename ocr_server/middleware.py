"""Plain ASGI middleware, which unlike Starlette's base class leaves streams alone."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server import logs, metrics
from ocr_server.disconnect import CLIENT_CLOSED_REQUEST
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
        logs.request_id.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Observed:
    """Log and count every request when it has ended, whichever way it did.

    The status is the one that was sent, but 499 if the client left before the answer's end, 500 if the answer broke,
    and 503 if the server, shutting down, cut it off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent, status = 0, CLIENT_CLOSED_REQUEST

        async def observed_send(message: Message) -> None:
            nonlocal sent, status
            if message["type"] == "http.response.start":
                sent = message["status"]
            elif not message.get("more_body", False):
                status = sent
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception:
            status = 500
            raise
        except asyncio.CancelledError:
            status = 503
            raise
        finally:
            seconds = time.perf_counter() - started
            route, state = route_of(scope), scope.get("state", {})
            metrics.request_done(route, status, seconds)
            logs.access(
                method=scope["method"],
                route=route,
                status=status,
                client=state.get("client", "anonymous"),
                seconds=seconds,
                reading=state.get("reading"),
            )


def route_of(scope: Scope) -> str:
    """The template of the route that answered: `/v1/models/{model_id}`; `none` if none did."""
    route = scope.get("route")
    if isinstance(route, Mount):
        return f"{route.path}/*"
    path: str = getattr(route, "path", "none")
    return path


class SafeHeaders:
    """Tell browsers to take answers for what they are, and pages not to be framed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html"):
                    headers["referrer-policy"] = "no-referrer"
                    headers["x-frame-options"] = "DENY"
            await send(message)

        await self._app(scope, receive, send_with_headers)


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
