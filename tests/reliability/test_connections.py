"""Clients that are slow, silent or gone hold neither memory nor the engine for long."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import time
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI

from config import Settings
from ocr_server.app import create_app
from ocr_server.reading.page import Page, PageDelta
from ocr_server.transport.connections import set_options
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, delta, never
from tests.reliability.served import post, served, wait_until

TCP_REPAIR = 19
SOON = 0.5
STREAM = json.dumps(chat(stream=True)).encode()


async def floods(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    """A page without end, a megabyte a second at most."""
    while True:
        yield delta("x" * 10_000)
        await asyncio.sleep(0.01)


async def trickles(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    """20 MB within 2 s."""
    for _number in range(200):
        yield delta("x" * 100_000)
        await asyncio.sleep(0.01)


class Client:
    """A connection with a small window, so that little of an answer is out of the server's hands."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(10)
        self.socket.connect(address)
        self.reset = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> bytes:
        """A whole answer with a declared length."""
        read = b""
        while not (found := re.match(rb"(?s).*content-length: (\d+)\r\n.*?\r\n\r\n", read)) or (
            len(read) < found.end() + int(found[1])
        ):
            piece = self.socket.recv(65536)
            assert piece, read
            read += piece
        return read

    def ended(self) -> bool:
        """Wait for the connection's end, reading what there is. False if it goes on."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            self.reset = True
        except TimeoutError:
            return False
        return True


class TestRequests:
    @pytest.mark.parametrize(
        "begun", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nx-slow: "], ids=["silent", "half a head"]
    )
    def test_one_that_does_not_come(self, app: FastAPI, begun: bytes) -> None:
        with served(app, receive_timeout=SOON) as address, Client(address) as client:
            client.send(begun)
            started = time.monotonic()
            assert client.ended()
            assert SOON * 0.8 < time.monotonic() - started < 5

    def test_a_head_that_comes_byte_by_byte(self, app: FastAPI) -> None:
        with served(app, receive_timeout=SOON) as address, Client(address) as client:
            client.send(b"GET /livez HTTP/1.1\r\nx-slow: ")

            def cut_off() -> bool:
                time.sleep(0.05)
                try:
                    client.send(b"x")
                except ConnectionError:
                    return True
                return False

            wait_until(cut_off, 5)

    def test_the_second_on_a_connection(self, app: FastAPI) -> None:
        with served(app, receive_timeout=SOON) as address, Client(address) as client:
            client.send(b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n")
            assert b"200 OK" in client.answer()
            client.send(b"GET /livez HTTP/1.1\r\n")
            assert client.ended()

    def test_one_that_is_there_may_take_its_time(self, app: FastAPI, engine: FakeEngine) -> None:
        async def slowly(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            await asyncio.sleep(4 * SOON)
            yield delta("done", finish="stop")

        engine.script = slowly
        with served(app, receive_timeout=SOON, send_timeout=SOON) as address, Client(address) as client:
            client.send(post(CHAT, json.dumps(chat()).encode()))
            assert b"done" in client.answer()


class TestAnswers:
    def test_what_is_written_is_sent_at_once(self) -> None:
        """Without waiting for the client to acknowledge what came before it, which clients put off by 40 ms."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            set_options(listener, send_timeout=30)
            with Client(listener.getsockname()):
                connection, _ = listener.accept()
                with connection:
                    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    def test_a_reader_that_does_not_read(self, app: FastAPI, engine: FakeEngine) -> None:
        """Its page is given up, and what it has not taken does not pile up meanwhile."""
        engine.script = floods
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with served(app, send_timeout=SOON) as address, Client(address) as client:
            client.send(post(CHAT, STREAM))
            wait_until(lambda: engine.running == 1, 5)
            assert wait_until(lambda: engine.aborted == [0], 5) < 4
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"

    def test_a_reader_of_ten_bytes_a_second(self, app: FastAPI, engine: FakeEngine) -> None:
        engine.script = floods
        with served(app, send_timeout=SOON) as address, Client(address) as client:
            client.send(post(CHAT, STREAM))

            def read_on() -> bool:
                if not engine.aborted:
                    client.socket.recv(1)
                    time.sleep(0.1)
                return engine.aborted == [0]

            wait_until(read_on, 5)

    def test_a_large_answer_that_nobody_takes(self, app: FastAPI, engine: FakeEngine) -> None:
        """Though the work is done, its bytes would stay."""
        engine.script = trickles
        with served(app, send_timeout=SOON) as address, Client(address) as client:
            client.send(post(CHAT, json.dumps(chat()).encode()))
            wait_until(lambda: engine.finished == [0], 10)
            time.sleep(4 * SOON)
            assert client.ended()
            assert client.reset, "cut off, not closed in good order"

    def test_a_slow_reader_that_does_read_gets_all(self, app: FastAPI, engine: FakeEngine) -> None:
        engine.script = trickles
        with served(app, send_timeout=SOON) as address, Client(address) as client:
            client.send(post(CHAT, STREAM))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            read, until = b"", time.monotonic() + 4 * SOON
            while not read.endswith(b"0\r\n\r\n"):
                read = read[-10:] + client.socket.recv(65536)
                time.sleep(0.02 if time.monotonic() < until else 0)
            assert engine.finished == [0]

    def test_a_client_that_vanished(self, app: FastAPI, engine: FakeEngine) -> None:
        """Without a word, as when its machine loses power."""
        engine.script = never
        with served(app) as address:
            client = Client(address)
            client.send(post(CHAT, json.dumps(chat()).encode()))
            wait_until(lambda: engine.running == 1, 5)
            try:
                client.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            except PermissionError:
                pytest.skip("only root can close a connection without a word")
            client.socket.close()
            assert wait_until(lambda: engine.aborted == [0], 20) > 5, "the client should not have said that it goes"


class TestBodies:
    @pytest.fixture
    def narrow(self, settings: Settings, engine: FakeEngine) -> FastAPI:
        limits = {"MAX_BODY_MB": 2, "MAX_BODIES_MB": 3, "RECEIVE_TIMEOUT": 1.0}
        return create_app(Settings(**{**settings.model_dump(), **limits}), engine)

    def test_one_that_comes_too_slowly(self, narrow: FastAPI) -> None:
        with served(narrow) as address, Client(address) as client:
            client.send(post(CHAT, b'{"model":', length=1000))
            answer = client.answer()
            assert b" 408 " in answer.split(b"\r\n")[0]
            assert b'"request_timeout"' in answer
            assert b"connection: close" in answer
            assert client.ended()

    def test_all_together(self, narrow: FastAPI) -> None:
        """What is refused says when to come back; when the others are gone, there is room again."""
        body = json.dumps(chat()).encode().ljust(2_000_000)
        with served(narrow) as address, Client(address) as slow, Client(address) as other:
            slow.send(post(CHAT, body[:-1], length=len(body)))
            time.sleep(0.2)
            other.send(post(CHAT, body))
            answer = other.answer()
            assert b" 429 " in answer.split(b"\r\n")[0]
            assert b"retry-after: " in answer
            assert b'"too_many_bytes"' in answer
            slow.socket.close()
            time.sleep(0.2)
            with Client(address) as again:
                again.send(post(CHAT, body))
                assert b" 200 " in again.answer().split(b"\r\n")[0]

    def test_until_the_request_has_ended(self, narrow: FastAPI, engine: FakeEngine) -> None:
        engine.script = never
        body = json.dumps(chat()).encode().ljust(2_000_000)
        with served(narrow) as address, Client(address) as reading, Client(address) as other:
            reading.send(post(CHAT, body))
            wait_until(lambda: engine.running == 1, 5)
            other.send(post(CHAT, body))
            assert b" 429 " in other.answer().split(b"\r\n")[0]

    def test_what_is_only_announced_keeps_nobody_out(self, narrow: FastAPI) -> None:
        with served(narrow) as address:
            idle = [Client(address) for _ in range(5)]
            for client in idle:
                client.send(post(CHAT, b"", length=1_900_000))
            with Client(address) as other:
                other.send(post(CHAT, json.dumps(chat()).encode().ljust(1_900_000)))
                assert b" 200 " in other.answer().split(b"\r\n")[0]
            for client in idle:
                client.socket.close()


class TestStop:
    """What is still under way when the server's time to finish is over."""

    def test_before_the_answer(self, app: FastAPI, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
        engine.script = never
        with served(app) as address:
            client = Client(address)
            client.send(post(CHAT, json.dumps(chat()).encode()))
            wait_until(lambda: engine.running == 1, 5)
        answer = client.answer()
        client.socket.close()
        assert b" 503 " in answer.split(b"\r\n")[0]
        assert b"retry-after: " in answer
        assert b'"engine_unavailable"' in answer
        assert not [record for record in caplog.records if record.exc_info]

    def test_in_a_stream(self, app: FastAPI, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
        async def begins(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            yield delta("begun")
            await asyncio.Event().wait()

        engine.script = begins
        read = b""
        with served(app) as address:
            client = Client(address)
            client.send(post(CHAT, STREAM))
            while b"begun" not in read:
                read += client.socket.recv(4096)
        while piece := client.socket.recv(4096):
            read += piece
        client.socket.close()
        assert b'"engine_unavailable"' in read
        assert read.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert not [record for record in caplog.records if record.exc_info]
