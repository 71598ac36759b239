"""From the first second to the last: loading, failing to start, shutting down."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_requests import PICTURES, SIGN, call, events, request, text_of, truth
from live_server import ROOT, START_SECONDS, Server, command, environment, running, wait_until
from openai import OpenAI

pytestmark = [pytest.mark.live, pytest.mark.timeout(3 * START_SECONDS)]

DRAIN_SECONDS = 100
"""Enough for all of them, on a machine that is busy with something else."""
OTHERS = 12
"""Clients that read a picture while the server is told to stop."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for this module alone, given over as soon as it answers anything."""
    with running(tmp_path_factory.mktemp("own server") / "log", "--shutdown-timeout", f"{DRAIN_SECONDS}") as server:
        wait_until("it listens", lambda: server.health() is not None, 60)
        yield server


def run(*flags: str, seconds: float = 90) -> tuple[int, str, float]:
    """Run a server that ends by itself: exit code, what it wrote to stderr, seconds."""
    started = time.monotonic()
    done = subprocess.run(
        command("--host", "127.0.0.1", *flags),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=seconds,
    )
    return done.returncode, done.stderr, time.monotonic() - started


def test_while_it_loads_it_says_so(own: Server) -> None:
    answer = own.health()
    assert answer is not None
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "load" in answer.json()["reason"]
    assert httpx.get(f"{own.url}/v1/models").status_code == 200
    sdk = OpenAI(base_url=f"{own.url}/v1", api_key="EMPTY", max_retries=0)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(**call(), stream=stream)
        assert caught.value.status_code == 503  # the SDK tries again of itself, if it may
        assert caught.value.type == "server_error"
        assert caught.value.code == "engine_unavailable"
        assert "load" in caught.value.message


def test_a_taken_port_is_told_at_once(server: Server) -> None:
    code, stderr, seconds = run("--port", str(server.port))
    assert code == 1
    assert f"127.0.0.1:{server.port}" in stderr
    assert "--port" in stderr, "it should say what to do"
    assert "Traceback" not in stderr
    assert seconds < 20
    assert httpx.get(f"{server.url}/health").status_code == 200, "the one that was there goes on"


def test_a_model_that_is_not_there_ends_the_server(tmp_path: Path) -> None:
    code, stderr, _ = run("--port", "0", "--model", str(tmp_path / "no-such-model"))
    assert code == 1
    assert "no-such-model" in stderr
    assert "--model" in stderr, "it should say what to do"
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--port", "99999"], "PORT"), (["--base-size", "1000"], "base_size"), (["--no-such-flag"], "no-such-flag")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_flag_is_named(flags: list[str], named: str) -> None:
    code, stderr, seconds = run(*flags)
    assert code == 2
    assert named in stderr
    assert "Traceback" not in stderr
    assert seconds < 20


def test_sigterm_lets_requests_finish_and_leaves_nothing(own: Server) -> None:
    own.wait_ready()
    assert own.family(), "the engine should be a process of its own"
    tokens = 300
    body: dict[str, Any] = {"ignore_eos": True, "max_tokens": tokens}

    received: list[str] = []
    begun = threading.Event()

    def read_stream() -> None:
        streamed = request(**body, stream=True, stream_options={"include_usage": True})
        with httpx.stream("POST", f"{own.url}/v1/chat/completions", json=streamed, timeout=DRAIN_SECONDS) as answer:
            for text in answer.iter_text():
                received.append(text)
                begun.set()

    whole: list[httpx.Response] = []

    def read_whole() -> None:
        whole.append(httpx.post(f"{own.url}/v1/chat/completions", json=request(**body), timeout=DRAIN_SECONDS))

    others: dict[int, str] = {}

    def read_picture(number: int) -> None:
        with OpenAI(base_url=f"{own.url}/v1", api_key="EMPTY", max_retries=0, timeout=DRAIN_SECONDS) as sdk:
            others[number] = text_of(sdk.chat.completions.create(**call(PICTURES[number % len(PICTURES)])))

    readers = [threading.Thread(target=read_stream), threading.Thread(target=read_whole)]
    readers += [threading.Thread(target=read_picture, args=(number,)) for number in range(OTHERS)]
    for reader in readers:
        reader.start()
    assert begun.wait(30)
    wait_until("all are accepted", lambda: own.gauge("ocr_pages_in_flight") + len(others) == len(readers), 30)
    assert len(others) < OTHERS

    own.process.send_signal(signal.SIGTERM)
    wait_until("new connections are refused", lambda: own.health() is None, 5)
    assert any(reader.is_alive() for reader in readers), "the answers should have outlived the signal"
    for reader in readers:
        reader.join(DRAIN_SECONDS)
        assert not reader.is_alive()

    *chunks, last, usage, done = events("".join(received))
    assert done == "[DONE]"
    assert not [chunk for chunk in (*chunks, last, usage) if "error" in chunk]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks).startswith(truth(SIGN))
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == tokens
    assert whole[0].status_code == 200
    assert whole[0].json()["usage"]["completion_tokens"] == tokens
    assert others == {number: truth(PICTURES[number % len(PICTURES)]) for number in range(OTHERS)}

    assert own.process.wait(30) == 0
    wait_until("every process is gone", lambda: not own.orphans(), 10)
    assert not psutil.pid_exists(own.process.pid)
    assert "Traceback" not in own.log


@pytest.mark.parametrize("signals", [1, 2])
def test_what_a_stop_cuts_off_is_told(tmp_path: Path, signals: int) -> None:
    """After SHUTDOWN_TIMEOUT, or at a second signal: the client learns that it can try again, the log is quiet."""
    flags = ["--loops", "off", "--shutdown-timeout", "2" if signals == 1 else "60"]
    with running(tmp_path / "log", *flags) as server:
        server.wait_ready()
        endless: dict[str, Any] = {"ignore_eos": True, "max_tokens": 6000, "ocr": {"ngram_size": 0, "mode": "tiny"}}
        answers: dict[bool, httpx.Response] = {}

        def read(stream: bool) -> None:
            body = request(stream=stream, **endless)
            answers[stream] = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)

        readers = [threading.Thread(target=read, args=(stream,)) for stream in (True, False)]
        for reader in readers:
            reader.start()
        with socket.create_connection(("127.0.0.1", server.port), 30) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
            server.wait_busy(2)
            time.sleep(2)  # the stream is under way
            started = time.monotonic()
            for _ in range(signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            for reader in readers:
                reader.join(20)
                assert not reader.is_alive()
            assert server.process.wait(20) == signals - 1
            assert time.monotonic() - started < 15
            unsent = slow.recv(65536).decode()
        assert unsent.startswith("HTTP/1.1 503 ")
        assert "retry-after: " in unsent
        assert answers[False].status_code == 503
        assert answers[False].json()["error"]["code"] == "engine_unavailable"
        assert answers[False].headers["retry-after"]
        *chunks, error, done = events(answers[True].text)
        assert chunks
        assert error["error"]["code"] == "engine_unavailable"
        assert done == "[DONE]"
        assert "Traceback" not in server.log, server.log
        assert "Exception" not in server.log, server.log
        wait_until("every process is gone", lambda: not server.orphans(), 10)


def test_a_server_that_is_killed_leaves_no_engine(tmp_path: Path) -> None:
    """An engine without a server would keep the memory of its GPU."""
    with running(tmp_path / "log") as server:
        server.wait_ready()
        server.process.kill()
        server.process.wait()
        wait_until("every process is gone", lambda: not server.orphans(), 10)
