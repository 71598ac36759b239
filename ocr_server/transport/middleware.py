"""Middleware: request ids, logging, security headers, HEAD, and requests that a shutdown cuts off.

These are plain ASGI middleware classes. Starlette's `BaseHTTPMiddleware` would interfere with streams.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from contextlib import suppress
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import Unavailable
from ocr_server.observability import logs, metrics, tracing
from ocr_server.transport.disconnect import CLIENT_CLOSED_REQUEST

REQUEST_ID = "x-request-id"
IGNORED = "x-ignored-parameters"
MAX_IGNORED_CHARS = 100
"""Maximum length of each name in this header."""
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


class HeadAsGet:
    """Answers HEAD like GET, without the body. The work for the body is ended as soon as the head is known."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        answered = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()
            await asyncio.sleep(0)

        work = asyncio.ensure_future(self._app(inner, receive, send_head))
        waiting = asyncio.ensure_future(answered.wait())
        try:
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            waiting.cancel()
            work.cancel()
            await asyncio.gather(work, waiting, return_exceptions=True)
            if "route" in inner:
                scope["route"] = inner["route"]  # for the log
