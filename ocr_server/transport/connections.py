"""Connections that don't wait for ever: for a request to come, or for an answer to be taken.

uvicorn has a limit for the time between two requests, but none for a client that connects and says nothing, sends its
request's head a byte at a time, or does not read. Neither does TCP for a client that vanished without a word, save
after hours.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LEAST_TAKEN = 49_152
"""Bytes of a waiting answer that a client must take in the time it is given: what lies between asyncio's high and low
water, from which on an answer waits and goes on."""
PROBE_SECONDS = 15
"""Between two of TCP's own questions whether the other side is still there."""


def protocol(*, receive_timeout: float, send_timeout: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol for a connection, with limits of time.

    Args:
        receive_timeout: seconds for a request's head, from the connection or the head's first byte.
        send_timeout: seconds in which LEAST_TAKEN bytes of what could not be sent at once must have been.
    """

    class Connection(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._head: asyncio.TimerHandle | None = None
            self._taking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect_head()

        def on_headers_complete(self) -> None:
            self._head = _cancelled(self._head)
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_taking()

        def resume_writing(self) -> None:
            self._taking = _cancelled(self._taking)
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head, self._taking = _cancelled(self._head), _cancelled(self._taking)
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            if self._head is None:
                self._head = self.loop.call_later(receive_timeout, self.transport.abort)

        def _expect_taking(self) -> None:
            waiting = self.transport.get_write_buffer_size()
            self._taking = self.loop.call_later(send_timeout, partial(self._check_taking, waiting))

        def _check_taking(self, waited: int) -> None:
            if waited - self.transport.get_write_buffer_size() < LEAST_TAKEN:
                self.logger.warning("A client that takes its answer too slowly is cut off.")
                self.transport.abort()
            else:
                self._expect_taking()

    return Connection


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


def set_options(listener: socket.socket, send_timeout: float) -> None:
    """Have the connections that `listener` accepts send what is written at once, and end when their other side has not
    been heard of for about `send_timeout` seconds.

    asyncio asks for the first itself, but not of sockets that, as these, don't name their protocol. Without it the
    first text of a stream lies here until the client has acknowledged the head before it: 40 ms.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * send_timeout))
