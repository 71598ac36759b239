"""Bodies of requests: limits on their size, memory and time of arrival, and decompression."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import ApiError, InvalidRequest, TimedOut, TooLarge, UnsupportedEncoding
from ocr_server.memory import BYTES_HELD, MemoryBudget, Reservation, Use
from ocr_server.transport.auth import sharer_of
from ocr_server.transport.refusal import refuse

DRAIN_BYTES = 100_000_000
DRAIN_SECONDS = 10
"""How much of a refused body is read and discarded, and for how long."""
PIECE_BYTES = 1_000_000
"""How much is decompressed at a time, so that other requests are served in between."""
ENCODINGS = ("gzip", "x-gzip", "deflate")
"""Content encodings that are decompressed."""


class BodyLimit:
    """Limits the size of a body, the memory of all bodies together, and the time in which a body must arrive.

    The received part of a body counts until its request has ended: a JSON body BYTES_HELD times, a form once, since
    the files of forms are kept on disk until they are read. Compressed bodies are decompressed, and the limits apply
    to the result.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: int,
        memory: MemoryBudget,
        timeout: float,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        """Args:
        app: The next application.
        limit: Maximum size of a body in bytes.
        memory: What the bodies draw on. Requests for which there is no room are refused with 429.
        timeout: Seconds from the head of the request to the end of its body.
        limits: Maximum sizes for certain paths, instead of `limit`.
        """
        self._app = app
        self._limit = limit
        self._limits = limits or {}
        self._memory = memory
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        declared = int(length[:20]) if length.isdigit() else 0
        limit = self._limits.get(scope["path"].removeprefix(scope.get("root_path", "")), self._limit)
        try:
            decoder = _decoder(headers.get("content-encoding", ""))
            if declared > limit and headers.get("expect", "").lower() == "100-continue":
                raise _too_large(limit)  # the client asks before it sends
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        held = 1 if headers.get("content-type", "").lower().startswith("multipart/form-data") else BYTES_HELD
        with self._memory.reserve(Use.BODIES, client=sharer_of(scope)) as reservation:
            body = _Body(receive, reservation, limit=limit, declared=declared, held=held, timeout=self._timeout)
            await self._app(scope, body.receive if decoder is None else _Decoded(body, decoder).receive, send)


class _Body:
    """The body of a request, within its limits."""

    def __init__(
        self, receive: Receive, reservation: Reservation, *, limit: int, declared: int, held: int, timeout: float
    ) -> None:
        self._receive = receive
        self._reservation = reservation
        self._limit = limit
        self._declared = declared
        self._held = held
        self._timeout = timeout
        self._until = asyncio.get_running_loop().time() + timeout
        self._received = self._taken = 0
        self._is_whole = False

    async def receive(self) -> Message:
        """Return the next message of a body that is not compressed."""
        message = await self.part()
        if message["type"] == "http.request":
            await self.take(message, rest=max(self._declared - self._received, 0))
        return message

    async def part(self) -> Message:
        """Return the next message as it was sent. Raises TimedOut, TooLarge."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise TimedOut(f"The request body did not arrive within {self._timeout:g} s.") from None
        self._is_whole = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if max(self._received, self._declared) > self._limit:
            await self.drain()
            raise _too_large(self._limit)
        return message

    async def take(self, message: Message, *, rest: int = 0) -> None:
        """Count what the application receives. If it is too much, discard the rest of the body.

        Args:
            rest: How many bytes are still to come, as far as it is known.

        Raises:
            TooLarge, TooMany: It is too much for the limit, or for the memory.
        """
        size = len(message.get("body", b""))
        self._taken += size
        try:
            if self._taken > self._limit:
                raise _too_large(self._limit)
            self._reservation.grow(self._held * size)
            self._reservation.check(self._held * rest)
        except ApiError:
            await self.drain()
            raise

    async def drain(self) -> None:
        """Read and discard the rest of the body, up to a limit of time and size.

        Otherwise, a client that is still sending could see a broken connection instead of the response.
        """
        drained = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_whole and drained < DRAIN_BYTES:
                    message = await self._receive()
                    self._is_whole = not message.get("more_body", False)
                    drained += len(message.get("body", b""))


class _Decoded:
    """A body that is decompressed in pieces, each of which is counted before the next."""

    def __init__(self, body: _Body, decoder: _Decoder) -> None:
        self._body = body
        self._decoder = decoder
        self._rest = b""
        """What has been received and is not decompressed yet."""
        self._has_more = True

    async def receive(self) -> Message:
        while self._rest or self._has_more or self._decoder.has_more:
            if not (self._rest or self._decoder.has_more):
                message = await self._body.part()
                if message["type"] != "http.request":
                    return message
                self._rest, self._has_more = message.get("body", b""), message.get("more_body", False)
            try:
                piece, self._rest = self._decoder.decode(self._rest)
                ended = not (self._rest or self._has_more or self._decoder.has_more)
                if ended:
                    self._decoder.check_end()
            except InvalidRequest:
                await self._body.drain()
                raise
            await asyncio.sleep(0)
            if piece or ended:
                decoded: Message = {"type": "http.request", "body": piece, "more_body": not ended}
                await self._body.take(decoded)
                return decoded
        return await self._body.part()  # the client disconnects


class _Decoder:
    """Decompresses a body."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream: zlib._Decompress | None = zlib.decompressobj(zlib.MAX_WBITS | 16) if "gzip" in encoding else None
        self._ended = False
        self.has_more = False
        """Whether there is more to return without further data."""

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Return at most PIECE_BYTES, and the part of `data` that is left.

        Raises:
            InvalidRequest: The data is damaged, or something follows its end.
        """
        if self._stream is None:
            if not data:
                return b"", b""
            # The encoding is that of zlib. Some clients leave out its header, in which the lower half of a byte is 8.
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if data[0] & 15 == 8 else -zlib.MAX_WBITS)
        try:
            piece = self._stream.decompress(data, PIECE_BYTES)
        except zlib.error:
            raise self._damaged("damaged") from None
        if self._stream.unused_data:
            raise self._damaged("followed by other data")
        self._ended = self._stream.eof
        self.has_more = len(piece) == PIECE_BYTES and not self._ended
        return piece, self._stream.unconsumed_tail

    def check_end(self) -> None:
        """Raise InvalidRequest if the data is incomplete."""
        if not self._ended:
            raise self._damaged("incomplete")

    def _damaged(self, how: str) -> InvalidRequest:
        return InvalidRequest(
            f"The body is not valid {self._encoding} data: it is {how}.",
            param="content-encoding",
            code="invalid_encoding",
        )


def _decoder(encoding: str) -> _Decoder | None:
    """Return what decompresses a body; None if it is not compressed. Raises UnsupportedEncoding."""
    names = [name for each in encoding.lower().split(",") if (name := each.strip()) not in ("", "identity")]
    if not names:
        return None
    if len(names) > 1 or names[0] not in ENCODINGS:
        raise UnsupportedEncoding(encoding)
    return _Decoder(names[0])


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body exceeds the limit of {limit // 1_000_000} MB.", code="body_too_large")
