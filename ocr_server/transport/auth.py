"""Whose request it is: API keys, checked before anything of a request's body is read."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import Unauthorized
from ocr_server.observability.logs import ANONYMOUS
from ocr_server.transport.keys import KeyRing
from ocr_server.transport.negotiation import PAGE, prefers_html

PROBES = frozenset({"/livez", "/readyz", "/ping", "/health"})
"""What a load balancer asks; they tell nothing but the state."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 10_000_000
_BEARER = re.compile(rb"bearer +([!-~]+)", re.IGNORECASE)


class ApiKeys:
    """Let through what has a valid key, and say in `scope["state"]["client"]` whose it is.

    With no keys set, everything is let through. CORS preflights, which can't have a key, are answered before they
    come here. The web page is free, as its requests are not.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, *, metrics_need_one: bool = True) -> None:
        self._app = app
        self._ring = ring
        self._free = PROBES if metrics_need_one else PROBES | {"/metrics"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["client"] = ANONYMOUS
        if self._ring.open:
            await self._app(scope, receive, send)
            return
        key = _key(scope)
        owner = None if key is None else self._ring.owner(key)
        if owner is None and not self._is_free(scope):
            await _refuse(scope, receive, send, known=key is not None)
            return
        state["client"] = owner or ANONYMOUS
        await self._app(scope, receive, send)

    def _is_free(self, scope: Scope) -> bool:
        """By the very path that the router goes by, and nothing like it."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        if path == "/":
            return prefers_html(Headers(scope=scope).get("accept", ""))  # it is sent on to the page
        return path in self._free or path == PAGE.rstrip("/") or path.startswith(PAGE)


def _key(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    bearer = _BEARER.fullmatch(given[0].strip()) if len(given) == 1 else None
    return None if bearer is None else bearer[1]


async def _refuse(scope: Scope, receive: Receive, send: Send, *, known: bool) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    error = Unauthorized(
        "The API key is not valid." if known else "An API key is needed: send it as 'Authorization: Bearer KEY'."
    )
    response = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
    if not _has_body(scope):
        await response(scope, receive, send)
        return
    response.headers["connection"] = "close"

    async def send_and_linger(message: Message) -> None:
        """The whole answer goes out at once; its end, upon which the server closes the connection, a little later.
        Closed on a client that is still sending, the connection would break before the answer has been seen."""
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        await _linger(receive)
        await send({"type": "http.response.body", "body": b""})

    await response(scope, receive, send_and_linger)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0"


async def _linger(receive: Receive) -> None:
    """Throw away what the client still sends, for a short time and not much of it."""
    taken, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while more and taken < LINGER_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                more = message.get("more_body", False)
