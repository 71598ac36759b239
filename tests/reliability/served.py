"""The app with a fake engine behind real connections, for what an in-process transport can't simulate."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import uvicorn
from starlette.types import ASGIApp

from ocr_server.memory import MemoryBudget
from ocr_server.transport.connection_limits import ConnectionLimits
from ocr_server.transport.connections import protocol, set_options


@contextmanager
def served(
    app: ASGIApp,
    *,
    receive_timeout: float = 30,
    send_timeout: float = 30,
    memory: MemoryBudget | None = None,
    connections: ConnectionLimits | None = None,
) -> Iterator[tuple[str, int]]:
    """Serve `app` in a thread, with the connection limits of the real server.

    Args:
        receive_timeout: seconds that a client may take to send the head of a request.
        send_timeout: seconds that a client may take to accept data.
        memory: what the heads of requests draw on; by default, there is enough of it.
        connections: limits on connections.

    Yields:
        host and port.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    set_options(listener, send_timeout)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        log_level="error",
        http=protocol(
            receive_timeout=receive_timeout,
            send_timeout=send_timeout,
            memory=memory or MemoryBudget(1_000_000_000),
            connections=connections,
        ),
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started, 60)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> float:
    """Wait until `condition()` is true, and return the seconds it took. Fails after `seconds`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"the condition was not met within {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - started


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """Return a POST request as bytes; `length` is its `Content-Length`, by default the length of the body."""
    head = f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


class Client:
    """A connection with a small receive window, so that most of an unread answer stays with the server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(60)  # a limit against hanging
        self.socket.connect(address)
        self.reset = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def is_connected(self) -> bool:
        """Return whether the server's end of the connection still exists, possibly closed with unsent data."""
        port = self.socket.getsockname()[1]
        return any(each.raddr and each.raddr.port == port for each in psutil.net_connections("tcp4"))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> bytes:
        """Read a complete response that has a `Content-Length`."""
        read = b""
        while not (found := re.match(rb"(?s).*content-length: (\d+)\r\n.*?\r\n\r\n", read)) or (
            len(read) < found.end() + int(found[1])
        ):
            piece = self.socket.recv(65536)
            assert piece, read
            read += piece
        return read

    def rest(self) -> bytes:
        """Return what arrives until the server closes the connection."""
        read = b""
        while piece := self.socket.recv(65536):
            read += piece
        return read

    def ended(self) -> bool:
        """Read until the connection ends. Return False if it does not."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            self.reset = True
        except TimeoutError:
            return False
        return True
