"""Slow, silent and vanished clients do not hold memory or the engine for long."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI

from config import Settings
from ocr_server.app import create_app
from ocr_server.reading.page import Page, PageDelta
from ocr_server.runtime import Runtime
from ocr_server.transport.connections import set_options
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, delta, never
from tests.reliability.served import Client, post, served, wait_until

TCP_REPAIR = 19
TIMEOUT = 0.5
"""The receive and send timeouts of most tests, in seconds."""
STREAM = json.dumps(chat(stream=True)).encode()


async def floods(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    """A page without end, at most a megabyte per second."""
    while True:
        yield delta("x" * 10_000)
        await asyncio.sleep(0.01)


async def trickles(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    """A page of 20 MB, written over at least 2 s."""
    for _number in range(200):
        yield delta("x" * 100_000)
        await asyncio.sleep(0.01)


class TestRequests:
    @pytest.mark.parametrize(
        "received", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nx-slow: "], ids=["silent", "partial head"]
    )
    def test_a_request_that_does_not_arrive(self, app: FastAPI, received: bytes) -> None:
        with served(app, receive_timeout=TIMEOUT) as address:
            started = time.monotonic()
            with Client(address) as client:
                client.send(received)
                assert client.ended()
            assert time.monotonic() - started > TIMEOUT * 0.9

    def test_a_head_that_arrives_byte_by_byte(self, app: FastAPI) -> None:
        with served(app, receive_timeout=TIMEOUT) as address, Client(address) as client:
            client.send(b"GET /livez HTTP/1.1\r\nx-slow: ")

            def cut_off() -> bool:
                time.sleep(0.05)
                try:
                    client.send(b"x")
                except ConnectionError:
                    return True
                return False

            wait_until(cut_off)

    @pytest.mark.parametrize(
        "head",
        [
            b"GET /livez HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % number for number in range(101)) + b"\r\n",
            b"GET /livez HTTP/1.1\r\nx-long: " + b"x" * 300_000,
            b"GET /livez?" + b"x" * 300_000,
            b"GET /livez HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % number for number in range(100_000)),
        ],
        ids=["101 fields", "one long value", "a long URL", "fields without end"],
    )
    def test_a_head_that_is_too_large(self, app: FastAPI, head: bytes) -> None:
        with served(app) as address, Client(address) as client:
            client.send(head)
            answer = client.answer()
            assert answer.startswith(b"HTTP/1.1 431 ")
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert (error["code"], error["type"]) == ("head_too_large", "invalid_request_error")
            assert client.ended()

    def test_a_head_within_the_limits(self, app: FastAPI) -> None:
        fields = b"".join(b"x-%d: %b\r\n" % (number, b"x" * 600) for number in range(98))
        head = b"GET /livez HTTP/1.1\r\nhost: here\r\n" + fields + b"\r\n"
        assert 55_000 < len(head) < 65_536
        with served(app) as address, Client(address) as client:
            for _ in range(3):  # also behind another request, and in two parts
                client.send(head[:30_000])
                client.send(head[30_000:])
                assert b"200 OK" in client.answer()

    def test_the_head_of_a_later_request_that_is_too_large(self, app: FastAPI) -> None:
        with served(app) as address, Client(address) as client:
            client.send(b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n")
            assert b"200 OK" in client.answer()
            client.send(b"GET /livez HTTP/1.1\r\nx-long: " + b"x" * 300_000)
            assert client.answer().startswith(b"HTTP/1.1 431 ")

    def test_a_large_body_with_many_small_lines_is_no_head(self, app: FastAPI) -> None:
        body = json.dumps(chat()).encode() + b"\r\n" * 300_000
        with served(app) as address, Client(address) as client:
            for _ in range(2):
                client.send(post(CHAT, body))
                assert b"200 OK" in client.answer()

    def test_the_second_request_on_a_connection(self, app: FastAPI) -> None:
        with served(app, receive_timeout=TIMEOUT) as address, Client(address) as client:
            client.send(b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n")
            assert b"200 OK" in client.answer()
            client.send(b"GET /livez HTTP/1.1\r\n")
            assert client.ended()

    def test_a_received_request_may_take_longer_than_the_timeouts(self, app: FastAPI, engine: FakeEngine) -> None:
        async def slowly(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            await asyncio.sleep(2 * TIMEOUT)
            yield delta("done", finish="stop")

        engine.script = slowly
        with served(app, receive_timeout=TIMEOUT, send_timeout=TIMEOUT) as address, Client(address) as client:
            client.send(post(CHAT, json.dumps(chat()).encode()))
            assert b"done" in client.answer()


class TestAnswers:
    def test_data_is_sent_without_delay(self) -> None:
        """The server does not wait for the acknowledgement of earlier data, which clients may delay by 40 ms."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            set_options(listener, send_timeout=30)
            with Client(listener.getsockname()):
                connection, _ = listener.accept()
                with connection:
                    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    def test_a_client_that_does_not_read(self, app: FastAPI, engine: FakeEngine) -> None:
        """Its page is aborted, and unread data does not accumulate in memory until then."""
        engine.script = floods
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with served(app, send_timeout=TIMEOUT) as address, Client(address) as client:
            client.send(post(CHAT, STREAM))
            wait_until(lambda: engine.running == 1)
            wait_until(lambda: engine.aborted == [0])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, (
            "should be below 200 MB (ru_maxrss is in kB)"
        )

    def test_a_client_that_reads_ten_bytes_per_second(self, app: FastAPI, engine: FakeEngine) -> None:
        engine.script = floods
        with served(app, send_timeout=TIMEOUT) as address, Client(address) as client:
            client.send(post(CHAT, STREAM))

            def read_on() -> bool:
                if not engine.aborted:
                    client.socket.recv(1)
                    time.sleep(0.1)
                return engine.aborted == [0]

            wait_until(read_on)

    def test_a_large_answer_that_is_not_read(self, app: FastAPI, engine: FakeEngine) -> None:
        """The work is done, but its data would remain in memory."""
        engine.script = trickles
        with served(app, send_timeout=TIMEOUT) as address, Client(address) as client:
            client.send(post(CHAT, json.dumps(chat()).encode()))
            wait_until(lambda: engine.finished == [0])
            wait_until(lambda: not client.is_connected())
            assert client.ended()
            assert client.reset, "the connection should be reset, not closed cleanly"

    def test_a_slow_client_gets_the_whole_answer(self, app: FastAPI, engine: FakeEngine) -> None:
        """It takes longer than the send timeout altogether, but never stops reading for that long."""
        engine.script = trickles
        send_timeout = 2.0  # enough that a busy machine does not keep this thread from reading for so long
        with served(app, send_timeout=send_timeout) as address, Client(address) as client:
            client.send(post(CHAT, STREAM))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            read, until = b"", time.monotonic() + 1.5 * send_timeout
            while not read.endswith(b"0\r\n\r\n"):
                read = read[-10:] + client.socket.recv(65536)
                time.sleep(0.02 if time.monotonic() < until else 0)
            assert engine.finished == [0]

    def test_a_client_that_vanished(self, app: FastAPI, engine: FakeEngine) -> None:
        """It sends neither FIN nor RST, as when its machine loses power."""
        engine.script = never
        with served(app) as address:
            client = Client(address)
            client.send(post(CHAT, json.dumps(chat()).encode()))
            wait_until(lambda: engine.running == 1)
            try:
                client.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            except PermissionError:
                pytest.skip("only root can close a connection without sending anything")
            client.socket.close()
            assert wait_until(lambda: engine.aborted == [0]) > 5, "the client should not have sent FIN or RST"


class TestBodies:
    @pytest.fixture
    def limited_app(self, settings: Settings, engine: FakeEngine) -> FastAPI:
        limits = {"MAX_BODY_MB": 2, "MEMORY_BUDGET_MB": 20}
        return create_app(Runtime.build(Settings(**{**settings.model_dump(), **limits}), engine))

    def test_a_body_that_arrives_too_slowly(self, settings: Settings, engine: FakeEngine) -> None:
        app = create_app(Runtime.build(Settings(**{**settings.model_dump(), "RECEIVE_TIMEOUT": TIMEOUT}), engine))
        with served(app) as address, Client(address) as client:
            client.send(post(CHAT, b'{"model":', length=1000))
            answer = client.answer()
            assert b" 408 " in answer.split(b"\r\n")[0]
            assert b'"request_timeout"' in answer
            assert b"connection: close" in answer
            assert client.ended()

    def test_the_limit_for_all_bodies_together(self, limited_app: FastAPI) -> None:
        """Above the limit, requests are refused with `Retry-After`; when a client has left, there is room again."""
        body = json.dumps(chat()).encode().ljust(2_000_000)
        with served(limited_app) as address, Client(address) as slow:

            def ask() -> bytes:
                with Client(address) as other:
                    other.send(post(CHAT, body))
                    return other.answer()

            slow.send(post(CHAT, body[:-1], length=len(body)))
            wait_until(lambda: b" 429 " in ask().split(b"\r\n")[0])  # once the server has received what was sent
            answer = ask()
            assert b" 429 " in answer.split(b"\r\n")[0]
            assert b"retry-after: " in answer
            assert b'"too_many_bytes"' in answer
            slow.socket.close()
            wait_until(lambda: b" 200 " in ask().split(b"\r\n")[0])

    def test_a_body_counts_until_its_request_has_ended(self, limited_app: FastAPI, engine: FakeEngine) -> None:
        engine.script = never
        body = json.dumps(chat()).encode().ljust(2_000_000)
        with served(limited_app) as address, Client(address) as reading, Client(address) as other:
            reading.send(post(CHAT, body))
            wait_until(lambda: engine.running == 1)
            other.send(post(CHAT, body))
            assert b" 429 " in other.answer().split(b"\r\n")[0]

    def test_a_body_that_is_only_announced_does_not_count(self, limited_app: FastAPI) -> None:
        with served(limited_app) as address:
            idle = [Client(address) for _ in range(5)]
            for client in idle:
                client.send(post(CHAT, b"", length=1_900_000))
            with Client(address) as other:
                other.send(post(CHAT, json.dumps(chat()).encode().ljust(1_900_000)))
                assert b" 200 " in other.answer().split(b"\r\n")[0]
            for client in idle:
                client.socket.close()


class TestShutdown:
    """Requests that are still running when the shutdown timeout expires."""

    def test_a_request_without_an_answer_gets_503(
        self, app: FastAPI, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine.script = never
        with served(app) as address:
            client = Client(address)
            client.send(post(CHAT, json.dumps(chat()).encode()))
            wait_until(lambda: engine.running == 1)
        answer = client.answer()
        client.socket.close()
        assert b" 503 " in answer.split(b"\r\n")[0]
        assert b"retry-after: " in answer
        assert b'"engine_unavailable"' in answer
        assert not [record for record in caplog.records if record.exc_info]

    def test_a_stream_gets_an_error_event(
        self, app: FastAPI, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def starts(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            yield delta("started")
            await asyncio.Event().wait()

        engine.script = starts
        read = b""
        with served(app) as address:
            client = Client(address)
            client.send(post(CHAT, STREAM))
            while b"started" not in read:
                read += client.socket.recv(4096)
        while piece := client.socket.recv(4096):
            read += piece
        client.socket.close()
        assert b'"engine_unavailable"' in read
        assert read.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert not [record for record in caplog.records if record.exc_info]
