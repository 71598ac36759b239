"""The example client test_openai_client.py, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from live_requests import RECEIPT, ROOT, SIGN, truth
from live_server import WAIT_SECONDS, environment, free_port

pytestmark = pytest.mark.live


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "test_openai_client.py"), *map(str, arguments)],
        cwd=ROOT,
        env=environment() | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=WAIT_SECONDS,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_it_prints_each_text_twice(base_url: str) -> None:
    done = run(RECEIPT.relative_to(ROOT), SIGN.relative_to(ROOT), "--base-url", base_url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for picture in (RECEIPT, SIGN):
        assert done.stdout.count(truth(picture)) == 2, "once as a complete answer, once as a stream"
    assert "deepseek-ocr:tiny" in done.stdout
    assert "284 tokens in" in done.stdout


def test_mode_and_prompt_can_be_set(base_url: str) -> None:
    done = run(SIGN, "--base-url", base_url, "--mode", "tiny", "--prompt", "<|grounding|>OCR this image.")
    assert done.returncode == 0, done.stderr
    assert "tokens in" in done.stdout
    assert "284 tokens in" not in done.stdout


def test_a_missing_file_is_a_one_line_error(base_url: str) -> None:
    assert "no-such-page.png" in assert_one_line_error(run("no-such-page.png", "--base-url", base_url))


def test_no_server_is_a_one_line_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert url in assert_one_line_error(run(SIGN, "--base-url", url))


def test_a_refused_request_is_a_one_line_error(base_url: str) -> None:
    line = assert_one_line_error(run(SIGN, "--base-url", base_url, "--model", "gpt-4o"))
    assert "404" in line
    assert "gpt-4o" in line
