"""Connections: one request at a time, with limits on its head, on the time it takes to arrive and on that to answer.

uvicorn parses whatever it receives, at once. So it keeps requests that wait for others of the same connection, and
heads of any size, before an API key is checked. And it limits only the time between two requests: it has no limit for a
client that connects and sends nothing, that sends the head of its request one byte at a time, or that does not read.
TCP itself notices only after hours that a client has disappeared without closing the connection.

The parser is fed one line at a time, and as much of a body as its head or the size of its chunk announces. This only
determines where the data is cut: what it means is the parser's decision. As a request ends at the end of such a piece,
nothing behind it is parsed before it has been answered.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ocr_server.errors import ApiError, HeadTooLarge, InvalidRequest
from ocr_server.memory import MemoryBudget, Use
from ocr_server.transport.connection_limits import Activity, ConnectionLimits

LEAST_TAKEN = 49_152
"""Number of bytes of a waiting answer that a client must receive within the time limit. This is the difference between
asyncio's high-water and low-water marks, at which writing pauses and resumes."""
MAX_HEAD_BYTES = 65_536
"""Most bytes of a request's head: its first line, its header fields, its trailers, and the extensions of its chunks."""
MAX_FIELDS = 100
"""Most header fields of a request, trailers included."""
MAX_HELD = 65_536
"""Most bytes that are received and not parsed, of one connection."""
HEAD_COPIES = 4
"""Bytes that a byte of a head takes in memory: its URL is kept as it was received, decoded, and in parts."""
SMALL_HEAD_BYTES = 32_768
"""Memory of a connection's head and unparsed bytes that is never refused. The limit on connections bounds it, and
without it, the probes would fail whenever others use the budget."""
LINGER_SECONDS = 1.0
"""How long a refused connection stays open, so that a client which is still sending receives the answer."""
PEER_SECONDS = 1.0
"""How often a connection that is not read is asked whether its client has left."""
PROBE_SECONDS = 15
"""Seconds between TCP keep-alive probes."""
_TINY_CHUNKS = re.compile(b"(?:%b)++" % b"|".join(b"%x\r\n.{%d}\r\n" % (n, n) for n in range(1, 16)), re.DOTALL | re.I)
"""Chunks of 1 to 15 bytes without extensions. They are parsed all at once, which costs a tenth."""
_ESTABLISHED = 1  # TCP_ESTABLISHED of <netinet/tcp.h>


def protocol(
    *,
    receive_timeout: float,
    send_timeout: float,
    memory: MemoryBudget,
    connections: ConnectionLimits | None = None,
) -> Any:
    """Return what uvicorn creates connections with, as its option `http`.

    Args:
        receive_timeout: Seconds within which the head of a request must arrive, counted from the start of the
            connection or from the first byte of the head.
        send_timeout: Seconds within which the client must receive LEAST_TAKEN bytes of an answer that waits.
        memory: What heads draw on, and what is received before it can be parsed.
        connections: The connections of the server; without it, they have the default limits.
    """
    return partial(
        Connection,
        receive_timeout=receive_timeout,
        send_timeout=send_timeout,
        memory=memory,
        connections=connections or ConnectionLimits(),
        buffer=bytearray(MAX_HELD),
    )


class Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's connection, with the limits of this module."""

    flow: _Flow

    def __init__(
        self,
        *arguments: Any,
        receive_timeout: float,
        send_timeout: float,
        memory: MemoryBudget,
        connections: ConnectionLimits,
        buffer: bytearray,
        **options: Any,
    ) -> None:
        """Args:
        buffer: What data is received into. All connections share it: it is copied from there immediately.
        """
        super().__init__(*arguments, **options)
        self._receive_timeout, self._send_timeout = receive_timeout, send_timeout
        self._memory = memory.reserve(Use.HEADS)
        self._connections = connections
        self._buffer = memoryview(buffer)
        self._received = bytearray()  # and not parsed: a part of a line, or what follows a request in progress
        self._piece = b""  # what is being parsed
        self._bulk = 0  # number of bytes of a body or chunk that are still to come
        self._is_in_bulk = False  # whether the piece is a part of that
        self._in_head = True
        self._head_bytes = 0  # of the request that is being received or answered
        self._fields = 0
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._taking_timer: asyncio.TimerHandle | None = None
        self._peer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        try:
            self._connections.add(self, self.client[0] if self.client else "")
        except ApiError as error:
            self._refuse(error)
        else:
            self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._taking_timer, self._peer_timer):
            _cancelled(timer)
        self._received.clear()
        self._memory.close()
        self._connections.remove(self)
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close the connection immediately: another one takes its place."""
        self.transport.abort()

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[: MAX_HELD - len(self._received)]

    def buffer_updated(self, nbytes: int) -> None:
        if not self._refused:  # otherwise the data is discarded
            self._unset_keepalive_if_required()
            self._received += self._buffer[:nbytes]
            self._proceed()

    def _proceed(self) -> None:
        """Parse what has been received, up to the end of a request that is not answered yet."""
        while self._received and not (self._is_answering() or self._refused or self.transport.is_closing()):
            if not (self._in_head or self._bulk) and (chunks := _TINY_CHUNKS.match(self._received)):
                size = self._bulk = chunks.end()
            else:
                size = min(self._bulk, len(self._received)) or self._received.find(b"\n") + 1
            if not size:  # a part of a line
                if self._head_bytes + len(self._received) >= MAX_HEAD_BYTES:
                    self._refuse(_head_too_large())
                break
            self._piece = bytes(self._received[:size])
            del self._received[:size]
            self._parse()
        self._settle()

    def _parse(self) -> None:
        self._is_in_bulk = self._bulk > 0
        if self._is_in_bulk:
            self._bulk -= len(self._piece)
        else:
            self._head_bytes += len(self._piece)
            if self._in_head and self._piece[:8].lower() == b"upgrade:":
                return  # no other protocol is spoken here, and the parser would not parse the body
        try:
            self.parser.feed_data(self._piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._fields <= MAX_FIELDS:
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(InvalidRequest("The request is not valid HTTP/1.1.", code="invalid_http"))
                return
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            self._refuse(_head_too_large())

    def _is_answering(self) -> bool:
        """Return whether a request has been received and not been answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    # Called by the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fields = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise ValueError("too many fields")  # ends the parsing
        if self._in_head:  # trailers are dropped: the application may have read the head before
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._bulk = int(next((value for name, value in self.headers if name == b"content-length"), b"0"))
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":  # without chunks, the end of the connection is that of the answer
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = _UntilClosed()

    def on_chunk_header(self) -> None:
        if self._is_in_bulk:  # of tiny chunks
            return
        size = int(self._piece.partition(b";")[0], 16)
        self._head_bytes -= len(b"%x\r\n" % size)  # only extensions count
        self._bulk = size + len(b"\r\n") if size else 0  # trailers follow the last one

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._bulk = True, 0
        if self.cycle.response_complete:
            self._head_bytes = 0

    # Answering

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head:
            self._head_bytes = 0
        if self._received:
            self._unset_keepalive_if_required()
            self.loop.call_soon(self._proceed)
        else:
            self._settle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        self._taking_timer = _cancelled(self._taking_timer)
        super().resume_writing()

    def _expect_taking(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._taking_timer = self.loop.call_later(self._send_timeout, partial(self._check_taking, waiting))

    def _check_taking(self, waited: int) -> None:
        if waited - self.transport.get_write_buffer_size() < LEAST_TAKEN:
            self.logger.warning("Connection closed: the client receives its answer too slowly.")
            self.transport.abort()
        else:
            self._expect_taking()

    def _refuse(self, error: ApiError) -> None:
        """Answer with `error` and close the connection."""
        self._refused = True
        self._received.clear()
        self._head_bytes = 0
        self.flow.hold(False)  # what else arrives is discarded
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps(error.body()).encode()
        fields = {
            **error.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self._connections.linger(self)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _settle(self) -> None:
        """Bring the timers, the reservation of memory and so on in line with the state of the connection."""
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        kept = self.timeout_keep_alive_task is not None
        if busy or kept or self._refused:
            self._head_timer = _cancelled(self._head_timer)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._receive_timeout, self.transport.abort)
        self._connections.note(self, Activity.BUSY if busy else Activity.KEPT if kept else Activity.WAITS)
        self._hold(len(self._received) >= MAX_HELD)
        size = len(self._received) + HEAD_COPIES * self._head_bytes
        more = size - self._memory.size
        try:
            if more <= 0:
                self._memory.shrink_to(size)
            elif size <= SMALL_HEAD_BYTES:
                self._memory.note(more)
            else:
                self._memory.grow(more)
        except ApiError as error:
            self._refuse(error)

    def _hold(self, hold: bool) -> None:
        """Pause reading if the client sends more requests than are answered.

        While nothing is read, asyncio does not notice that the client has left, so the operating system is asked. It
        knows unless the client has sent more than fits in its buffers: then the answer is sent first.
        """
        self.flow.hold(hold)
        if not hold:
            self._peer_timer = _cancelled(self._peer_timer)
        elif self._peer_timer is None:
            self._peer_timer = self.loop.call_later(PEER_SECONDS, self._check_peer)

    def _check_peer(self) -> None:
        self._peer_timer = None
        peer = self.transport.get_extra_info("socket")
        if peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
            self.transport.abort()
        else:
            self._hold(self.flow.held)


class _Flow(FlowControl):
    """uvicorn's flow control, in which reading can also be paused for another reason than a body that waits."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.held = False

    def pause_reading(self) -> None:
        self.read_paused = True
        self._apply()

    def resume_reading(self) -> None:
        self.read_paused = False
        self._apply()

    def hold(self, held: bool) -> None:
        """Pause reading, or resume it if no body waits."""
        self.held = held
        self._apply()

    def _apply(self) -> None:
        if self.read_paused or self.held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class _UntilClosed(int):
    """The length of an answer that has no known length. uvicorn subtracts what it sends, down to 0."""

    def __lt__(self, _: int) -> bool:
        return False

    def __sub__(self, _: int) -> _UntilClosed:
        return self

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = int.__hash__


def _head_too_large() -> HeadTooLarge:
    limits = f"the limits are {MAX_HEAD_BYTES:,} bytes and {MAX_FIELDS} fields"
    return HeadTooLarge(f"The head of the request is too large: {limits}.")


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
