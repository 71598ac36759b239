"""Authentication by API keys, before the body of a request is read."""

from __future__ import annotations

import re
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import ApiError, TooMany, Unauthorized
from ocr_server.observability.logs import ANONYMOUS
from ocr_server.transport.connection_limits import network_of
from ocr_server.transport.keys import KeyRing
from ocr_server.transport.negotiation import PAGE, prefers_html
from ocr_server.transport.refusal import refuse

PROBES = frozenset({"/livez", "/readyz", "/ping", "/health"})
"""Paths for health checks. They need no key, since they show only the state of the server."""
READING = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods of requests without a body that counts."""
MISSING = "Missing API key. Send it in the header 'Authorization: Bearer KEY'."
INVALID = "Invalid API key."
EXPIRED = "The API key has expired."
_SIGNED = re.compile(r"/v1/files/[^/]+/signed")
_BEARER = re.compile(rb"bearer +([!-~]+)", re.IGNORECASE)


class ApiKeys:
    """ASGI middleware that refuses requests without a valid API key with 401.

    In `scope["state"]`, the owner of the key is stored as `client`, its label as `client_name`, and its quota as
    `quota`. If no keys are configured, all requests are accepted. A key that has expired, or whose quota of bytes is
    used up, is refused; requests that only read need no quota.
    CORS preflight requests, which cannot have a key, are answered by another middleware before this one. The files of
    the web page need no key; the requests that the page sends do. Signed URLs of files have a signature instead.
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
        given = _key(scope)
        key = None if given is None else self._ring.find(given)
        has_expired = key is not None and key.expires is not None and time.time() >= key.expires
        if key is None or has_expired:
            if self._is_free(scope):
                await self._app(scope, receive, send)
            else:
                reason = EXPIRED if has_expired else MISSING if given is None else INVALID
                await _refuse(Unauthorized(reason), scope, receive, send)
            return
        quota = self._ring.quota(key)
        state |= {"client": key.owner, "client_name": key.label, "quota": quota}
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        try:
            quota.check_bytes(_declared_bytes(scope))
        except TooMany as error:
            await _refuse(error, scope, receive, send)
            return

        async def counted_receive() -> Message:
            message = await receive()
            quota.take_bytes(len(message.get("body", b"")))
            return message

        await self._app(scope, counted_receive, send)

    def _is_free(self, scope: Scope) -> bool:
        """Return whether a request needs no key, by exactly the path that the router uses."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        if path == "/":
            return prefers_html(Headers(scope=scope).get("accept", ""))  # browsers are redirected to the web page
        return path in self._free or is_signed(path) or path == PAGE.rstrip("/") or path.startswith(PAGE)


def is_signed(path: str) -> bool:
    """Return whether a path is that of signed URLs. Its route checks the signature, which takes the place of a key."""
    return _SIGNED.fullmatch(path) is not None


def sharer_of(scope: Scope) -> str:
    """Return who takes turns with others: the owner of the request's API key, or else the network of the client."""
    client: str = scope.get("state", {}).get("client", ANONYMOUS)
    address = scope.get("client")  # None for a Unix socket
    return network_of(address[0]) if client == ANONYMOUS and address and address[0] else client


def _key(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    bearer = _BEARER.fullmatch(given[0].strip()) if len(given) == 1 else None
    return None if bearer is None else bearer[1]


def _declared_bytes(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")[:20]
    return int(length) if length.isascii() and length.isdigit() else 0


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await refuse(error, scope, receive, send)
