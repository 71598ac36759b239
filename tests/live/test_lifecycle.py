"""The life of a server: loading, failing to start, shutting down."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_requests import PICTURES, SIGN, call, events, request, text_of, truth
from live_server import ROOT, START_SECONDS, WAIT_SECONDS, Server, command, environment, running, wait_until
from openai import OpenAI

pytestmark = [pytest.mark.live, pytest.mark.timeout(3 * START_SECONDS)]

DRAIN_SECONDS = 100
"""The shutdown timeout; enough for all requests on a busy machine."""
OTHERS = 12
"""Number of additional clients that are reading an image when the server is stopped."""


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for this module alone, available as soon as it accepts connections."""
    with running(tmp_path_factory.mktemp("own server") / "log", "--shutdown-timeout", f"{DRAIN_SECONDS}") as server:
        wait_until("the server listens", lambda: server.health() is not None)
        yield server


def run(*flags: str) -> tuple[int, str, str]:
    """Run a server that ends by itself. Return its exit code, its standard output and its standard error."""
    done = subprocess.run(
        command("--host", "127.0.0.1", *flags),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


def test_requests_get_503_while_the_model_loads(own_server: Server) -> None:
    answer = own_server.health()
    assert answer is not None
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "load" in answer.json()["reason"]
    assert httpx.get(f"{own_server.url}/v1/models").status_code == 200
    sdk = OpenAI(base_url=f"{own_server.url}/v1", api_key="EMPTY", max_retries=0)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(**call(), stream=stream)
        assert caught.value.status_code == 503  # the SDK would retry if it were allowed to
        assert caught.value.type == "server_error"
        assert caught.value.code == "engine_unavailable"
        assert "load" in caught.value.message


def test_a_port_in_use_is_reported_before_the_engine_starts(server: Server) -> None:
    code, stdout, stderr = run("--port", str(server.port))
    assert code == 1
    assert f"127.0.0.1:{server.port}" in stderr
    assert "--port" in stderr, "it should say what to do"
    assert "Traceback" not in stderr
    assert stdout == "", "it should not have started to load the model"
    assert httpx.get(f"{server.url}/health").status_code == 200, "the other server should not be affected"


def test_a_missing_model_ends_the_server(tmp_path: Path) -> None:
    code, _, stderr = run("--port", "0", "--model", str(tmp_path / "no-such-model"))
    assert code == 1
    assert "no-such-model" in stderr
    assert "--model" in stderr, "it should say what to do"
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--port", "99999"], "PORT"), (["--base-size", "1000"], "base_size"), (["--no-such-flag"], "no-such-flag")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_flag_is_reported_before_the_engine_starts(flags: list[str], named: str) -> None:
    code, stdout, stderr = run(*flags)
    assert code == 2
    assert named in stderr
    assert "Traceback" not in stderr
    assert stdout == "", "it should not have started to load the model"


def test_sigterm_completes_running_requests_and_leaves_no_process(own_server: Server) -> None:
    own_server.wait_ready()
    assert own_server.remember_descendants(), "the engine should run in its own process"
    tokens = 300
    body: dict[str, Any] = {"ignore_eos": True, "max_tokens": tokens}

    received: list[str] = []
    started = threading.Event()

    def read_stream() -> None:
        streamed = request(**body, stream=True, stream_options={"include_usage": True})
        with httpx.stream(
            "POST", f"{own_server.url}/v1/chat/completions", json=streamed, timeout=DRAIN_SECONDS
        ) as answer:
            for text in answer.iter_text():
                received.append(text)
                started.set()

    whole: list[httpx.Response] = []

    def read_whole() -> None:
        whole.append(httpx.post(f"{own_server.url}/v1/chat/completions", json=request(**body), timeout=DRAIN_SECONDS))

    others: dict[int, str] = {}

    def read_picture(number: int) -> None:
        with OpenAI(base_url=f"{own_server.url}/v1", api_key="EMPTY", max_retries=0, timeout=DRAIN_SECONDS) as sdk:
            others[number] = text_of(sdk.chat.completions.create(**call(PICTURES[number % len(PICTURES)])))

    readers = [threading.Thread(target=read_stream), threading.Thread(target=read_whole)]
    readers += [threading.Thread(target=read_picture, args=(number,)) for number in range(OTHERS)]
    for reader in readers:
        reader.start()
    assert started.wait(WAIT_SECONDS)
    wait_until(
        "all requests are accepted", lambda: own_server.metric("ocr_pages_in_flight") + len(others) == len(readers)
    )
    assert len(others) < OTHERS

    own_server.process.send_signal(signal.SIGTERM)
    wait_until("new connections are refused", lambda: own_server.health() is None)
    assert any(reader.is_alive() for reader in readers), "requests should still be running after the signal"
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

    assert own_server.process.wait(WAIT_SECONDS) == 0
    wait_until("no process is left", lambda: not own_server.orphans())
    assert not psutil.pid_exists(own_server.process.pid)
    assert "Traceback" not in own_server.log


@pytest.mark.parametrize("signals", [1, 2])
def test_requests_cut_off_by_a_shutdown_get_an_error(tmp_path: Path, signals: int) -> None:
    """After SHUTDOWN_TIMEOUT or a second signal, clients get an error that says to retry; the log has no traceback."""
    flags = ["--loops", "off", "--shutdown-timeout", "2" if signals == 1 else "600"]
    with running(tmp_path / "log", *flags) as server:
        server.wait_ready()
        endless: dict[str, Any] = {"ignore_eos": True, "max_tokens": 6000, "ocr": {"ngram_size": 0, "mode": "tiny"}}
        answers: dict[bool, tuple[int, httpx.Headers, str]] = {}

        streaming = threading.Event()

        def read(stream: bool) -> None:
            body = request(stream=stream, **endless)
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
                text = ""
                for piece in answer.iter_text():
                    text += piece
                    if stream:
                        streaming.set()
            answers[stream] = answer.status_code, answer.headers, text

        readers = [threading.Thread(target=read, args=(stream,)) for stream in (True, False)]
        for reader in readers:
            reader.start()
        with socket.create_connection(("127.0.0.1", server.port), 30) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
            server.wait_busy(2)
            assert streaming.wait(WAIT_SECONDS)
            server.process.send_signal(signal.SIGTERM)
            wait_until("new connections are refused", lambda: server.health() is None)
            if signals == 2:
                assert server.process.poll() is None
                server.process.send_signal(signal.SIGTERM)
            for reader in readers:
                reader.join(WAIT_SECONDS)
                assert not reader.is_alive()
            assert server.process.wait(WAIT_SECONDS) == signals - 1
            unsent = slow.recv(65536).decode()
        assert unsent.startswith("HTTP/1.1 503 ")
        assert "retry-after: " in unsent
        status, headers, text = answers[False]
        assert status == 503
        assert json.loads(text)["error"]["code"] == "engine_unavailable"
        assert headers["retry-after"]
        *chunks, error, done = events(answers[True][2])
        assert chunks
        assert error["error"]["code"] == "engine_unavailable"
        assert done == "[DONE]"
        assert "Traceback" not in server.log, server.log
        assert "Exception" not in server.log, server.log
        wait_until("no process is left", lambda: not server.orphans())


def test_a_server_that_is_killed_leaves_no_engine(tmp_path: Path) -> None:
    """An engine without its server would keep GPU memory allocated."""
    with running(tmp_path / "log") as server:
        server.wait_ready()
        server.process.kill()
        server.process.wait()
        wait_until("no process is left", lambda: not server.orphans())
