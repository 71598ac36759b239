"""Runs that are cut off, servers that go away: what is done stays done, and nothing is read twice."""

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

from ocr_client.lines import Silent
from ocr_client.read import Run, Wanted
from ocr_client.selection import Selection
from ocr_client.server import ReadOptions, Server
from ocr_client.sources import find
from ocr_client.store import Store
from ocr_server.errors import Unavailable
from tests.ocr_client.conftest import Done, PlayedServer, document, pages_of, picture, run, start, wait_until

THIRTY = dict.fromkeys(range(1, 31), 1)


@pytest.fixture
def thirty(tmp_path: Path) -> Path:
    (tmp_path / "thirty.pdf").write_bytes(document(30))
    return tmp_path


def begin(server: PlayedServer, folder: Path, *more: str, pages: int = 5) -> subprocess.Popen[bytes]:
    """A run over thirty slow pages, of which some are done."""
    server.seconds = 0.1
    process = start("read", "thirty.pdf", "-o", "out", "--base-url", server.url, *more, cwd=folder)
    wait_until(lambda: len(pages_of(folder / "out" / "thirty.pdf")) >= pages)
    return process


def go_on(server: PlayedServer, folder: Path, *more: str) -> Done:
    server.seconds = 0.0
    return run("read", "thirty.pdf", "-o", "out", "--base-url", server.url, *more, cwd=folder)


def assert_whole(folder: Path) -> None:
    out = folder / "out" / "thirty.pdf"
    assert (out / "document.md").read_text().split("\n\n<--- Page Split --->\n\n") == [
        f"page {number}" + ("\n" if number == 30 else "") for number in THIRTY
    ]
    assert sorted(pages_of(out)) == list(THIRTY)


def test_killed_in_the_middle_of_a_document(server: PlayedServer, thirty: Path) -> None:
    assert go_on(server, thirty, "--pages", "1-3").code == 0
    assert (thirty / "out" / "thirty.pdf" / "document.md").exists()
    process = begin(server, thirty)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = sorted(pages_of(thirty / "out" / "thirty.pdf"))
    assert 5 <= len(kept) < 30
    assert not (thirty / "out" / "thirty.pdf" / "document.md").exists()
    wait_until(lambda: server.engine.running == 0)
    server.asked.clear()

    done = go_on(server, thirty)
    assert done.code == 0, done.error
    assert f"{len(kept)} pages from before" in done.error
    assert server.asked == {number: 1 for number in THIRTY if number not in kept}
    assert_whole(thirty)

    server.asked.clear()
    again = go_on(server, thirty)
    assert (again.code, server.asked) == (0, {})
    assert "30 pages from before" in again.error


@pytest.mark.parametrize(
    "harm", ["half a page", "an empty page", "a page of another number", "no record", "half a record"]
)
def test_what_is_damaged_is_read_again(server: PlayedServer, thirty: Path, harm: str) -> None:
    assert go_on(server, thirty).code == 0
    server.asked.clear()
    out = thirty / "out" / "thirty.pdf"
    page, record = out / "pages" / "0007.json", out / "deepseek-ocr.json"
    if harm == "half a page":
        page.write_bytes(page.read_bytes()[:50])
    elif harm == "an empty page":
        page.write_bytes(b"")
    elif harm == "a page of another number":
        page.write_bytes((out / "pages" / "0008.json").read_bytes())
    elif harm == "no record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:50])
    assert go_on(server, thirty).code == 0
    assert server.asked == (THIRTY if "record" in harm else {7: 1})
    assert_whole(thirty)


@pytest.mark.parametrize("change", ["prompt", "mode", "content"])
def test_what_changes_the_result_is_read_anew(server: PlayedServer, thirty: Path, change: str) -> None:
    assert go_on(server, thirty).code == 0
    server.asked.clear()
    server.says = "now page {}".format
    if change == "content":
        (thirty / "thirty.pdf").write_bytes(document(20))
        assert go_on(server, thirty).code == 0
        assert server.asked == dict.fromkeys(range(1, 21), 1)
        assert sorted(pages_of(thirty / "out" / "thirty.pdf")) == list(range(1, 21))
    else:
        more = ["--prompt", "Free OCR."] if change == "prompt" else ["--mode", "tiny"]
        assert go_on(server, thirty, *more).code == 0
        assert server.asked == THIRTY
    assert "now page 20" in (thirty / "out" / "thirty.pdf" / "document.md").read_text()


def test_an_interrupt_ends_it_in_good_order(server: PlayedServer, thirty: Path) -> None:
    process = begin(server, thirty)
    process.send_signal(signal.SIGINT)
    done = Done(process)
    assert done.code == 130
    assert "the same command goes on" in done.error
    kept = sorted(pages_of(thirty / "out" / "thirty.pdf"))
    wait_until(lambda: server.engine.running == 0)
    server.asked.clear()
    assert go_on(server, thirty).code == 0
    assert server.asked == {number: 1 for number in THIRTY if number not in kept}
    assert_whole(thirty)


def test_a_second_interrupt_ends_it_at_once(server: PlayedServer, tmp_path: Path) -> None:
    with (tmp_path / "giant.pdf").open("wb") as giant:
        giant.truncate(100 * 2**30)  # a minute or more to hash
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
    server: PlayedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others would be read for nothing."""
    for number in range(1, 6):
        picture(tmp_path / f"{number}.png", number)

    def full(self: Store, index: int, page: dict[str, Any]) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "keep", full)

    async def run_here() -> int:
        wanted = Wanted(ReadOptions(), Selection())
        async with Server(server.url, None, connections=2) as client:
            run = Run(client, tmp_path / "out", wanted, patience=1, lines=Silent(), resumable=True)
            return await run.read(find([str(tmp_path)], None), at_once=1)

    assert asyncio.run(run_here()) == 1
    assert "error: No space left on device" in capsys.readouterr().err
    assert sum(server.asked.values()) == 1


def test_the_server_dies_and_comes_back(server: PlayedServer, thirty: Path) -> None:
    process = begin(server, thirty)
    server.stop()
    time.sleep(3)
    assert process.poll() is None
    kept = sorted(pages_of(thirty / "out" / "thirty.pdf"))
    server.asked.clear()
    server.seconds = 0.0
    server.start()
    done = Done(process)
    assert done.code == 0, done.error
    assert server.asked == {number: 1 for number in THIRTY if number not in kept}
    assert "connection refused" in done.error
    assert "The server reads again." in done.error
    assert_whole(thirty)


def test_the_server_dies_and_stays_away(server: PlayedServer, thirty: Path) -> None:
    process = begin(server, thirty, "--patience", "2")
    server.stop()
    done = Done(process)
    assert done.code == 3
    assert "connection refused" in done.error
    assert "the same command goes on" in done.error
    server.start()
    assert go_on(server, thirty).code == 0
    assert_whole(thirty)


def test_there_is_no_server(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    started = time.monotonic()
    done = run("read", "a.png", "-o", "out", "--base-url", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.code == 3
    assert "127.0.0.1:9/v1" in done.error
    assert "deepseek-ocr serve" in done.error
    assert len(done.error.splitlines()) == 1
    assert time.monotonic() - started < 20, "nobody waits for a server that was never there"


def test_a_server_that_loads_its_model(server: PlayedServer, thirty: Path) -> None:
    server.engine.reason, server.engine.retry_after = "The model is being loaded.", 1.0
    process = start("read", "thirty.pdf", "-o", "out", "--base-url", server.url, cwd=thirty)
    time.sleep(4)
    assert process.poll() is None
    assert server.asked == {}
    server.engine.reason = None
    done = Done(process)
    assert (done.code, server.asked) == (0, THIRTY), done.error
    assert "The model is being loaded." in done.error


def test_a_server_that_is_full(server: PlayedServer, tmp_path: Path) -> None:
    """It is asked again when it says, and all documents are read in the end."""
    for number in range(1, 6):
        picture(tmp_path / f"{number}.png", number)
    server.refusals = 8
    started = time.monotonic()
    done = run("read", "*.png", "-o", "out", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 0, done.error
    assert server.refusals == 0
    assert server.asked == dict.fromkeys(range(1, 6), 1)
    assert time.monotonic() - started > 2 * 2


def test_an_engine_that_fails_for_a_while(server: PlayedServer, thirty: Path) -> None:
    failures = [Unavailable("The engine is being restarted.")] * 2

    def says(number: int) -> str:
        if number == 10 and failures:
            raise failures.pop()
        return f"page {number}"

    server.says = says
    done = go_on(server, thirty)
    assert done.code == 0, done.error
    assert server.asked[9] == 1
    assert_whole(thirty)


def test_a_document_that_breaks_the_server_each_time(server: PlayedServer, tmp_path: Path) -> None:
    """It is given up; the others are read."""
    picture(tmp_path / "bad.png", 1)
    picture(tmp_path / "good.png", 2)

    def says(number: int) -> str:
        if number == 1:
            raise RuntimeError("what nobody foresaw")
        return "fine"

    server.says = says
    done = run("read", "bad.png", "good.png", "-o", "out", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 1
    assert "5 times in a row" in done.error
    assert server.asked == {1: 5, 2: 1}
    assert (tmp_path / "out" / "good.png" / "document.md").read_text() == "fine\n"


def test_keys(tmp_path: Path) -> None:
    server = PlayedServer(API_KEYS="sk-right")
    picture(tmp_path / "a.png")
    read = ("read", "a.png", "-o", "out")
    at = ("--base-url", server.url)
    try:
        for more in ((), ("--api-key", "sk-wrong")):
            done = run(*read, *at, *more, cwd=tmp_path)
            assert done.code == 2
            assert "key" in done.error
        assert run(*read, *at, cwd=tmp_path, variables={"OPENAI_API_KEY": "sk-right"}).code == 2, (
            "it is not meant for us"
        )
        assert run(*read, *at, cwd=tmp_path, variables={"DEEPSEEK_OCR_API_KEY": "sk-right"}).code == 0
        both = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-right"}
        assert run("read", "a.png", "-o", "other", cwd=tmp_path, variables=both).code == 0
    finally:
        server.stop()


def test_something_else_answers(server: PlayedServer, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    done = run("read", "a.png", "-o", "out", "--base-url", server.url + "/elsewhere", cwd=tmp_path)
    assert done.code == 3
    assert "no DeepSeek-OCR server" in done.error


def test_the_record_says_what_was_read(server: PlayedServer, thirty: Path) -> None:
    assert go_on(server, thirty, "--prompt", "Free OCR.").code == 0
    record = json.loads((thirty / "out" / "thirty.pdf" / "deepseek-ocr.json").read_text())
    assert (record["page_count"], record["pages"], record["failed_pages"]) == (30, "1-30", [])
    assert record["options"] == {"prompt": "Free OCR.", "mode": None, "dpi": None}
    assert record["source"] == "thirty.pdf"
