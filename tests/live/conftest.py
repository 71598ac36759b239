"""Fixtures: a server with the real engine, shared by all live tests, and clients for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

# The tests are not imported as a package, so their helper modules must be found on the path.
sys.path.append(str(Path(__file__).parent))

from live_server import WAIT_SECONDS, Server, running

LIMITS = {
    "--max-body-mb": "8",
    "--max-image-mb": "4",
    "--max-image-megapixels": "20",
    "--max-images": "16",
    "--max-pages": "100",
    "--fetch-timeout": "2",
}
"""Lower than the defaults, so that tests can exceed them quickly."""

TEST_SECONDS = 900
"""Limit for a live test that has none of its own, including the start of the server. It guards against hanging."""

_current: list[Server] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("live") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = [word for pair in LIMITS.items() for word in pair]
    with running(tmp_path_factory.mktemp("server") / "log", "--allow-private-urls", *flags) as server:
        server.wait_ready()
        _current.append(server)
        yield server
        _current.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the server's log to the report of a failed test."""
    report = yield
    if report.failed and _current:
        report.sections.append(("end of the shared server's log", _current[0].log[-6000:]))
    return report


@pytest.fixture(scope="session")
def base_url(server: Server) -> str:
    """The base URL for the SDK."""
    return f"{server.url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    """The official SDK. It validates every response against its types, and does not retry."""
    with OpenAI(
        base_url=base_url, api_key="EMPTY", max_retries=0, timeout=WAIT_SECONDS, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=base_url, api_key="EMPTY", max_retries=0, timeout=WAIT_SECONDS, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """A plain HTTP client, for requests that the SDK can't send and responses that it doesn't expose."""
    with httpx.Client(base_url=server.url, timeout=WAIT_SECONDS) as client:
        yield client


@pytest.fixture
def engine_idle(server: Server) -> Iterator[Server]:
    """The server with an idle engine. Waits for that before the test, and again after it."""
    server.wait_idle()
    yield server
    server.wait_idle()


class Files:
    """A web server that serves the files in `paths`."""

    def __init__(self) -> None:
        self.paths: dict[str, bytes] = {}
        self.seen: list[str] = []
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.seen.append(self.path)
                if self.path == "/never":
                    files.released.wait(30)
                    return
                if self.path.startswith("/redirect-to"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/redirect-to"))
                    self.end_headers()
                    return
                data = files.paths.get(self.path)
                self.send_response(404 if data is None else 200)
                self.end_headers()
                self.wfile.write(data or b"no such picture")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    yield files
    files.close()
