"""Attacks by connections alone: no key is needed, and no body."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator

import pytest

from tests.attack.fake_server import Spec
from tests.attack.harness import (
    KEY,
    MAX_HELD_WITHOUT_KEY,
    MEGA,
    Connection,
    Server,
    good_clients,
    head,
)

SIZE = 20 * MEGA
"""What the attacker would send of each kind."""


def _lines(line: bytes, size: int = SIZE) -> bytes:
    return line * (size // len(line))


HEADS = {
    "header lines": b"GET /livez HTTP/1.1\r\n" + _lines(b"a: b\r\n"),
    "one long value": b"GET /livez HTTP/1.1\r\nx: " + b"v" * SIZE,
    "one long name": b"GET /livez HTTP/1.1\r\n" + b"n" * SIZE,
    "the URL": b"GET /" + b"u" * SIZE,
    "the method": b"G" * SIZE,
    "empty lines": b"\r\n" * (SIZE // 2),
    "trailers": head(transfer_encoding="chunked") + b"0\r\n" + _lines(b"a: b\r\n"),
    "chunk extensions": head(transfer_encoding="chunked") + b"1;" + b"e" * SIZE,
    "many chunk extensions": head(transfer_encoding="chunked") + _lines(b"1;" + b"e" * 1000 + b"\r\nx\r\n"),
    "chunks of one byte": head(transfer_encoding="chunked") + _lines(b"1\r\nx\r\n", 2 * MEGA),
    "a continued line": b"GET /livez HTTP/1.1\r\nx: y\r\n" + _lines(b" folded\r\n"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_end(keyed: Server, kind: str) -> None:
    with good_clients(keyed, KEY), keyed.watched() as cost, Connection(keyed) as attacker:
        attacker.send(HEADS[kind], seconds=3)
    cost.check(most=MAX_HELD_WITHOUT_KEY, sent=attacker.sent)


@pytest.mark.parametrize(
    "request_", [head("/livez", method="GET"), head("/v1/models", method="GET"), head(content_length=0)]
)
def test_pipelined_requests_whose_answers_nobody_reads(keyed: Server, request_: bytes) -> None:
    """Whatever is sent in advance waits in the buffers of the operating system."""
    with good_clients(keyed, KEY), keyed.watched() as cost, Connection(keyed) as attacker:
        attacker.send(_lines(request_, 60 * MEGA), seconds=1)
    cost.check(most=MAX_HELD_WITHOUT_KEY, sent=attacker.sent)


def test_many_connections_with_half_a_head(keyed: Server) -> None:
    """What they hold together is bounded by the memory budget, and others are answered."""
    half = b"GET /livez HTTP/1.1\r\nx: " + b"v" * 60_000
    with good_clients(keyed, KEY), keyed.watched() as cost:
        attackers = [Connection(keyed) for _ in range(300)]
        sent = sum(attacker.send(half, seconds=2) for attacker in attackers)
        for attacker in attackers:
            attacker.socket.close()
    cost.check(most=100 * MEGA, sent=sent, ratio=5)


class TestFewDescriptors:
    @pytest.fixture
    def server(self, start: Callable[[Spec], Server]) -> Server:
        return start(Spec(limits={resource.RLIMIT_NOFILE: 256}))

    @pytest.fixture
    def idle(self, server: Server) -> Iterator[list[Connection]]:
        connections = [Connection(server) for _ in range(400)]
        yield connections
        for each in connections:
            each.socket.close()

    def test_idle_connections(self, server: Server, idle: list[Connection]) -> None:
        """New clients are answered, and the log does not grow with the time that it lasts."""
        with good_clients(server) as good, server.watched() as cost:
            for _ in range(3):
                more = [Connection(server) for _ in range(50)]
                for each in more:
                    each.socket.close()
        cost.check(most=MAX_HELD_WITHOUT_KEY)
        assert good.answered > 0
        assert "Traceback" not in server.log
        assert len(server.log) < 200_000
