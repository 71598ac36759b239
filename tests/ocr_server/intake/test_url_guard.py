"""Hostile URLs against two real servers on loopback addresses, of which one stands for a public address."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from tests.ocr_server.intake.memory import room
from tests.ocr_server.intake.test_fetch import BODY, PUBLIC, Server, refusal, running

SECRET = b"from the private network"


class Internet(httpx.AsyncBaseTransport):
    """Real connections, except that those to the public address go to 127.0.0.2."""

    def __init__(self) -> None:
        self.inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == PUBLIC:
            request.url = request.url.copy_with(host="127.0.0.2")
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Names:
    """Replaces the resolver of the system. Each look-up of a name returns its next address, or its last one."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.real = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.answers:
            return self.real(host, port, *args, **kwargs)
        self.asked.append(name)
        left = self.answers[name]
        address = left.pop(0) if len(left) > 1 else left[0]
        return self.real(address, port, *args, **kwargs)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    names.answers = {"pictures.example": [PUBLIC], "inside.example": ["127.0.0.1"], "localhost.": ["127.0.0.1"]}
    monkeypatch.setattr(socket, "getaddrinfo", names)
    return names


@pytest.fixture
async def private() -> AsyncIterator[Server]:
    async with running() as server:
        server.answer("/", "200 OK", SECRET)
        yield server


@pytest.fixture
async def public(private: Server) -> AsyncIterator[Server]:
    """On the same port as the private one."""
    server = Server()
    server.port = private.port
    server.answer("/", "200 OK", BODY)
    listener = await asyncio.start_server(server.accept, "127.0.0.2", private.port)
    yield server
    listener.close()
    for task in server.serving:
        task.cancel()
    await asyncio.gather(*server.serving, return_exceptions=True)


@pytest.fixture
def guarded(limits: IntakeLimits, names: Names) -> Fetcher:
    strict = dataclasses.replace(limits, allow_private_urls=False)
    return Fetcher(strict, transport=Internet)


class TestRebinding:
    async def test_a_name_that_resolves_to_a_private_address_the_second_time(
        self, guarded: Fetcher, names: Names, public: Server, private: Server
    ) -> None:
        names.answers["rebind.example"] = [PUBLIC, "127.0.0.1"]
        assert await guarded.fetch(public.url(host="rebind.example"), room()) == BODY
        assert names.asked == ["rebind.example"]
        assert private.requests == []
        assert (await refusal(guarded, public.url(host="rebind.example"))).code == "image_url_not_allowed"

    async def test_a_name_that_changes_between_two_hops(
        self, guarded: Fetcher, names: Names, public: Server, private: Server
    ) -> None:
        names.answers["rebind.example"] = [PUBLIC, "127.0.0.1"]
        public.answer("/away", "302 Found", b"", "Location: /")
        error = await refusal(guarded, public.url("/away", host="rebind.example"))
        assert error.code == "image_url_not_allowed"
        assert len(public.requests) == 1
        assert private.requests == []


class TestRedirects:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "localhost.",
            "inside.example",
            "0",
            "0x7f.1",
            "[::ffff:127.0.0.1]",
            "pictures.example@127.0.0.1",
        ],
    )
    async def test_a_chain_that_ends_at_a_private_address(
        self, host: str, guarded: Fetcher, public: Server, private: Server
    ) -> None:
        public.answer("/1", "301 Moved", b"", "Location: /2")
        public.answer("/2", "307 Moved", b"", f"Location: {public.url('/3', host='pictures.example')}")
        public.answer("/3", "302 Found", b"", f"Location: {private.url(host=host)}")
        error = await refusal(guarded, public.url("/1", host="pictures.example"))
        assert error.code == "image_url_not_allowed"
        assert [request["path"] for request in public.requests] == ["/1", "/2", "/3"]
        assert private.requests == []

    async def test_the_private_server_is_there(self, guarded: Fetcher, limits: IntakeLimits, private: Server) -> None:
        """It responds to a fetcher that may use private addresses, so the other tests prove something."""
        open_to_all = Fetcher(limits)
        assert await open_to_all.fetch(private.url(host="localhost"), room()) == SECRET


class TestSpellings:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1.",
            "localhost.",
            "LOCALHOST",
            "0",
            "0x7f.1",
            "0x7f.0x0.0x0.0x1",
            "017700000001",
            "[::ffff:0:0]",
            "[::127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
            "[2002:7f00:1::]",
            "[0:0:0:0:0:0:0:1]",
            "[::1%25lo]",
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[fe80::1]",
            "100.64.0.1",
            "192.0.0.192",
            "168.63.129.16",
            "255.255.255.255",
            "224.0.0.1",
        ],
    )
    async def test_of_an_address_that_is_not_public(self, host: str, guarded: Fetcher, private: Server) -> None:
        error = await refusal(guarded, private.url(host=host))
        assert type(error) is SourceError
        unknown = host in ("127.0.0.1.", "[::1%25lo]")  # no resolver accepts these
        assert error.code == ("image_fetch_failed" if unknown else "image_url_not_allowed")
        assert private.requests == []

    @pytest.mark.parametrize(
        ("host", "code"),
        [
            ("pictures.example@127.0.0.1", "image_url_not_allowed"),
            ("pictures.example:80@127.0.0.1", "image_url_not_allowed"),
            ("pictures.example%40127.0.0.1", "image_fetch_failed"),
            ("127.0.0.1\\@pictures.example", "image_url_not_allowed"),
            ("pictures.example\\@127.0.0.1", "image_url_not_allowed"),
            ("@127.0.0.1", "image_url_not_allowed"),
            ("0177.0.0.1", "invalid_image_url"),
            ("127。0。0。1", "image_url_not_allowed"),
            ("①②⑦.0.0.1", "invalid_image_url"),
            ("pictures.example\t127.0.0.1", "invalid_image_url"),
        ],
    )
    async def test_that_hides_the_host(self, host: str, code: str, guarded: Fetcher, private: Server) -> None:
        error = await refusal(guarded, private.url(host=host))
        assert (type(error), error.code) == (SourceError, code)
        assert private.requests == []


class TestAllowedHosts:
    @pytest.fixture
    def selective(self, limits: IntakeLimits, names: Names) -> Fetcher:
        names.answers |= {f"{name}.example": [PUBLIC] for name in ("a.bilder", "b.a.bilder", "bilder", "xbilder", "c")}
        strict = dataclasses.replace(
            limits, allow_private_urls=False, allowed_hosts=("pictures.example", "*.bilder.example", "inside.example")
        )
        return Fetcher(strict, transport=Internet)

    @pytest.mark.parametrize(
        "host", ["pictures.example", "PICTURES.example.", "a.bilder.example", "b.a.bilder.example"]
    )
    async def test_listed_hosts(self, host: str, selective: Fetcher, names: Names, public: Server) -> None:
        names.answers["pictures.example."] = [PUBLIC]
        assert await selective.fetch(public.url(host=host), room()) == BODY

    @pytest.mark.parametrize(
        "host",
        ["c.example", "bilder.example", "xbilder.example", "pictures.example.c.example", "a.pictures.example", PUBLIC],
    )
    async def test_other_hosts(self, host: str, selective: Fetcher, names: Names, public: Server) -> None:
        error = await refusal(selective, public.url(host=host))
        assert (type(error), error.code) == (SourceError, "image_url_not_allowed")
        assert names.asked == []
        assert public.requests == []

    async def test_after_a_redirect(self, selective: Fetcher, public: Server) -> None:
        public.answer("/go", "302 Found", b"", f"Location: {public.url(host='c.example')}")
        error = await refusal(selective, public.url("/go", host="pictures.example"))
        assert error.code == "image_url_not_allowed"
        assert len(public.requests) == 1

    async def test_a_listed_host_must_still_be_public(self, selective: Fetcher, private: Server) -> None:
        assert (await refusal(selective, private.url(host="inside.example"))).code == "image_url_not_allowed"
        assert private.requests == []
