"""File descriptors: how many there are, and what happens when there are none left for a new connection."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ocr_server.observability import metrics
from ocr_server.transport.connection_limits import DEFAULT_CONNECTIONS, RETRY_SECONDS, ConnectionLimits

MOST_DESCRIPTORS = 65_536
"""The soft limit is raised to the hard one, but not beyond this: some programs close every possible descriptor when
they start, and this process is the parent of others."""
RESERVED = 192
"""Descriptors that connections leave to the rest of the process: files, pipes to decoders, the engine, downloads."""
SHED = 16
"""Number of idle connections that are closed when a new one cannot be accepted."""
TURNED_AWAY = 64
"""Most connections that are turned away at once."""
ACT_SECONDS = 0.5
"""Least time between two reactions. asyncio calls the handler dozens of times, then waits for a second."""
LOG_SECONDS = 60.0
"""Least time between two warnings that descriptors are short."""

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: %d\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
) % RETRY_SECONDS

logger = logging.getLogger(__name__)


def raise_limit() -> None:
    """Raise the limit on the descriptors of this process, to the hard limit or MOST_DESCRIPTORS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections(asked: int) -> int:
    """Return how many connections there may be.

    Args:
        asked: The setting; 0 means the default, or as many as there are descriptors for.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return asked or DEFAULT_CONNECTIONS
    room = max(16, descriptors - RESERVED, descriptors // 4)
    if asked > room:
        logger.warning("There are descriptors for %d connections, not for %d. Raise `ulimit -n`.", room, asked)
    return min(asked or DEFAULT_CONNECTIONS, room)


class OutOfDescriptors:
    """An exception handler for event loops, for a server that has no descriptor left for a new connection.

    asyncio calls it, and tries again after a second. Until then, idle connections are closed to make room. If there are
    none, the new connections are answered with 503, by means of a descriptor that is kept for this: otherwise they
    would wait without an answer. asyncio itself would log a traceback each time.
    """

    def __init__(self, listener: socket.socket, connections: ConnectionLimits) -> None:
        """Args:
        listener: The listening socket.
        connections: The connections of the server.
        """
        self._listener = listener
        self._connections = connections
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self._idle_until = self._silent_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        if not (
            isinstance(error, OSError)
            and error.errno in (errno.EMFILE, errno.ENFILE)
            and "accept" in context.get("message", "")
        ):
            loop.default_exception_handler(dict(context))
            return
        if loop.time() < self._idle_until:
            return
        self._idle_until = loop.time() + ACT_SECONDS
        if not self._connections.shed(SHED):
            self._turn_away()
        if loop.time() >= self._silent_until:
            self._silent_until = loop.time() + LOG_SECONDS
            logger.warning(
                "No file descriptor is left for new connections. Raise `ulimit -n`, or lower MAX_CONNECTIONS."
            )

    def close(self) -> None:
        """Close the spare descriptor."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _turn_away(self) -> None:
        self.close()
        with suppress(OSError):  # nobody is waiting any more, or another thread took the descriptor
            for _ in range(TURNED_AWAY):
                connection, _address = self._listener.accept()
                with connection, suppress(OSError):
                    connection.setblocking(False)
                    connection.send(_REFUSAL)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65_536)  # closing with unread data would discard the answer
                metrics.CONNECTIONS_REFUSED.labels(cause="descriptors").inc()
        with suppress(OSError):  # the next time
            self._spare = os.open(os.devnull, os.O_RDONLY)
