"""How requests are cut out of what a connection receives, and what a connection holds."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from ocr_server.memory import MemoryBudget, Use
from ocr_server.transport.bodies import BodyLimit
from ocr_server.transport.connection_limits import ConnectionLimits
from tests.reliability.served import Client, post, served, wait_until

GET = b"GET /%b HTTP/1.1\r\nhost: here\r\n\r\n"
CHUNKED = b"POST /%b HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"


class Echo:
    """Answers every request with its path, header names and body. `/wait` is answered when `go` is called."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.left: list[str] = []
        """Paths of the requests whose client disconnected while they waited."""
        self._going: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self._loop = asyncio.get_running_loop()
        self._going = self._going or asyncio.Event()
        self.begun.append(scope["path"])
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/wait":
            gone = asyncio.create_task(receive())
            going = asyncio.create_task(self._going.wait())
            await asyncio.wait({gone, going}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.left.append(scope["path"])
                return
            gone.cancel()
        names = [name.decode() for name, _ in scope["headers"]]
        content = json.dumps({"path": scope["path"], "fields": names, "body": body.decode()}).encode()
        headers = [(b"content-length", str(len(content)).encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def go(self) -> None:
        assert self._loop is not None
        assert self._going is not None
        self._loop.call_soon_threadsafe(self._going.set)


@pytest.fixture
def echo() -> Echo:
    return Echo()


def _with_lifespan(app: ASGIApp) -> ASGIApp:
    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)

    return whole


def read_answers(client: Client, count: int) -> list[dict[str, object]]:
    """Return the content of the next `count` answers."""
    read = b""
    pattern = re.compile(rb'\{"path".*?\}')
    while len(found := pattern.findall(read)) < count:
        piece = client.socket.recv(65_536)
        assert piece, read
        read += piece
    return [json.loads(each) for each in found]


class TestPipelining:
    def test_requests_are_answered_in_order(self, echo: Echo) -> None:
        data = (
            GET % b"1"
            + post("/2", b"x" * 100_000)
            + GET % b"3"
            + CHUNKED % b"4"
            + b"3\r\nabc\r\n0\r\n\r\n"
            + GET % b"5"
        )
        with served(echo) as address, Client(address) as client:
            client.send(data)
            answers = read_answers(client, 5)
        assert [each["path"] for each in answers] == ["/1", "/2", "/3", "/4", "/5"]
        assert answers[1]["body"] == "x" * 100_000
        assert answers[3]["body"] == "abc"

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_requests_that_arrive_in_small_pieces(self, echo: Echo, size: int) -> None:
        data = (
            b"\r\n"
            + GET % b"1"
            + CHUNKED % b"2"
            + b"1\r\n\n\r\n1A;x=y\r\n"
            + b"z" * 26
            + b"\r\n00\r\n\r\n"
            + GET % b"3"
        )
        with served(echo) as address, Client(address) as client:
            for start in range(0, len(data), size):
                client.send(data[start : start + size])
            answers = read_answers(client, 3)
        assert [(each["path"], each["body"]) for each in answers] == [("/1", ""), ("/2", "\n" + "z" * 26), ("/3", "")]

    def test_nothing_is_parsed_before_the_answer(self, echo: Echo) -> None:
        with served(echo) as address, Client(address) as client:
            client.send(GET % b"wait" + GET % b"2")
            wait_until(lambda: echo.begun == ["/wait"])
            with Client(address) as other:
                other.send(GET % b"other")
                other.answer()
            assert echo.begun == ["/wait", "/other"]
            echo.go()
            assert [each["path"] for each in read_answers(client, 2)] == ["/wait", "/2"]

    def test_a_client_that_sends_without_end_is_not_read(self, echo: Echo) -> None:
        """The server takes 64 KiB of it; the rest waits with the client."""
        memory = MemoryBudget(1_000_000_000)
        with served(echo, memory=memory) as address, Client(address) as client:
            client.send(GET % b"wait")
            wait_until(lambda: bool(echo.begun))
            client.socket.settimeout(1)
            with pytest.raises(TimeoutError):
                client.send((GET % b"2") * 1_000_000)
            assert 65_536 <= memory.used[Use.HEADS] < 70_000
            assert echo.begun == ["/wait"]
            client.socket.close()
            echo.go()
            wait_until(lambda: memory.used[Use.HEADS] == 0)

    @pytest.mark.parametrize("more", [b"", GET % b"2", (GET % b"2") * 4000], ids=["alone", "few", "many"])
    def test_a_client_that_leaves_is_noticed(self, echo: Echo, more: bytes) -> None:
        """Also while its connection is not read."""
        with served(echo) as address, Client(address) as client:
            client.send(GET % b"wait" + more)
            wait_until(lambda: bool(echo.begun))
            client.socket.close()
            wait_until(lambda: echo.left == ["/wait"])

    def test_a_request_may_wait_for_longer_than_the_time_limit(self, echo: Echo) -> None:
        with served(echo, receive_timeout=0.3) as address, Client(address) as client:
            client.send(GET % b"wait" + GET % b"2" + b"GET /3 HTTP/1.1\r\n")
            time.sleep(1)
            echo.go()
            assert [each["path"] for each in read_answers(client, 2)] == ["/wait", "/2"]
            assert client.ended(), "the third request has not arrived in time"

    def test_a_body_that_nobody_reads_must_arrive_in_time(self, echo: Echo) -> None:
        """The answer has been sent, but the client goes on sending."""
        with served(echo, receive_timeout=0.5) as address, Client(address) as client:
            client.send(post("/early", b"x", length=10_000_000))
            client.answer()

            def cut_off() -> bool:
                time.sleep(0.05)
                try:
                    client.send(b"x")
                except ConnectionError:
                    return True
                return False

            wait_until(cut_off)

    def test_expect_100_continue(self, echo: Echo) -> None:
        """The client is asked for its body when its turn has come."""
        with served(echo) as address, Client(address) as client:
            client.send(GET % b"wait" + b"POST /2 HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            wait_until(lambda: bool(echo.begun))
            echo.go()
            read = b""
            while b"100 Continue" not in read:
                read += client.socket.recv(65_536)
            assert b'"/wait"' in read
            client.send(b"ab")
            assert read_answers(client, 1)[0]["body"] == "ab"

    def test_nothing_follows_connection_close(self, echo: Echo) -> None:
        with served(echo) as address, Client(address) as client:
            client.send(b"GET /1 HTTP/1.1\r\nconnection: close\r\n\r\n" + GET % b"2")
            assert b"connection: close" in client.answer()
            assert client.ended()
        assert echo.begun == ["/1"]


class TestHeads:
    @pytest.mark.parametrize(
        ("head", "rest"),
        [
            (CHUNKED % b"", b"".join(b"1;%b\r\nx\r\n" % (b"e" * 1000) for _ in range(100))),
            (CHUNKED % b"", b"1;" + b"e" * 200_000),
            (CHUNKED % b"", b"0" * 200_000),
            (CHUNKED % b"", b"0\r\n" + b"".join(b"t-%d: u\r\n" % number for number in range(200))),
            (CHUNKED % b"", b"0\r\nt: " + b"u" * 200_000),
            (b"\r\n" * 100_000, b""),
        ],
        ids=["extensions", "one extension", "zeros", "trailers", "one trailer", "empty lines"],
    )
    def test_what_counts_as_head(self, echo: Echo, head: bytes, rest: bytes) -> None:
        memory = MemoryBudget(1_000_000_000)
        with served(echo, memory=memory) as address, Client(address) as client:
            client.send(head + rest)
            assert client.answer().startswith(b"HTTP/1.1 431 ")
            assert client.ended()
            wait_until(lambda: memory.used[Use.HEADS] == 0)
        assert memory.peak < 400_000

    @pytest.mark.parametrize("size", [1, 15, 16, 1000])
    def test_small_chunks_are_no_head(self, echo: Echo, size: int) -> None:
        count = 25_000 if size < 100 else 500
        body = b"%x\r\n%b\r\n" % (size, b"\n" * size) * count + b"0\r\n\r\n"
        with served(echo) as address, Client(address) as client:
            client.send(CHUNKED % b"1" + body + GET % b"2")
            first, second = read_answers(client, 2)
        assert first["body"] == "\n" * (size * count)
        assert second["path"] == "/2"

    def test_trailers_are_not_added_to_the_head(self, echo: Echo) -> None:
        with served(echo) as address, Client(address) as client:
            client.send(CHUNKED % b"1" + b"1\r\nx\r\n0\r\nauthorization: Bearer key\r\n\r\n")
            assert read_answers(client, 1)[0]["fields"] == ["host", "transfer-encoding"]

    def test_all_heads_together_draw_on_the_budget(self, echo: Echo) -> None:
        """Small heads are let through whatever happens, so that the probes of an orchestrator are."""
        memory = MemoryBudget(1_000_000)
        large = b"GET /wait HTTP/1.1\r\nx: " + b"x" * 60_000 + b"\r\n\r\n"
        with served(echo, memory=memory) as address:
            with Client(address) as first, Client(address) as second, Client(address) as third:
                first.send(large)
                wait_until(lambda: len(echo.begun) == 1)
                second.send(large)
                answer = second.answer()
                assert answer.startswith(b"HTTP/1.1 429 ")
                assert b"retry-after: " in answer
                third.send(GET % b"probe")
                assert b"200 OK" in third.answer()
            wait_until(lambda: memory.used[Use.HEADS] == 0)

    @pytest.mark.parametrize(
        "head",
        [
            b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\na:\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\na: b\0c\r\n\r\n",
            b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
            b"GET / HTTP/1.1\r\na: b\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"GET http://here HTTP/1.1\r\n\r\n",
            b"CONNECT here:80 HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\n",
            b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: " + b"0" * 5000 + b"1\r\n\r\n",
            CHUNKED % b"" + b"g\r\n",
            CHUNKED % b"" + b"1\r\nxx",
        ],
    )
    def test_what_is_not_http(self, echo: Echo, head: bytes) -> None:
        with served(echo) as address, Client(address) as client:
            client.send(head)
            answer = client.answer()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
            assert client.ended()

    @pytest.mark.parametrize(
        ("head", "path"),
        [
            (b"GET /1 HTTP/1.0\r\n\r\n", "/1"),
            (b"GET http://here/1?x HTTP/1.1\r\nhost: here\r\n\r\n", "/1"),
            (b"OPTIONS * HTTP/1.1\r\nhost: here\r\n\r\n", "*"),
        ],
    )
    def test_other_forms_of_requests(self, echo: Echo, head: bytes, path: str) -> None:
        with served(echo) as address, Client(address) as client:
            client.send(head)
            assert read_answers(client, 1)[0]["path"] == path

    @pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
    def test_other_protocols_are_not_spoken(self, echo: Echo, protocol: bytes) -> None:
        """The request is answered as any other, with its body: some clients ask for HTTP/2 this way."""
        upgrade = b"Upgrade: %b\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABk\r\n" % protocol
        with served(echo) as address, Client(address) as client:
            client.send(b"POST /1 HTTP/1.1\r\nhost: here\r\n" + upgrade + b"content-length: 2\r\n\r\nab" + GET % b"2")
            answers = read_answers(client, 2)
        assert [(each["path"], each["body"]) for each in answers] == [("/1", "ab"), ("/2", "")]


class TestVersions:
    async def unsized(self, _: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    @pytest.mark.parametrize("connection", [b"", b"connection: keep-alive\r\n"])
    def test_an_old_client_receives_no_chunks(self, connection: bytes) -> None:
        with served(_with_lifespan(self.unsized)) as address, Client(address) as client:
            client.send(b"GET / HTTP/1.0\r\n" + connection + b"\r\n")
            head, _, body = client.rest().partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body == b"one two"

    def test_an_old_client_receives_a_length_if_it_is_known(self, echo: Echo) -> None:
        with served(echo) as address, Client(address) as client:
            client.send(b"GET /1 HTTP/1.0\r\n\r\n")
            head, _, body = client.rest().partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}\r\n".encode() in head
        assert json.loads(body)["path"] == "/1"


class TestExpectations:
    def test_a_body_that_is_too_large_is_refused_before_it_is_sent(self, echo: Echo) -> None:
        app = BodyLimit(echo, limit=10, memory=MemoryBudget(1_000_000), timeout=30)
        with served(app) as address, Client(address) as client:
            client.send(b"POST / HTTP/1.1\r\nhost: here\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n")
            answer = client.rest()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"body_too_large" in answer
        assert echo.begun == []

    def test_another_body_is_asked_for(self, echo: Echo) -> None:
        app = BodyLimit(echo, limit=10, memory=MemoryBudget(1_000_000), timeout=30)
        with served(app) as address, Client(address) as client:
            client.send(b"POST /1 HTTP/1.1\r\nhost: here\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n")
            assert client.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"x" * 10)
            (answer,) = read_answers(client, 1)
        assert answer["body"] == "x" * 10


class TestLimits:
    """Limits on the number of connections."""

    def test_an_idle_connection_makes_room(self, echo: Echo) -> None:
        """The one that has sent nothing first, then the one that has not been used for longest."""
        with (
            served(echo, connections=ConnectionLimits(total=3)) as address,
            Client(address) as old,
            Client(address) as kept,
        ):
            for client in (old, kept, old):
                client.send(GET % b"1")
                client.answer()
            silent = Client(address)
            with Client(address) as new:
                assert silent.ended()
                new.send(GET % b"2")
                assert b"200 OK" in new.answer()
                with Client(address) as another:
                    assert kept.ended()
                    for client in (old, new, another):
                        client.send(GET % b"3")
                        assert b"200 OK" in client.answer()
            silent.socket.close()

    @pytest.mark.parametrize(
        "limits",
        [lambda: ConnectionLimits(total=2), lambda: ConnectionLimits(of_address=2)],
        ids=["total", "of an address"],
    )
    def test_busy_connections_do_not_make_room(self, echo: Echo, limits: Callable[[], ConnectionLimits]) -> None:
        with served(echo, connections=limits()) as address, Client(address) as first, Client(address) as second:
            for client in (first, second):
                client.send(GET % b"wait")
            wait_until(lambda: len(echo.begun) == 2)
            with Client(address) as third:
                third.send(GET % b"3")
                answer = third.answer()
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: " in answer
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
                assert third.ended()
            echo.go()
            for client in (first, second):
                assert b"200 OK" in client.answer()
            with Client(address) as third:
                third.send(GET % b"3")
                assert b"200 OK" in third.answer()

    def test_many_refused_connections_do_not_stay(self, echo: Echo) -> None:
        with served(echo, connections=ConnectionLimits(total=1)) as address, Client(address) as busy:
            busy.send(GET % b"wait")
            wait_until(lambda: bool(echo.begun))
            refused = [socket.create_connection(address) for _ in range(300)]
            for each in refused:
                each.settimeout(60)
                try:
                    assert each.recv(1000).startswith(b"HTTP/1.1 503 ")
                finally:
                    each.close()
