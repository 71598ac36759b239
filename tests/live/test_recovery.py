"""The engine's processes are killed, and the server goes on; or it is stopped, and nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from live_requests import PICTURES, RECEIPT, SIGN, call, request, text_of, truth
from live_server import START_SECONDS, Server, running, wait_until
from openai import OpenAI

from tests.processes import descendants

pytestmark = [pytest.mark.live, pytest.mark.timeout(6 * START_SECONDS)]

KILLS = int(os.environ.get("RECOVERY_KILLS", "3"))


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of which one engine more may die than it replaces."""
    with running(tmp_path_factory.mktemp("mortal") / "log", "--engine-restarts", str(KILLS)) as server:
        server.wait_ready()
        yield server


def engine_of(server: Server) -> psutil.Process:
    (engine,) = descendants(server.process.pid, "EngineCore")
    return engine


class Client:
    """The official SDK, and what it met until its answer was there."""

    def __init__(self, server: Server) -> None:
        self.sdk = OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=100, timeout=START_SECONDS)
        self.begun = threading.Event()
        self.broken_streams = 0

    def whole(self, picture: Path) -> str:
        return text_of(self.sdk.chat.completions.create(**call(picture)))

    def streamed(self, picture: Path) -> str:
        """As often as it takes: what has begun to come, the SDK does not ask for again."""
        while True:
            text = ""
            try:
                for chunk in self.sdk.chat.completions.create(**call(picture), stream=True):
                    text += chunk.choices[0].delta.content or ""
                    if text:
                        self.begun.set()
                return text
            except openai.APIError as error:
                if error.code != "engine_unavailable":
                    raise
                self.broken_streams += 1


@pytest.mark.parametrize("_", range(KILLS))
def test_every_answer_comes_though_the_engine_is_killed(mortal: Server, _: int) -> None:
    engine = engine_of(mortal)
    first = Client(mortal)
    clients = [first, *(Client(mortal) for _ in range(3))]
    with ThreadPoolExecutor(2 * len(clients)) as pool:
        # The longest picture first: its stream is the one that is under way when the engine dies.
        streams = [pool.submit(first.streamed, RECEIPT)]
        assert first.begun.wait(60)
        streams += [
            pool.submit(client.streamed, picture) for client, picture in zip(clients[1:], PICTURES, strict=False)
        ]
        wholes = [pool.submit(client.whole, SIGN) for client in clients]
        engine.kill()

        detected = wait_until("/health says so", lambda: _status(mortal) == 503, 15, every=0.02)
        refusal = httpx.post(f"{mortal.url}/v1/chat/completions", json=request())
        assert refusal.status_code == 503
        assert refusal.json()["error"]["code"] == "engine_unavailable"
        back = wait_until("the engine is back", lambda: _status(mortal) == 200, START_SECONDS, every=0.2)
        print(f"detected after {detected:.2f} s, ready {back:.1f} s later")

        assert [stream.result() for stream in streams] == [truth(RECEIPT), *map(truth, PICTURES[: len(streams) - 1])]
        assert [whole.result() for whole in wholes] == [truth(SIGN)] * len(wholes)
    assert first.broken_streams == 1
    assert not engine.is_running(), "the dead engine should be gone"
    assert mortal.process.poll() is None


def test_one_death_too_many_ends_the_server(mortal: Server) -> None:
    """The last in this file that uses it: with an error for who waits, and an exit code for who supervises."""
    mortal.wait_ready()
    with httpx.stream("POST", f"{mortal.url}/v1/chat/completions", json=request(RECEIPT, stream=True)) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        engine_of(mortal).kill()
        *_, error, done = lines
    assert '"engine_unavailable"' in error
    assert done == "data: [DONE]"
    assert mortal.process.wait(30) == 1
    assert f"{KILLS + 1} times" in mortal.log
    wait_until("every process is gone", lambda: not mortal.orphans(), 10)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Even while the model loads, and while a request is in flight that will never be whole."""
    with running(tmp_path / "log") as server:
        wait_until("it listens", lambda: server.health() is not None, START_SECONDS)
        wait_until("the engine's process starts", lambda: _has_engine(server), START_SECONDS)
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
            wait_until("the request is there", lambda: server.health() is not None, 5)
            server.process.send_signal(signal.SIGTERM)
            wait_until("new connections are refused", lambda: server.health() is None, 5)
            with pytest.raises(TimeoutError):
                _ended(server, 1.5)
            server.process.send_signal(signal.SIGTERM)
            assert _ended(server, 10) == 1
        wait_until("every process is gone", lambda: not server.orphans(), 10)
        assert "stopped at once" in server.log


def _status(server: Server) -> int | None:
    health = server.health()
    return None if health is None else health.status_code


def _has_engine(server: Server) -> bool:
    return any(descendants(server.process.pid, "EngineCore"))


def _ended(server: Server, seconds: float) -> int:
    """Its exit code. Raises TimeoutError."""
    try:
        wait_until("it has ended", lambda: server.process.poll() is not None, seconds)
    except AssertionError as error:
        raise TimeoutError from error
    return int(server.process.returncode)
