"""Server-sent events in OpenAI's format: framing, keep-alive comments, the error frame and `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from ocr_server.errors import ApiError, internal_error, out_of_resources

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
"""Seconds between keep-alive comments."""
FIRST_EVENT_SECONDS = 5.0
"""How long the status line waits for the first event. An error in this time is answered with its own status. Afterwards
the answer begins with 200, and an error is sent as a frame."""


async def event_stream(
    events: AsyncGenerator[str], *, shutdown_timeout: float, patience: float = FIRST_EVENT_SECONDS
) -> EventSourceResponse:
    """Return a response that streams `events`.

    Args:
        events: The data of the events, each a JSON text. The generator is closed when the client disconnects.
        shutdown_timeout: Seconds for which the stream may continue after the server was told to stop.
        patience: Seconds that the status line waits for the first event.

    Raises:
        ApiError: An error before the first event, within `patience` seconds.
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
    """A response that closes its events, whichever way it ends."""

    def __init__(self, first: asyncio.Future[str], events: AsyncGenerator[str], shutdown_timeout: float) -> None:
        self._first = first
        self._events = events
        super().__init__(
            _frames(first, events),
            ping=KEEP_ALIVE_SECONDS,
            sep="\n",  # of keep-alive comments
            # Without an event of its own, the stream would be cut off as soon as the server is told to stop.
            shutdown_event=anyio.Event(),
            # Streams that take too long end with an error frame (`middleware.CutOff`). This is the fallback.
            shutdown_grace_period=shutdown_timeout + 1,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # also if the client disconnected before the first frame was requested
            await _end(self._first, self._events)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Send without the library's time limit, which costs a fifth of the time for a token. See `connections`."""
        await send(message)


async def _frames(first: asyncio.Future[str], events: AsyncGenerator[str]) -> AsyncIterator[bytes]:
    try:
        yield _frame(await first)
        async for event in events:
            yield _frame(event)
    except ApiError as error:
        yield _frame(json.dumps(error.body()))
    except Exception as error:
        logger.exception("a stream failed unexpectedly")
        exhausted = out_of_resources(error)
        yield _frame(json.dumps(internal_error() if exhausted is None else exhausted.body()))
    yield _frame("[DONE]")


def _frame(data: str) -> bytes:
    """Frame `data`, which must be a single line, such as JSON."""
    return f"data: {data}\n\n".encode()


async def _end(first: asyncio.Future[str], events: AsyncGenerator[str]) -> None:
    """Cancel the wait for the first event, and close the events."""
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()
