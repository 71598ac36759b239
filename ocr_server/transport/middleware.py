"""Middleware: request ids, logging, security headers, limits of bodies, and requests that a shutdown cuts off.

These are plain ASGI middleware classes. Starlette's `BaseHTTPMiddleware` would interfere with streams.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import ApiError, TimedOut, TooLarge, Unavailable
from ocr_server.memory import MemoryBudget, Use
from ocr_server.observability import logs, metrics, tracing
from ocr_server.transport.auth import sharer_of
from ocr_server.transport.disconnect import CLIENT_CLOSED_REQUEST

REQUEST_ID = "x-request-id"
IGNORED = "x-ignored-parameters"
MAX_IGNORED_CHARS = 100
"""Maximum length of each name in this header."""
DRAIN_BYTES = 100_000_000
DRAIN_SECONDS = 10
"""How much of a refused body is read and discarded, and for how long."""
BYTES_HELD = 3
"""Bytes that a byte of a JSON body takes in memory: as it was received, as text, and decoded."""
RESTART_SECONDS = 10.0
"""`Retry-After` of requests that a shutdown cuts off. The server may have been replaced by then."""
LAST_WORD_SECONDS = 1.0
"""Time limit for sending the error to the client of such a request."""
_SOUND_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestId:
    """Adds an `x-request-id` to every response: the id that the client sent, or a new one."""

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


class IgnoredParameters:
    """Adds `x-ignored-parameters` to the response: the fields of the request that have no effect, if there are any."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_names(message: Message) -> None:
            ignored = scope.get("state", {}).get("ignored")
            if message["type"] == "http.response.start" and ignored:
                # The names are the client's; what a header cannot contain, or separates names, is percent-encoded.
                MutableHeaders(scope=message)[IGNORED] = ", ".join(quote(name)[:MAX_IGNORED_CHARS] for name in ignored)
            await send(message)

        await self._app(scope, receive, send_with_names)


class CutOff:
    """Answers requests that a shutdown cuts off: with 503, or with an error frame if the response is a stream."""

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
        except asyncio.CancelledError:  # by the server; if the client disconnects, the route handles it
            error = Unavailable("The server is shutting down. Try again later.", retry_after=RESTART_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    if begun is None:
                        response = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
                        await response(scope, receive, send)
                    elif MutableHeaders(scope=begun).get("content-type", "").startswith("text/event-stream"):
                        last = f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"
                        await send({"type": "http.response.body", "body": last.encode()})


class Observed:
    """Logs and counts every request when it has ended, in whichever way.

    The status is the one that was sent, except 499 if the client disconnected before the end of the response, 500 if
    the response failed, and 503 if a shutdown cut it off.
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
                client=state.get("client_name", logs.ANONYMOUS),
                seconds=seconds,
                reading=state.get("reading"),
                ignored=state.get("ignored", ()),
            )


def route_of(scope: Scope) -> str:
    """Return the template of the route that handled a request, such as `/v1/models/{model_id}`, or `none`."""
    route = scope.get("route")
    if isinstance(route, Mount):
        return f"{route.path}/*"
    path: str = getattr(route, "path_format", getattr(route, "path", "none"))  # without the types of parameters
    return path


class SafeHeaders:
    """Adds headers against content sniffing, embedding in pages of other origins, and framing of HTML pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
                    headers.setdefault("cache-control", "no-store")
                headers["cross-origin-resource-policy"] = "same-origin"
                if headers.get("content-type", "").startswith("text/html"):
                    headers["referrer-policy"] = "no-referrer"
                    headers["x-frame-options"] = "DENY"
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BodyLimit:
    """Limits the size of a body, the memory of all bodies together, and the time in which a body must arrive.

    The received part of a body counts until its request has ended: a JSON body BYTES_HELD times, a form once, since
    the files of forms are kept on disk until they are read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: int,
        memory: MemoryBudget,
        timeout: float,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        """Args:
        app: The next application.
        limit: Maximum size of a body in bytes.
        memory: What the bodies draw on. Requests for which there is no room are refused with 429.
        timeout: Seconds from the head of the request to the end of its body.
        limits: Maximum sizes for certain paths, instead of `limit`.
        """
        self._app = app
        self._limit = limit
        self._limits = limits or {}
        self._memory = memory
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        held = 1 if headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data") else BYTES_HELD
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
                raise TimedOut(f"The request body did not arrive within {self._timeout:g} s.") from None
            whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            received += size
            if max(received, declared) > limit:
                await _drain(receive, message)
                raise TooLarge(f"The request body exceeds the limit of {limit // 1_000_000} MB.", code="body_too_large")
            try:
                body.grow(held * size)
                body.check(held * (declared - received))
            except ApiError:
                await _drain(receive, message)
                raise
            return message

        with self._memory.reserve(Use.BODIES, client=sharer_of(scope)) as body:
            await self._app(scope, receive_within_limits, send)


async def _drain(receive: Receive, message: Message) -> None:
    """Read and discard the rest of a body, up to a limit of time and size.

    Otherwise, a client that is still sending could see a broken connection instead of the response.
    """
    drained = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while message.get("more_body") and drained < DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
