"""Limits for connections: on the head of a request, on the time it takes to arrive, and on that to receive an answer.

uvicorn limits only the time between two requests. It has no limit for a client that connects and sends nothing, that
sends the head of its request one byte at a time, or that does not read. TCP itself notices only after hours that a
client has disappeared without closing the connection. Nor does it limit the size of a head, which it keeps in memory
before the API key is checked.
"""

from __future__ import annotations

import asyncio
import json
import socket
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ocr_server.errors import HeadTooLarge

LEAST_TAKEN = 49_152
"""Number of bytes of a waiting answer that a client must receive within the time limit. This is the difference between
asyncio's high-water and low-water marks, at which writing pauses and resumes."""
MAX_HEAD_BYTES = 65_536
"""Most bytes of a request's head: its first line and its header fields."""
MAX_FIELDS = 100
"""Most header fields of a request, trailers included."""
PIECE_BYTES = 65_536
"""Most bytes that are parsed before the limits are checked again."""
LINGER_SECONDS = 1.0
"""How long a refused connection stays open, so that a client which is still sending receives the answer."""
PROBE_SECONDS = 15
"""Seconds between TCP keep-alive probes."""


def protocol(*, receive_timeout: float, send_timeout: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class for connections, extended with time limits.

    Args:
        receive_timeout: Seconds within which the head of a request must arrive, counted from the start of the
            connection or from the first byte of the head.
        send_timeout: Seconds within which the client must receive LEAST_TAKEN bytes of an answer that waits.
    """

    class Connection(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._head: asyncio.TimerHandle | None = None
            self._taking: asyncio.TimerHandle | None = None
            self._head_bytes = 0
            self._too_many_fields = self._refused = False

        def data_received(self, data: bytes) -> None:
            remaining = memoryview(data)
            while remaining and not self._refused and not self.transport.is_closing():
                piece, remaining = remaining[:PIECE_BYTES], remaining[PIECE_BYTES:]
                if self._head is not None:  # a piece in which a head begins is not counted: it may be another's end
                    self._head_bytes += len(piece)
                super().data_received(bytes(piece))
                if self._head is not None and self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse()

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            if len(self.headers) > MAX_FIELDS:
                self._too_many_fields = True
                raise ValueError("too many fields")  # ends the parsing: `send_400_response` is called

        def send_400_response(self, msg: str) -> None:
            if self._too_many_fields:
                self._refuse()
            else:
                super().send_400_response(msg)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self.cycle is not None:  # the head of the first request is counted from the start of the connection
                self._head_bytes = 0
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

        def _refuse(self) -> None:
            """Answer with 431 and close the connection; a client that is owed other answers gets none."""
            self._refused = True
            self._head = _cancelled(self._head)
            if self.cycle is not None and not self.cycle.response_complete:
                self.transport.abort()
                return
            limits = f"the limits are {MAX_HEAD_BYTES:,} bytes and {MAX_FIELDS} fields"
            error = HeadTooLarge(f"The head of the request is too large: {limits}.")
            body = json.dumps(error.body()).encode()
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
            )
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

        def _expect_head(self) -> None:
            if self._head is None:
                self._head = self.loop.call_later(receive_timeout, self.transport.abort)

        def _expect_taking(self) -> None:
            waiting = self.transport.get_write_buffer_size()
            self._taking = self.loop.call_later(send_timeout, partial(self._check_taking, waiting))

        def _check_taking(self, waited: int) -> None:
            if waited - self.transport.get_write_buffer_size() < LEAST_TAKEN:
                self.logger.warning("Connection closed: the client receives its answer too slowly.")
                self.transport.abort()
            else:
                self._expect_taking()

    return Connection


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


def set_options(listener: socket.socket, send_timeout: float) -> None:
    """Set the options of the connections that `listener` accepts.

    - TCP_NODELAY: data is sent without delay. asyncio sets this option itself, but not for sockets that, like these, do
      not name their protocol. Without it, the first text of a stream is sent only when the client has acknowledged the
      head before it: after 40 ms.
    - Keep-alive: a connection ends if nothing has been heard from the client for about `send_timeout` seconds.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * send_timeout))
