"""The server survives the death of its engine process, and leaves no process when it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_requests import PICTURES, RECEIPT, SIGN, call, request, text_of, truth
from live_server import START_SECONDS, WAIT_SECONDS, Server, running, wait_until
from openai import OpenAI

from tests.processes import descendants

pytestmark = [pytest.mark.live, pytest.mark.timeout(6 * START_SECONDS)]

STALL_SECONDS = 5
KILLS = int(os.environ.get("RECOVERY_KILLS", "3"))


@pytest.fixture(scope="module")
def restarting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that restarts its engine KILLS times; one more death ends it."""
    with running(tmp_path_factory.mktemp("restarting") / "log", "--engine-restarts", str(KILLS)) as server:
        server.wait_ready()
        yield server


def engine_of(server: Server) -> psutil.Process:
    (engine,) = descendants(server.process.pid, "EngineCore")
    return engine


class Client:
    """A client that uses the official SDK, and counts the streams that break before the answer is complete."""

    def __init__(self, server: Server) -> None:
        self.sdk = OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=100, timeout=START_SECONDS)
        self.started = threading.Event()
        self.broken_streams = 0

    def whole(self, picture: Path) -> str:
        return text_of(self.sdk.chat.completions.create(**call(picture)))

    def streamed(self, picture: Path) -> str:
        """Read a picture as a stream. Repeats broken streams, which the SDK itself does not retry."""
        while True:
            text = ""
            try:
                for chunk in self.sdk.chat.completions.create(**call(picture), stream=True):
                    text += chunk.choices[0].delta.content or ""
                    if text:
                        self.started.set()
                return text
            except openai.APIError as error:
                if error.code != "engine_unavailable":
                    raise
                self.broken_streams += 1


@pytest.mark.parametrize("_", range(KILLS))
def test_every_request_is_answered_although_the_engine_is_killed(restarting: Server, _: int) -> None:
    engine = engine_of(restarting)
    first = Client(restarting)
    clients = [first, *(Client(restarting) for _ in range(3))]
    with ThreadPoolExecutor(2 * len(clients)) as pool:
        # The longest picture first: its stream is the one that is running when the engine dies.
        streams = [pool.submit(first.streamed, RECEIPT)]
        assert first.started.wait(WAIT_SECONDS)
        streams += [
            pool.submit(client.streamed, picture) for client, picture in zip(clients[1:], PICTURES, strict=False)
        ]
        wholes = [pool.submit(client.whole, SIGN) for client in clients]
        engine.kill()

        detected = wait_until("/health reports it", lambda: _status(restarting) == 503, every=0.02)
        refusal = httpx.post(f"{restarting.url}/v1/chat/completions", json=request())
        assert refusal.status_code == 503
        assert refusal.json()["error"]["code"] == "engine_unavailable"
        back = wait_until("the engine is back", lambda: _status(restarting) == 200, START_SECONDS, every=0.2)
        print(f"detected after {detected:.2f} s, ready {back:.1f} s later")

        assert [stream.result() for stream in streams] == [truth(RECEIPT), *map(truth, PICTURES[: len(streams) - 1])]
        assert [whole.result() for whole in wholes] == [truth(SIGN)] * len(wholes)
    assert first.broken_streams == 1
    assert not engine.is_running(), "the killed engine should be gone"
    assert restarting.process.poll() is None


def test_the_server_ends_after_too_many_engine_failures(restarting: Server) -> None:
    """Waiting clients get an error, and the exit code is 1. The last test that uses this server."""
    restarting.wait_ready()
    with httpx.stream("POST", f"{restarting.url}/v1/chat/completions", json=request(RECEIPT, stream=True)) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        engine_of(restarting).kill()
        *_, error, done = lines
    assert '"engine_unavailable"' in error
    assert done == "data: [DONE]"
    assert restarting.process.wait(WAIT_SECONDS) == 1
    assert f"{KILLS + 1} times" in restarting.log
    wait_until("no process is left", lambda: not restarting.orphans())


def test_a_slow_answer_is_no_hang_but_a_stopped_engine_is_and_the_page_is_not_blamed(tmp_path: Path) -> None:
    """With a limit that is shorter than the answer, which is not streamed. The engine is stopped twice."""
    with running(tmp_path / "log", "--engine-stall-timeout", str(STALL_SECONDS), "--loops", "off") as server:
        server.wait_ready()
        long = {"max_tokens": 1500, "ignore_eos": True}
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(_finish_reason, server, request(RECEIPT, **long)) for _ in range(2)]
            took = wait_until("the long answers end", lambda: all(each.done() for each in answers), 600)
        assert [each.result() for each in answers] == ["length"] * 2
        assert "has stopped making progress" not in server.log
        print(f"two answers took {took:.1f} s, with a limit of {STALL_SECONDS} s")
        for _ in range(2):
            client = Client(server)
            with ThreadPoolExecutor() as pool:
                stream = pool.submit(client.streamed, RECEIPT)
                assert client.started.wait(WAIT_SECONDS)
                engine = engine_of(server)
                engine.suspend()
                detected = wait_until("/health reports it", lambda: _status(server) == 503, 20 * STALL_SECONDS)
                print(f"a stopped engine was noticed after {detected:.1f} s")
                assert stream.result() == truth(RECEIPT)
            assert client.broken_streams == 1
            assert not engine.is_running(), "the stopped engine should be gone"
        assert server.log.count("has stopped making progress") == 2
        assert server.log.count("killed or stopped from outside") == 2


def _finish_reason(server: Server, body: dict[str, Any]) -> str:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["finish_reason"])


def test_a_second_signal_stops_immediately(tmp_path: Path) -> None:
    """Even while the model loads, and with a request in flight whose body never arrives completely."""
    with running(tmp_path / "log", "--shutdown-timeout", "600") as server:
        wait_until("the server listens", lambda: server.health() is not None, START_SECONDS)
        wait_until("the engine's process starts", lambda: _has_engine(server), START_SECONDS)
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
            wait_until("the request has arrived", lambda: server.health() is not None)
            server.process.send_signal(signal.SIGTERM)
            wait_until("new connections are refused", lambda: server.health() is None)
            assert server.process.poll() is None, "it should wait for the request"
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(WAIT_SECONDS) == 1
        wait_until("no process is left", lambda: not server.orphans())
        assert "Stopped immediately" in server.log


def _status(server: Server) -> int | None:
    health = server.health()
    return None if health is None else health.status_code


def _has_engine(server: Server) -> bool:
    return any(descendants(server.process.pid, "EngineCore"))
