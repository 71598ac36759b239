"""Servers that several tests attack. They are warmed up, so that what they import late is not taken for a leak."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.attack.fake_server import Spec
from tests.attack.harness import KEY, KEYED, MEGA, GoodClient, Server, png_bytes


class Files(BaseHTTPRequestHandler):
    """A web server with hostile files."""

    picture = png_bytes(32, 32)
    bomb = gzip.compress(bytes(49 * MEGA), 1)

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/bomb":
            self.send_header("content-encoding", "gzip")
            self.end_headers()
            self.wfile.write(self.bomb)
        elif self.path == "/endless":
            self.end_headers()
            with self._left():
                while True:
                    self.wfile.write(bytes(65_536))
        elif self.path == "/picture":
            self.end_headers()
            self.wfile.write(self.picture)
        elif self.path == "/slow":
            self.end_headers()
            with self._left():
                while not threading.Event().wait(0.2):
                    self.wfile.write(b"x")

    @contextmanager
    def _left(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def files_server() -> Iterator[str]:
    """Run the web server, and yield its URL."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()


@pytest.fixture(scope="session")
def files() -> Iterator[str]:
    """URL of a web server with hostile files."""
    with files_server() as url:
        yield url


def warmed_up(server: Server, key: str = "") -> Server:
    client = GoodClient(server, key)
    for _ in range(3):
        assert client.ask().status_code == 200, client.wrong
    client.close()
    return server


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with API keys."""
    with Server(tmp_path_factory.mktemp("keyed"), Spec({**KEYED, "MEMORY_BUDGET_MB": 512})) as server:
        yield warmed_up(server, KEY)


@pytest.fixture(scope="session")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with API keys and little memory, which downloads from this machine."""
    settings = {**KEYED, "MEMORY_BUDGET_MB": 600, "ALLOW_PRIVATE_URLS": True, "FETCH_TIMEOUT": 5}
    with Server(tmp_path_factory.mktemp("tight"), Spec(settings)) as server:
        yield warmed_up(server, KEY)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of its own for a test: `start(Spec(…), key)`."""
    started: list[Server] = []

    def start(spec: Spec, key: str = "") -> Server:
        server = Server(tmp_path / f"server-{len(started)}", spec)
        started.append(server)
        server.start()
        return warmed_up(server, key)

    yield start
    for server in started:
        server.stop()
