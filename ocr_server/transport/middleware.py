"""Plain ASGI middleware, which unlike Starlette's base class leaves streams alone."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import TimedOut, TooLarge, TooMany, Unavailable
from ocr_server.observability import logs, metrics, tracing
from ocr_server.transport.disconnect import CLIENT_CLOSED_REQUEST

REQUEST_ID = "x-request-id"
DRAIN_BYTES = 100_000_000
DRAIN_SECONDS = 10
BODIES_RETRY_SECONDS = 5.0
RESTART_SECONDS = 10.0
"""`Retry-After` of what a server that stops has cut off: there may be another one by then."""
LAST_WORD_SECONDS = 1.0
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


class CutOff:
    """Tell the client of a request that the server, shutting down, can't finish: by 503, in a stream by an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun: Message | None = None

        async def noted_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = message
            await send(message)

        try:
            await self._app(scope, receive, noted_send)
        except asyncio.CancelledError:  # by the server: that of a client who leaves goes no further than its route
            error = Unavailable("The server is shutting down; try again.", retry_after=RESTART_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    if begun is None:
                        response = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
                        await response(scope, receive, send)
                    elif MutableHeaders(scope=begun).get("content-type", "").startswith("text/event-stream"):
                        last = f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"
                        await send({"type": "http.response.body", "body": last.encode()})


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
            tracing.request_done(scope["method"], route, status)
            logs.access(
                method=scope["method"],
                route=route,
                status=status,
                client=state.get("client", logs.ANONYMOUS),
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
    """Bound the bytes of a body, those of all bodies together, and the time that one may take to come.

    A body counts, as far as it has been received, until its request has ended: so long it is in memory, about three
    times over, as bytes, as text and decoded.
    """

    def __init__(
        self, app: ASGIApp, *, limit: int, most_held: int, timeout: float, limits: Mapping[str, int] | None = None
    ) -> None:
        """Args:
        limit: bytes of one body.
        most_held: bytes of all bodies; what would go beyond is refused with 429.
        timeout: seconds from the request's head to the body's end.
        limits: of the bodies that are posted to certain paths, instead of `limit`.
        """
        self._app = app
        self._limit = limit
        self._limits = limits or {}
        self._most_held = most_held
        self._timeout = timeout
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        declared = int(length[:20]) if length.isdigit() else 0
        limit = self._limits.get(scope["path"].removeprefix(scope.get("root_path", "")), self._limit)
        until = asyncio.get_running_loop().time() + self._timeout
        received, whole = 0, False

        async def receive_within_limits() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise TimedOut(f"The request did not arrive within {self._timeout:g} s.") from None
            whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            received += size
            self._held += size
            if max(received, declared) > limit:
                await _drain(receive, message)
                raise TooLarge(f"The request body is larger than {limit // 1_000_000} MB.", code="body_too_large")
            if self._held + max(declared - received, 0) > self._most_held:
                await _drain(receive, message)
                raise TooMany(
                    "The server holds as many bytes of requests as it may; try again shortly.",
                    code="too_many_bytes",
                    retry_after=BODIES_RETRY_SECONDS,
                )
            return message

        try:
            await self._app(scope, receive_within_limits, send)
        finally:
            self._held -= received


async def _drain(receive: Receive, message: Message) -> None:
    """Throw away what still comes, within bounds: a client that is sending would otherwise see a broken
    connection instead of the answer."""
    drained = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while message.get("more_body") and drained < DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
