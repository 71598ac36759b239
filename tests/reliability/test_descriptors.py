"""A server that runs out of file descriptors goes on serving the clients that it has."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.reliability.served import Client, wait_until

ROOT = Path(__file__).parents[2]
GET = b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n"


@contextmanager
def few_descriptors(limit: int, used: int, log: Path) -> Iterator[tuple[str, int]]:
    """Run a server with `limit` descriptors, of which `used` are taken, and yield its address."""
    arguments = [sys.executable, "-m", "tests.reliability.few_descriptors", str(limit), str(used)]
    with log.open("wb") as file:
        server = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=file)
        assert server.stdout is not None
        try:
            yield "127.0.0.1", int(server.stdout.readline())
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


def idle(address: tuple[str, int], count: int, stack: ExitStack) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(count)]


def test_idle_sockets(tmp_path: Path) -> None:
    """400 of them, with 256 descriptors. Without a limit, each attempt to accept one would log a traceback."""
    log = tmp_path / "log"
    with few_descriptors(256, 0, log) as address, Client(address) as kept, ExitStack() as stack:
        for _ in range(20):
            idle(address, 20, stack)
            kept.send(GET)
            assert b"200 OK" in kept.answer()
        wait_until(lambda: answered(address))
        assert log.read_text().count("\n") < 100  # most are the lines of the requests
        assert "Traceback" not in log.read_text()


def answered(address: tuple[str, int]) -> bool:
    """Whether a new client is answered. One that comes too early is closed, as the idle connections are."""
    with suppress(ConnectionError), Client(address) as new:
        new.send(GET)
        return b"200 OK" in new.answer()
    return False


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Other parts of the process have taken them. Idle connections are closed to make room for new ones."""
    log = tmp_path / "log"
    with few_descriptors(256, 180, log) as address, Client(address) as kept, ExitStack() as stack:
        kept.send(GET)
        assert b"200 OK" in kept.answer()
        idle(address, 100, stack)
        kept.send(GET)
        assert b"200 OK" in kept.answer()
        wait_until(lambda: answered(address))
        text = log.read_text()
        assert text.count("No file descriptor is left") == 1
        assert "Traceback" not in text


def test_no_descriptor_is_left_and_all_connections_are_busy(tmp_path: Path) -> None:
    """New connections are refused at once, by means of a spare descriptor."""
    log = tmp_path / "log"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n"
    with few_descriptors(256, 200, log) as address, ExitStack() as stack:
        answers = []
        for each in idle(address, 100, stack):
            each.sendall(head)
            each.settimeout(5)
            answers.append(each)
        refused = 0
        for each in reversed(answers):
            try:
                refused += each.recv(1000).startswith(b"HTTP/1.1 503 ")
            except TimeoutError:
                break
        assert refused > 10
        assert log.read_text().count("No file descriptor is left") == 1
        assert "Traceback" not in log.read_text()
