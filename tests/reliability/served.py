"""The app with a played engine behind real connections, for clients that an in-process transport can't play."""

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
    """Host and port. Connections have the limits of the real server's."""
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
        wait_until(lambda: server.started, 10)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float) -> float:
    """The seconds it took; fails if it takes longer."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - started


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """A request as bytes; its declared length may be another than its body's."""
    head = f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body
