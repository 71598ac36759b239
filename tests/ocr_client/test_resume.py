"""Interrupted runs and servers that become unavailable: finished pages are kept, and no page is read twice."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ocr_client.client import OcrClient, ReadOptions
from ocr_client.output import NoOutput
from ocr_client.read import Run, RunOptions
from ocr_client.results import ResultStore
from ocr_client.selection import PageSelection
from ocr_client.sources import find_sources
from ocr_server.errors import Unavailable
from tests.ocr_client.conftest import Done, FakeServer, document, pages_of, run, start, wait_until, write_image

pytestmark = pytest.mark.slow

THIRTY = dict.fromkeys(range(1, 31), 1)
"""Thirty pages, each of which has been read once."""


@pytest.fixture
def thirty(tmp_path: Path) -> Path:
    (tmp_path / "thirty.pdf").write_bytes(document(30))
    return tmp_path


def start_reading(server: FakeServer, folder: Path, *more: str, pages: int = 5) -> subprocess.Popen[bytes]:
    """Start a run over thirty slow pages, and wait until some of them are finished."""
    server.seconds = 0.1
    process = start("read", "thirty.pdf", "-o", "out", "--base-url", server.url, *more, cwd=folder)
    wait_until(lambda: len(pages_of(folder / "out" / "thirty.pdf")) >= pages)
    return process


def read_all(server: FakeServer, folder: Path, *more: str) -> Done:
    """Read the thirty pages, or those that are missing, until the end."""
    server.seconds = 0.0
    return run("read", "thirty.pdf", "-o", "out", "--base-url", server.url, *more, cwd=folder)


def assert_complete(folder: Path) -> None:
    out = folder / "out" / "thirty.pdf"
    assert (out / "document.md").read_text().split("\n\n<--- Page Split --->\n\n") == [
        f"page {number}" + ("\n" if number == 30 else "") for number in THIRTY
    ]
    assert sorted(pages_of(out)) == list(THIRTY)


def test_a_killed_run_continues(server: FakeServer, thirty: Path) -> None:
    assert read_all(server, thirty, "--pages", "1-3").code == 0
    assert (thirty / "out" / "thirty.pdf" / "document.md").exists()
    process = start_reading(server, thirty)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = sorted(pages_of(thirty / "out" / "thirty.pdf"))
    assert 5 <= len(saved) < 30
    assert not (thirty / "out" / "thirty.pdf" / "document.md").exists()
    wait_until(lambda: server.engine.running == 0)
    server.asked.clear()

    done = read_all(server, thirty)
    assert done.code == 0, done.error
    assert f"{len(saved)} pages from an earlier run" in done.error
    assert server.asked == {number: 1 for number in THIRTY if number not in saved}
    assert_complete(thirty)

    server.asked.clear()
    again = read_all(server, thirty)
    assert (again.code, server.asked) == (0, {})
    assert "30 pages from an earlier run" in again.error


@pytest.mark.parametrize(
    "damage", ["half a page", "an empty page", "a page of another number", "no record", "half a record"]
)
def test_damaged_files_are_read_again(server: FakeServer, thirty: Path, damage: str) -> None:
    assert read_all(server, thirty).code == 0
    server.asked.clear()
    out = thirty / "out" / "thirty.pdf"
    page, record = out / "pages" / "0007.json", out / "deepseek-ocr.json"
    if damage == "half a page":
        page.write_bytes(page.read_bytes()[:50])
    elif damage == "an empty page":
        page.write_bytes(b"")
    elif damage == "a page of another number":
        page.write_bytes((out / "pages" / "0008.json").read_bytes())
    elif damage == "no record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:50])
    assert read_all(server, thirty).code == 0
    assert server.asked == (THIRTY if "record" in damage else {7: 1})
    assert_complete(thirty)


@pytest.mark.parametrize("change", ["prompt", "mode", "content"])
def test_a_change_of_options_or_content_discards_the_results(server: FakeServer, thirty: Path, change: str) -> None:
    assert read_all(server, thirty).code == 0
    server.asked.clear()
    server.answer = "now page {}".format
    if change == "content":
        (thirty / "thirty.pdf").write_bytes(document(20))
        assert read_all(server, thirty).code == 0
        assert server.asked == dict.fromkeys(range(1, 21), 1)
        assert sorted(pages_of(thirty / "out" / "thirty.pdf")) == list(range(1, 21))
    else:
        more = ["--prompt", "Free OCR."] if change == "prompt" else ["--mode", "tiny"]
        assert read_all(server, thirty, *more).code == 0
        assert server.asked == THIRTY
    assert "now page 20" in (thirty / "out" / "thirty.pdf" / "document.md").read_text()


def test_an_interrupt_stops_the_run_cleanly(server: FakeServer, thirty: Path) -> None:
    process = start_reading(server, thirty)
    process.send_signal(signal.SIGINT)
    done = Done(process)
    assert done.code == 130
    assert "Run the same command again" in done.error
    saved = sorted(pages_of(thirty / "out" / "thirty.pdf"))
    wait_until(lambda: server.engine.running == 0)
    server.asked.clear()
    assert read_all(server, thirty).code == 0
    assert server.asked == {number: 1 for number in THIRTY if number not in saved}
    assert_complete(thirty)


def test_a_second_interrupt_stops_the_run_immediately(server: FakeServer, tmp_path: Path) -> None:
    with (tmp_path / "giant.pdf").open("wb") as giant:
        giant.truncate(100 * 2**30)  # takes a minute or more to hash
    process = start("read", "giant.pdf", "-o", "out", "--base-url", server.url, cwd=tmp_path)
    opened = psutil.Process(process.pid).open_files
    wait_until(lambda: any(file.path.endswith("giant.pdf") for file in opened()))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.communicate()


def test_a_full_disk_ends_the_run(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All further pages would be read in vain."""
    for number in range(1, 6):
        write_image(tmp_path / f"{number}.png", number)

    def full(self: ResultStore, index: int, page: dict[str, Any]) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ResultStore, "save_page", full)

    async def run_here() -> int:
        options = RunOptions(ReadOptions(), PageSelection())
        async with OcrClient(server.url, None, connections=2) as client:
            run = Run(client, tmp_path / "out", options, patience=1, output=NoOutput(), resumable=True)
            return await run.read(find_sources([str(tmp_path)], None), concurrency=1)

    assert asyncio.run(run_here()) == 1
    assert "error: No space left on device" in capsys.readouterr().err
    assert sum(server.asked.values()) == 1


def test_a_server_that_is_restarted(server: FakeServer, thirty: Path) -> None:
    process = start_reading(server, thirty)
    server.stop()
    time.sleep(3)
    assert process.poll() is None
    saved = sorted(pages_of(thirty / "out" / "thirty.pdf"))
    server.asked.clear()
    server.seconds = 0.0
    server.start()
    done = Done(process)
    assert done.code == 0, done.error
    assert server.asked == {number: 1 for number in THIRTY if number not in saved}
    assert "connection refused" in done.error
    assert "The server is responding again." in done.error
    assert_complete(thirty)


def test_a_server_that_stays_unavailable(server: FakeServer, thirty: Path) -> None:
    process = start_reading(server, thirty, "--patience", "2")
    server.stop()
    done = Done(process)
    assert done.code == 3
    assert "connection refused" in done.error
    assert "Run the same command again" in done.error
    server.start()
    assert read_all(server, thirty).code == 0
    assert_complete(thirty)


def test_no_server(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    started = time.monotonic()
    done = run("read", "a.png", "-o", "out", "--base-url", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.code == 3
    assert "127.0.0.1:9/v1" in done.error
    assert "deepseek-ocr serve" in done.error
    assert len(done.error.splitlines()) == 1
    assert time.monotonic() - started < 20, "a server that was never reachable is not waited for"


def test_a_server_that_is_loading_its_model(server: FakeServer, thirty: Path) -> None:
    server.engine.reason, server.engine.retry_after = "The model is being loaded.", 1.0
    process = start("read", "thirty.pdf", "-o", "out", "--base-url", server.url, cwd=thirty)
    time.sleep(4)
    assert process.poll() is None
    assert server.asked == {}
    server.engine.reason = None
    done = Done(process)
    assert (done.code, server.asked) == (0, THIRTY), done.error
    assert "The model is being loaded." in done.error


def test_a_server_that_is_full(server: FakeServer, tmp_path: Path) -> None:
    """Requests are sent again after the time in Retry-After, until all documents are read."""
    for number in range(1, 6):
        write_image(tmp_path / f"{number}.png", number)
    server.refusals = 8
    started = time.monotonic()
    done = run("read", "*.png", "-o", "out", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 0, done.error
    assert server.refusals == 0
    assert server.asked == dict.fromkeys(range(1, 6), 1)
    assert time.monotonic() - started > 2 * 2


def test_an_engine_that_fails_temporarily(server: FakeServer, thirty: Path) -> None:
    failures = [Unavailable("The engine is being restarted.")] * 2

    def answer(number: int) -> str:
        if number == 10 and failures:
            raise failures.pop()
        return f"page {number}"

    server.answer = answer
    done = read_all(server, thirty)
    assert done.code == 0, done.error
    assert server.asked[9] == 1
    assert_complete(thirty)


def test_a_document_on_which_the_server_always_fails(server: FakeServer, tmp_path: Path) -> None:
    """The document is skipped, and the others are read."""
    write_image(tmp_path / "bad.png", 1)
    write_image(tmp_path / "good.png", 2)

    def answer(number: int) -> str:
        if number == 1:
            raise RuntimeError("an unexpected error")
        return "fine"

    server.answer = answer
    done = run("read", "bad.png", "good.png", "-o", "out", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 1
    assert "5 times in a row" in done.error
    assert server.asked == {1: 5, 2: 1}
    assert (tmp_path / "out" / "good.png" / "document.md").read_text() == "fine\n"


def test_api_keys(tmp_path: Path) -> None:
    server = FakeServer(API_KEYS="sk-right")
    write_image(tmp_path / "a.png")
    read = ("read", "a.png", "-o", "out")
    at = ("--base-url", server.url)
    try:
        for more in ((), ("--api-key", "sk-wrong")):
            done = run(*read, *at, *more, cwd=tmp_path)
            assert done.code == 2
            assert "key" in done.error
        assert run(*read, *at, cwd=tmp_path, variables={"OPENAI_API_KEY": "sk-right"}).code == 2, (
            "OPENAI_API_KEY is sent only to OPENAI_BASE_URL"
        )
        assert run(*read, *at, cwd=tmp_path, variables={"DEEPSEEK_OCR_API_KEY": "sk-right"}).code == 0
        both = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-right"}
        assert run("read", "a.png", "-o", "other", cwd=tmp_path, variables=both).code == 0
    finally:
        server.stop()


def test_an_address_that_is_not_this_server(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    done = run("read", "a.png", "-o", "out", "--base-url", server.url + "/elsewhere", cwd=tmp_path)
    assert done.code == 3
    assert "not a DeepSeek-OCR server" in done.error


def test_the_content_of_the_record(server: FakeServer, thirty: Path) -> None:
    assert read_all(server, thirty, "--prompt", "Free OCR.").code == 0
    record = json.loads((thirty / "out" / "thirty.pdf" / "deepseek-ocr.json").read_text())
    assert (record["page_count"], record["pages"], record["failed_pages"]) == (30, "1-30", [])
    assert record["options"] == {"prompt": "Free OCR.", "mode": None, "dpi": None}
    assert record["source"] == "thirty.pdf"
