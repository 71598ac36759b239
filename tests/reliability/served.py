"""The app with a fake engine behind real connections, for what an in-process transport can't simulate."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from ocr_server.transport.connections import protocol, set_options


@contextmanager
def served(app: FastAPI, *, receive_timeout: float = 30, send_timeout: float = 30) -> Iterator[tuple[str, int]]:
    """Serve `app` in a thread, with the connection limits of the real server.

    Args:
        receive_timeout: seconds that a client may take to send the head of a request.
        send_timeout: seconds that a client may take to accept data.

    Yields:
        host and port.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    set_options(listener, send_timeout)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        log_level="error",
        http=protocol(receive_timeout=receive_timeout, send_timeout=send_timeout),
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
