"""Server-sent events as OpenAI sends them: framing, keep-alive, the error frame, `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from ocr_server.errors import ApiError, internal_error

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
FIRST_EVENT_SECONDS = 5.0
"""How long the status line waits for the first event. Until then an error still gets its own status;
after it the answer begins, and errors come as a frame."""


async def event_stream(
    events: AsyncGenerator[str], *, shutdown_timeout: float, patience: float = FIRST_EVENT_SECONDS
) -> EventSourceResponse:
    """Answer with `events`, each a JSON text.

    Args:
        events: closed when the client goes away.
        shutdown_timeout: seconds the stream may go on after the server was told to stop.
        patience: seconds the status line waits for the first event.

    Raises:
        ApiError: what goes wrong before the first event, if it does so soon.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=patience)
    except asyncio.CancelledError:
        await _end(first, events)
        raise
    if first.done() and (error := first.exception()) is not None:
        raise error
    return _EventStream(first, events, shutdown_timeout)


class _EventStream(EventSourceResponse):
    def __init__(self, first: asyncio.Future[str], events: AsyncGenerator[str], shutdown_timeout: float) -> None:
        self._first = first
        self._events = events
        super().__init__(
            _frames(first, events),
            ping=KEEP_ALIVE_SECONDS,
            sep="\n",  # of pings
            # Without an event of ours it would cut the stream at the first sign of a shutdown.
            shutdown_event=anyio.Event(),
            # The server cuts off what takes too long, with a word about it (`middleware.CutOff`); this is for the case
            # that it does not.
            shutdown_grace_period=shutdown_timeout + 1,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # also if the client left before the first frame was asked for
            await _end(self._first, self._events)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Without the library's scope for a time limit, which `connections.py` has: a fifth of what a token costs."""
        await send(message)


async def _frames(first: asyncio.Future[str], events: AsyncGenerator[str]) -> AsyncIterator[bytes]:
    try:
        yield _frame(await first)
        async for event in events:
            yield _frame(event)
    except ApiError as error:
        yield _frame(json.dumps(error.body()))
    except Exception:
        logger.exception("a stream broke")
        yield _frame(json.dumps(internal_error()))
    yield _frame("[DONE]")


def _frame(data: str) -> bytes:
    """`data` is one line, as JSON is."""
    return f"data: {data}\n\n".encode()


async def _end(first: asyncio.Future[str], events: AsyncGenerator[str]) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()
