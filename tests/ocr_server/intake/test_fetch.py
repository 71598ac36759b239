"""Fetching from a real local server, and everything that is refused before or during a fetch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import gzip
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from ocr_server.errors import TooMany
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.memory import MemoryBudget, Use
from tests.ocr_server.intake.memory import room

PUBLIC = "93.184.216.34"
BODY = bytes(range(256)) * 10


class Server:
    """A minimal HTTP server. `answers`: path → pieces to send, each with a delay in seconds before it."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[float, bytes]]] = {}
        self.requests: list[dict[str, str]] = []
        self.bytes_sent = 0
        self.serving: list[asyncio.Task[None]] = []
        self.port = 0

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def answer(self, path: str, status: str, body: bytes = b"", *headers: str, delay: float = 0.0) -> None:
        """Define an ordinary response with a Content-Length."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        self.answers[path] = [(delay, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split(" ")[1]
            self.requests.append(dict(line.lower().split(": ", 1) for line in head[1:] if line) | {"path": path})
            for delay, piece in self.answers[path]:
                await asyncio.sleep(delay)
                writer.write(piece)
                await writer.drain()
                self.bytes_sent += len(piece)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in server.serving:
            task.cancel()
        await asyncio.gather(*server.serving, return_exceptions=True)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running() as server:
        yield server


@pytest.fixture
def fetcher(limits: IntakeLimits) -> Fetcher:
    return Fetcher(limits)


class FakeNames:
    """A resolver that knows only the given names, and records what it was asked."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]


async def refusal(fetcher: Fetcher, url: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await fetcher.fetch(url, room())
    assert caught.value.about == "file"
    return caught.value


class TestFetching:
    async def test_a_body_with_a_length(self, server: Server, fetcher: Fetcher) -> None:
        server.answer("/a.png?x=1", "200 OK", BODY)
        assert await fetcher.fetch(server.url("/a.png?x=1#top"), room()) == BODY

    async def test_a_chunked_body(self, server: Server, fetcher: Fetcher) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        server.answers["/"] = [(0, head + b"a\r\n" + BODY[:10] + b"\r\n"), (0.01, b"5\r\n" + BODY[10:15])]
        server.answers["/"].append((0.01, b"\r\n0\r\n\r\n"))
        assert await fetcher.fetch(server.url(), room()) == BODY[:15]

    async def test_a_body_until_the_connection_closes(self, server: Server, fetcher: Fetcher) -> None:
        server.answers["/"] = [(0, b"HTTP/1.0 200 OK\r\n\r\n" + BODY)]
        assert await fetcher.fetch(server.url(), room()) == BODY

    async def test_a_gzipped_body(self, server: Server, fetcher: Fetcher) -> None:
        server.answer("/", "200 OK", gzip.compress(BODY), "Content-Encoding: gzip")
        assert await fetcher.fetch(server.url(), room()) == BODY

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirects(self, status: int, server: Server, fetcher: Fetcher) -> None:
        server.answer("/", f"{status} Elsewhere", b"moved", "Location: sub/a.png")
        server.answer("/sub/a.png", f"{status} Elsewhere", b"moved", f"Location: {server.url('/b.png')}")
        server.answer("/b.png", "200 OK", BODY)
        assert await fetcher.fetch(server.url(), room()) == BODY

    async def test_the_host_header_names_the_host(self, server: Server, limits: IntakeLimits) -> None:
        server.answer("/", "200 OK", BODY)
        names = FakeNames(pictures_example=["127.0.0.1"])
        fetcher = Fetcher(limits, resolve=names)
        await fetcher.fetch(server.url(host="Pictures.Example"), room())
        assert server.requests[0]["host"] == f"pictures.example:{server.port}"

    async def test_the_next_address_is_tried(self, server: Server, limits: IntakeLimits) -> None:
        server.answer("/", "200 OK", BODY)
        names = FakeNames(pictures_example=["127.0.0.2", "::1", "127.0.0.1"])  # nobody listens on the first two
        fetcher = Fetcher(limits, resolve=names)
        assert await fetcher.fetch(server.url(host="pictures.example"), room()) == BODY

    async def test_cookies_are_not_kept(self, server: Server, fetcher: Fetcher) -> None:
        server.answer("/", "200 OK", BODY, "Set-Cookie: session=secret; Path=/")
        for _ in range(2):
            await fetcher.fetch(server.url(), room())
        assert "cookie" not in server.requests[1]

    async def test_many_at_once(self, server: Server, fetcher: Fetcher) -> None:
        for n in range(20):
            server.answer(f"/{n}", "200 OK", bytes([n]), delay=0.05)
        bodies = await asyncio.gather(*(fetcher.fetch(server.url(f"/{n}"), room()) for n in range(20)))
        assert bodies == [bytes([n]) for n in range(20)]


class TestTls:
    """The connection is made to an address, but the certificate must be valid for the host name of the URL."""

    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """A certificate for pictures.example, with its key, in one file."""
        x509 = pytest.importorskip("cryptography.x509")
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example")])
        now = datetime.datetime.now(datetime.UTC)
        signed = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.example")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = tmp_path / "certificate.pem"
        path.write_bytes(pem + signed.public_bytes(serialization.Encoding.PEM))
        return path

    @pytest.mark.parametrize(("host", "accepted"), [("pictures.example", True), ("other.example", False)])
    async def test_the_name_is_verified(
        self, host: str, accepted: bool, certificate: Path, limits: IntakeLimits
    ) -> None:
        of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        of_server.load_cert_chain(certificate)
        trust = ssl.create_default_context(cafile=str(certificate))
        names = FakeNames(pictures_example=["127.0.0.1"], other_example=["127.0.0.1"])
        transport = httpx.AsyncHTTPTransport(verify=trust)
        async with running(of_server) as server:
            server.answer("/", "200 OK", BODY)
            url = f"https://{host}:{server.port}/"
            fetcher = Fetcher(limits, resolve=names, transport=lambda: transport)
            if accepted:
                assert await fetcher.fetch(url, room()) == BODY
            else:
                assert (await refusal(fetcher, url)).code == "image_fetch_failed"


class TestForbiddenAddresses:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "localhost",
            "127.1",
            "2130706433",
            "0x7f000001",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "0.0.0.0",
            "[::]",
        ],
    )
    async def test_loopback_addresses(self, host: str, server: Server, limits: IntakeLimits) -> None:
        server.answer("/", "200 OK", BODY)
        fetcher = Fetcher(dataclasses.replace(limits, allow_private_urls=False))
        error = await refusal(fetcher, server.url(host=host))
        assert type(error) is SourceError
        assert error.code == "image_url_not_allowed"
        assert server.requests == []

    @pytest.mark.parametrize("host", ["10.0.0.1", "192.168.0.1", "169.254.169.254", "[fd00:ec2::254]"])
    async def test_private_networks_and_metadata_services(self, host: str, limits: IntakeLimits) -> None:
        fetcher = Fetcher(dataclasses.replace(limits, allow_private_urls=False))
        error = await refusal(fetcher, f"http://{host}/latest/meta-data/")
        assert error.code == "image_url_not_allowed"

    async def test_allow_private_urls(self, server: Server, fetcher: Fetcher) -> None:
        server.answer("/", "200 OK", BODY)
        assert await fetcher.fetch(server.url(host="localhost"), room()) == BODY

    @pytest.fixture
    def names(self) -> FakeNames:
        return FakeNames(pictures_example=[PUBLIC], inside_example=["10.0.0.1"], mixed_example=[PUBLIC, "127.0.0.1"])

    @pytest.fixture
    def guarded(self, names: FakeNames, limits: IntakeLimits) -> Fetcher:
        """A fetcher for public addresses only, whose requests are all answered by `internet`."""

        def internet(request: httpx.Request) -> httpx.Response:
            assert request.url.host == PUBLIC
            assert request.extensions["sni_hostname"] == "pictures.example"
            if request.url.path == "/":
                body = f"{request.url.host} {request.headers['Host']}".encode()
                return httpx.Response(200, stream=httpx.ByteStream(body))
            return httpx.Response(302, headers={"Location": request.url.query.decode()})

        strict = dataclasses.replace(limits, allow_private_urls=False)
        transport = httpx.MockTransport(internet)
        return Fetcher(strict, resolve=names, transport=lambda: transport)

    async def test_names_are_looked_up_once_and_the_checked_address_is_used(
        self, guarded: Fetcher, names: FakeNames
    ) -> None:
        body = await guarded.fetch("https://pictures.example/", room())
        assert body.decode() == f"{PUBLIC} pictures.example"
        assert names.asked == ["pictures.example"]

    @pytest.mark.parametrize("host", ["inside.example", "mixed.example"])
    async def test_names_of_private_addresses(self, host: str, guarded: Fetcher) -> None:
        error = await refusal(guarded, f"https://{host}/")
        assert error.code == "image_url_not_allowed"
        assert "10.0" not in error.message

    @pytest.mark.parametrize("inside", ["http://inside.example/", "https://mixed.example/", "//inside.example"])
    async def test_redirects_to_private_addresses(self, inside: str, guarded: Fetcher) -> None:
        error = await refusal(guarded, f"https://pictures.example/go?{inside}")
        assert error.code == "image_url_not_allowed"

    @pytest.mark.parametrize(
        "target",
        [
            "file:///etc/passwd",
            "ftp://pictures.example/",
            "data:,a",
            "http://",
            "http://a:99999/",
            "http://[::1",
        ],
    )
    async def test_redirects_to_other_schemes(self, target: str, guarded: Fetcher) -> None:
        error = await refusal(guarded, f"https://pictures.example/go?{target}")
        assert error.code == "invalid_image_url"

    async def test_a_redirect_to_a_url_with_a_password(self, guarded: Fetcher) -> None:
        error = await refusal(guarded, "https://pictures.example/go?https://me:secret@pictures.example/")
        assert error.code == "image_url_not_allowed"

    async def test_a_public_redirect_is_followed(self, guarded: Fetcher, names: FakeNames) -> None:
        await guarded.fetch("https://pictures.example/go?/", room())
        assert names.asked == ["pictures.example"] * 2

    @pytest.mark.parametrize("url", ["http://me:secret@pictures.example/", "http://me@pictures.example/"])
    async def test_urls_with_credentials(self, url: str, guarded: Fetcher) -> None:
        error = await refusal(guarded, url)
        assert error.code == "image_url_not_allowed"
        assert "secret" not in error.message

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "http://",
            "http:///a.png",
            "ftp://pictures.example/",
            "http://[::1",
            "http://a:99999/",
            "http://a\0b/",
        ],
    )
    async def test_malformed_urls(self, url: str, guarded: Fetcher) -> None:
        assert (await refusal(guarded, url)).code == "invalid_image_url"

    async def test_urls_can_be_switched_off(self, server: Server, limits: IntakeLimits) -> None:
        server.answer("/", "200 OK", BODY)
        fetcher = Fetcher(dataclasses.replace(limits, allow_urls=False))
        error = await refusal(fetcher, server.url())
        assert type(error) is SourceError
        assert "data URI" in error.message
        assert server.requests == []

    async def test_proxies_of_the_environment_are_not_used(
        self, server: Server, limits: IntakeLimits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.9:9")
        server.answer("/", "200 OK", BODY)
        fetcher = Fetcher(limits)
        assert await fetcher.fetch(server.url(), room()) == BODY


class TestLimits:
    @pytest.fixture
    def small(self, limits: IntakeLimits) -> Fetcher:
        """A fetcher for at most 1000 bytes."""
        return Fetcher(dataclasses.replace(limits, max_image_bytes=1000))

    @pytest.fixture
    def impatient(self, limits: IntakeLimits) -> Fetcher:
        """A fetcher that gives up after half a second."""
        return Fetcher(dataclasses.replace(limits, fetch_timeout_s=0.5))

    @pytest.mark.parametrize(("size", "accepted"), [(1000, True), (1001, False)])
    @pytest.mark.parametrize("kind", ["with a length", "without a length", "gzipped"])
    async def test_bytes(self, size: int, accepted: bool, kind: str, server: Server, small: Fetcher) -> None:
        body = bytes(size)
        if kind == "with a length":
            server.answer("/", "200 OK", body)
        elif kind == "gzipped":
            server.answer("/", "200 OK", gzip.compress(body), "Content-Encoding: gzip")
        else:
            server.answers["/"] = [(0, b"HTTP/1.0 200 OK\r\n\r\n" + body)]
        if accepted:
            assert await small.fetch(server.url(), room()) == body
        else:
            assert isinstance(await refusal(small, server.url()), SourceTooLarge)

    async def test_a_length_over_the_limit_is_believed(self, server: Server, small: Fetcher) -> None:
        # Waiting for the body would end in a timeout.
        server.answers["/"] = [(0, b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"), (60, b"")]
        assert isinstance(await refusal(small, server.url()), SourceTooLarge)

    async def test_an_endless_body_is_cut_off(self, server: Server, small: Fetcher) -> None:
        server.answers["/"] = [(0, b"HTTP/1.0 200 OK\r\n\r\n"), *[(0, bytes(1 << 20))] * 200]
        assert isinstance(await refusal(small, server.url()), SourceTooLarge)
        assert server.bytes_sent < 50 << 20

    @pytest.mark.parametrize("kind", ["with a length", "without a length", "gzipped"])
    async def test_memory_is_reserved_for_the_body(self, server: Server, fetcher: Fetcher, kind: str) -> None:
        body = bytes(300_000)
        if kind == "with a length":
            server.answer("/", "200 OK", body)
        elif kind == "gzipped":
            server.answer("/", "200 OK", gzip.compress(body), "Content-Encoding: gzip")
        else:
            server.answers["/"] = [(0, b"HTTP/1.0 200 OK\r\n\r\n" + body)]
        memory = MemoryBudget(1_000_000)
        with memory.reserve(Use.SOURCES) as held:
            await fetcher.fetch(server.url(), held)
            assert memory.total == len(body)
            with pytest.raises(TooMany), memory.reserve(Use.SOURCES) as more:
                await fetcher.fetch(server.url(), more)
        assert memory.total == 0

    async def test_a_gzip_bomb(self, server: Server, small: Fetcher) -> None:
        bomb = gzip.compress(bytes(50 << 20))
        server.answers["/"] = [(0, b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + bomb)]
        tracemalloc.start()
        try:
            assert isinstance(await refusal(small, server.url()), SourceTooLarge)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5 << 20

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["no answer", "slow answer", "slow body", "slow redirects"])
    async def test_timeout(self, kind: str, server: Server, impatient: Fetcher) -> None:
        drip: list[tuple[float, bytes]] = [(0.2, b"x")] * 30
        if kind == "no answer":
            server.answer("/", "200 OK", BODY, delay=5)
        elif kind == "slow answer":
            server.answers["/"] = [(0.0, b"HTTP/1.1 200 OK\r\nX-Name: "), *drip]
        elif kind == "slow body":
            server.answers["/"] = [(0, b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"), *drip]
        else:
            server.answer("/", "302 Found", b"", "Location: /", delay=0.3)
        error = await refusal(impatient, server.url())
        assert type(error) is SourceError
        assert error.code == "image_fetch_failed"
        assert "0.5 s" in error.message

    async def test_the_timeout_includes_name_resolution(self, limits: IntakeLimits) -> None:
        async def never(host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

        quick = dataclasses.replace(limits, fetch_timeout_s=0.1)
        fetcher = Fetcher(quick, resolve=never)
        assert (await refusal(fetcher, "http://pictures.example/")).code == "image_fetch_failed"

    async def test_redirects(self, server: Server, fetcher: Fetcher) -> None:
        server.answer("/4", "200 OK", BODY)
        for n in range(4):
            server.answer(f"/{n}", "302 Found", b"", f"Location: /{n + 1}")
        assert await fetcher.fetch(server.url("/1"), room()) == BODY
        error = await refusal(fetcher, server.url("/0"))
        assert error.code == "image_fetch_failed"
        assert "3 redirects" in error.message

    async def test_a_redirect_loop(self, server: Server, fetcher: Fetcher) -> None:
        server.answer("/", "302 Found", b"", "Location: /")
        assert (await refusal(fetcher, server.url())).code == "image_fetch_failed"
        assert len(server.requests) == 4


class TestFailures:
    """The error says in a few words why the file could not be fetched."""

    @pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "500 Oops", "304 Not Modified"])
    async def test_status(self, status: str, server: Server, fetcher: Fetcher) -> None:
        server.answer("/", status)
        error = await refusal(fetcher, server.url())
        assert type(error) is SourceError
        assert error.code == "image_fetch_failed"
        assert status[:3] in error.message

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot gzip at all",
            b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(BODY)[:-12],
            b"HTTP/1.0 200 OK\r\nContent-Encoding: br\r\n\r\n" + BODY,
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        ],
    )
    async def test_broken_answers(self, answer: bytes, server: Server, fetcher: Fetcher) -> None:
        server.answers["/"] = [(0, answer)]
        error = await refusal(fetcher, server.url())
        assert type(error) is SourceError
        assert error.code == "image_fetch_failed"

    async def test_no_server_at_the_address(self, server: Server, fetcher: Fetcher) -> None:
        error = await refusal(fetcher, server.url(host="127.0.0.7"))
        assert error.code == "image_fetch_failed"
        assert "127.0.0.7" not in error.message

    @pytest.mark.parametrize("addresses", [None, []])
    async def test_unknown_names(self, addresses: list[str] | None, limits: IntakeLimits) -> None:
        names = FakeNames() if addresses is None else FakeNames(pictures_example=addresses)
        fetcher = Fetcher(limits, resolve=names)
        error = await refusal(fetcher, "http://pictures.example/")
        assert error.code == "image_fetch_failed"
        assert "host name" in error.message

    async def test_a_name_that_is_too_long_for_dns(self, fetcher: Fetcher) -> None:
        assert (await refusal(fetcher, f"http://{'a' * 70}.example/")).code == "image_fetch_failed"
