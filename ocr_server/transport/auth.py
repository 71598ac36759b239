"""Authentication by API keys, before the body of a request is read."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ocr_server.errors import Unauthorized
from ocr_server.observability.logs import ANONYMOUS
from ocr_server.transport.keys import KeyRing
from ocr_server.transport.negotiation import PAGE, prefers_html
from ocr_server.transport.refusal import refuse

PROBES = frozenset({"/livez", "/readyz", "/ping", "/health"})
"""Paths for health checks. They need no key, since they show only the state of the server."""
_BEARER = re.compile(rb"bearer +([!-~]+)", re.IGNORECASE)


class ApiKeys:
    """ASGI middleware that refuses requests without a valid API key with 401.

    The label of the key is stored in `scope["state"]["client"]`. If no keys are configured, all requests are accepted.
    CORS preflight requests, which cannot have a key, are answered by another middleware before this one. The files of
    the web page need no key; the requests that the page sends do.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, *, metrics_need_one: bool = True) -> None:
        """Args:
        app: The next application.
        ring: The valid keys.
        metrics_need_one: Whether `/metrics` needs a key.
        """
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
        """Return whether a request needs no key, by exactly the path that the router uses."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        if path == "/":
            return prefers_html(Headers(scope=scope).get("accept", ""))  # browsers are redirected to the web page
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
        "Invalid API key." if known else "Missing API key. Send it in the header 'Authorization: Bearer KEY'."
    )
    await refuse(error, scope, receive, send)
