"""Stop the work of a client that has gone away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import Request, Response

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499


async def unless_disconnected(request: Request, work: Coroutine[None, None, Response]) -> Response:
    """Run `work`, and cancel it as soon as the client of `request` disconnects.

    The body must have been read: what still comes on the connection is its end. It does _not_ poll
    `request.is_disconnected`, which would only look now and then.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody is there to see it
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
