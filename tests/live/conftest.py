"""One real server with the real engine, shared by all live tests, and the official SDK to talk to it."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

# Tests are imported without a package around them, so their two plain helper modules need the path.
sys.path.append(str(Path(__file__).parent))

from live_server import Server, running

LIMITS = {
    "--max-body-mb": "8",
    "--max-image-mb": "4",
    "--max-image-megapixels": "20",
    "--max-images": "16",
    "--max-pages": "100",
    "--fetch-timeout": "2",
}
"""Lower than by default, so that a test goes over them in no time."""

_current: list[Server] = []


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
    """Show what the server logged last beside a test that failed."""
    report = yield
    if report.failed and _current:
        report.sections.append(("the shared server's log, its end", _current[0].log[-6000:]))
    return report


@pytest.fixture(scope="session")
def base_url(server: Server) -> str:
    """As the SDK takes it."""
    return f"{server.url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    """Checks every answer against the SDK's types, and tries nothing twice."""
    with OpenAI(
        base_url=base_url, api_key="EMPTY", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=base_url, api_key="EMPTY", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """For what the SDK would not send or not show."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def engine_idle(server: Server) -> Iterator[Server]:
    """The server with an engine that has nothing to do: certain before the test, demanded after it."""
    server.wait_idle(20)
    yield server
    server.wait_idle()


class Files:
    """A web server for pictures: what is put into `paths` is served."""

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
