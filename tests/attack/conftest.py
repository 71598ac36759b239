"""Servers that several tests attack. They are warmed up, so that what they import late is not taken for a leak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.fake_server import Spec
from tests.attack.harness import KEY, KEYED, GoodClient, Server


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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of its own for a test: `start(key, SETTING=value, …)`."""
    started: list[Server] = []

    def start(spec: Spec, key: str = "") -> Server:
        server = Server(tmp_path / f"server-{len(started)}", spec)
        started.append(server)
        server.start()
        return warmed_up(server, key)

    yield start
    for server in started:
        server.stop()
