"""Server-sent events in OpenAI's formats: framing, keep-alive comments, the error frame and `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import NamedTuple

import anyio
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from ocr_server.errors import ApiError, UnexpectedFailure, out_of_resources
from ocr_server.transport.json_lines import one_line

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
"""Seconds between keep-alive comments."""
FIRST_EVENT_SECONDS = 5.0
"""How long the status line waits for the first event. An error in this time is answered with its own status. Afterwards
the answer begins with 200, and an error is sent as a frame."""


class ServerEvent(NamedTuple):
    """An event with a name, as in OpenAI's Responses API."""

    data: str
    """A single line, such as JSON."""
    name: str


Event = str | ServerEvent
"""The data of an event, a single line, or an event with a name."""


def error_frame(error: ApiError) -> Iterable[Event]:
    """Return how a stream of OpenAI's older APIs ends when it fails: an event with the error body."""
    return [json.dumps(error.body())]


async def event_stream(
    events: AsyncGenerator[Event],
    *,
    shutdown_timeout: float,
    patience: float = FIRST_EVENT_SECONDS,
    failed: Callable[[ApiError], Iterable[Event]] = error_frame,
    last: Iterable[Event] = ("[DONE]",),
) -> EventSourceResponse:
    """Return a response that streams `events`.

    Args:
        events: The events. The generator is closed when the client disconnects.
        shutdown_timeout: Seconds for which the stream may continue after the server was told to stop.
        patience: Seconds that the status line waits for the first event.
        failed: Returns the events that tell the client of an error, once the response has begun.
        last: Events after the end, also after that of an error.

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
    return _EventStream(first, events, _frames(first, events, failed, last), shutdown_timeout)


class _EventStream(EventSourceResponse):
    """A response that closes its events, whichever way it ends."""

    def __init__(
        self,
        first: asyncio.Future[Event],
        events: AsyncGenerator[Event],
        frames: AsyncIterator[bytes],
        shutdown_timeout: float,
    ) -> None:
        self._first = first
        self._events = events
        super().__init__(
            frames,
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


async def _frames(
    first: asyncio.Future[Event],
    events: AsyncGenerator[Event],
    failed: Callable[[ApiError], Iterable[Event]],
    last: Iterable[Event],
) -> AsyncIterator[bytes]:
    try:
        yield _frame(await first)
        async for event in events:
            yield _frame(event)
    except Exception as error:
        if isinstance(error, ApiError):
            shown: ApiError = error
        else:
            logger.exception("a stream failed unexpectedly")
            shown = out_of_resources(error) or UnexpectedFailure()
        for event in failed(shown):
            yield _frame(event)
    for event in last:
        yield _frame(event)


def _frame(event: Event) -> bytes:
    if isinstance(event, ServerEvent):
        return f"event: {event.name}\ndata: {one_line(event.data)}\n\n".encode()
    return f"data: {one_line(event)}\n\n".encode()


async def _end(first: asyncio.Future[Event], events: AsyncGenerator[Event]) -> None:
    """Cancel the wait for the first event, and close the events."""
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()
