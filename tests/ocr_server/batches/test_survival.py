"""Server processes that are killed, and two servers that share batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError, OpenAI

from config import ROOT
from tests.ocr_server.batches.conftest import ENDED, jsonl, request
from tests.ocr_server.batches.fake_server import POISON, POISON_INPUT
from tests.ocr_server.conftest import chat

SERVER = Path(__file__).parent / "fake_server.py"
REQUESTS = 1000
pytestmark = pytest.mark.slow
IN_FLIGHT = 16
"""BATCH_CONCURRENCY of the fake server."""


class Process:
    """A server process with a fake engine. It is killed rather than stopped."""

    def __init__(self, folder: Path, seconds_a_page: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = (folder / f"log-{self.port}").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self.port), str(folder), str(seconds_a_page)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.api = OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="EMPTY", max_retries=0, timeout=60)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 100
        while True:
            assert self.process.poll() is None, Path(self._log.name).read_text()
            try:
                self.api.models.list()
                return
            except APIConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@contextmanager
def running(folder: Path, seconds_a_page: float) -> Iterator[Process]:
    process = Process(folder, seconds_a_page)
    try:
        process.wait_ready()
        yield process
    finally:
        process.kill()


def begin(api: OpenAI, count: int, *more: dict[str, Any]) -> Any:
    lines = [request(f"r{number}", chat(seed=number)) for number in range(count)]
    file = api.files.create(file=("requests.jsonl", jsonl([*lines, *more])), purpose="batch")
    return api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def reaches(api: OpenAI, batch: Any, completed: int = REQUESTS + 1, seconds: float = 200) -> Any:
    """Wait until a number of requests are completed or the batch has ended, and return the batch."""
    deadline = time.monotonic() + seconds
    while (now := api.batches.retrieve(batch.id)).status not in ENDED:
        assert time.monotonic() < deadline, now
        if now.request_counts.completed >= completed:
            break
        time.sleep(0.02)
    return now


def survived(folder: Path, batch: Any) -> tuple[Any, dict[str, Any], int]:
    """Start servers until a batch has ended. Return it, its lines by custom_id, and how many servers died."""
    for deaths in range(10):
        with running(folder, 0.02) as server:
            try:
                done = reaches(server.api, batch)
                files = [name for name in (done.output_file_id, done.error_file_id) if name]
                text = "".join(server.api.files.content(name).text for name in files)
                return done, {line["custom_id"]: line for line in map(json.loads, text.splitlines())}, deaths
            except APIConnectionError:
                server.process.wait(timeout=60)
    raise AssertionError("servers die for ever")


def texts(api: OpenAI, batch: Any) -> dict[str, str]:
    """Return the texts of the answers by custom_id, and check that each occurs once."""
    lines = [json.loads(line) for line in api.files.content(batch.output_file_id).text.splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.timeout(900)
def test_each_request_is_answered_once_although_the_server_is_killed_three_times(tmp_path: Path) -> None:
    """Only pages that were in flight are read twice."""
    batch = None
    for kill in range(4):
        with running(tmp_path, 0.02) as server:
            batch = begin(server.api, REQUESTS) if batch is None else batch
            if kill < 3:
                now = reaches(server.api, batch, completed=220 * (kill + 1))
                assert now.status == "in_progress", "it is killed while it processes the batch"
                continue
            done = reaches(server.api, batch)
            assert (done.status, done.request_counts.completed) == ("completed", REQUESTS)
            assert texts(server.api, done) == {f"r{number}": f"read {number}" for number in range(REQUESTS)}
            assert [file.purpose for file in server.api.files.list()] == ["batch_output", "batch"]
    read = Counter((tmp_path / "read").read_text().split())
    assert len(read) == REQUESTS
    twice = read.total() - REQUESTS
    assert twice <= 3 * IN_FLIGHT, f"{twice} pages were read twice"


@pytest.mark.timeout(700)
def test_a_server_takes_over_the_batches_of_one_that_was_killed(tmp_path: Path) -> None:
    with running(tmp_path, 0.05) as first, running(tmp_path, 0.05) as second:
        batches = [begin(first.api, 100) for _ in range(3)]
        reaches(second.api, batches[0], completed=5)
        first.kill()
        for batch in batches:
            done = reaches(second.api, batch)
            assert done.request_counts.completed == 100
            assert len(texts(second.api, done)) == 100
    read = Counter((tmp_path / "read").read_text().split())
    assert read.total() - 300 <= IN_FLIGHT


@pytest.mark.timeout(900)
def test_a_request_that_kills_the_server_fails_after_three_deaths(tmp_path: Path) -> None:
    """And no other request of its batch or of another one does."""
    with running(tmp_path, 0.02) as server:
        other = begin(server.api, 200)
        batch = begin(server.api, 30, request("poison", chat(seed=POISON)), request("last"))
        server.process.wait(timeout=60)
    done, lines, deaths = survived(tmp_path, batch)
    assert deaths == 2, "with the first one"
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 31, 1)
    assert len(lines) == 32
    assert lines["poison"]["response"] is None
    assert lines["poison"]["error"]["code"] == "request_crashed_server"
    done, lines, deaths = survived(tmp_path, other)
    assert (done.status, done.request_counts.completed, deaths) == ("completed", 200, 0)


@pytest.mark.timeout(900)
def test_a_batch_whose_input_kills_the_server_fails_after_three_deaths(tmp_path: Path) -> None:
    with running(tmp_path, 0.02) as server:
        batch = begin(server.api, 5, request("poison", {"user": POISON_INPUT.decode()}))
        server.process.wait(timeout=60)
    done, lines, deaths = survived(tmp_path, batch)
    assert (done.status, deaths, lines) == ("failed", 2, {})
    assert [(error.code, error.param) for error in done.errors.data] == [("input_crashed_server", "input_file_id")]


@pytest.mark.timeout(900)
def test_servers_that_are_stopped_in_order_are_no_deaths(tmp_path: Path) -> None:
    batch = None
    for _ in range(4):
        with running(tmp_path, 30) as server:
            batch = begin(server.api, 3) if batch is None else batch
            deadline = time.monotonic() + 60
            while server.api.batches.retrieve(batch.id).status != "in_progress":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.5)  # the requests have been begun
            server.process.terminate()
            assert server.process.wait(timeout=60) is not None
    done, lines, deaths = survived(tmp_path, batch)
    assert (done.request_counts.completed, deaths) == (3, 0)
    assert len(lines) == 3
