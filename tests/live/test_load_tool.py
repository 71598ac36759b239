"""The load tool `python -m bench.load`, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_requests import ROOT, SIGN
from live_server import WAIT_SECONDS

pytestmark = pytest.mark.live


def load(base_url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.load", "--url", base_url, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def test_requests_are_sent_and_counted(base_url: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    flags = ("--image", str(SIGN), "--prompt", "Free OCR.", "--clients", "3", "--requests", "6", "--stream")
    done = load(base_url, *flags, "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^6 of 6 requests answered in [\d.]+ s$", done.stdout, re.MULTILINE)
    assert re.search(r"^[\d.]+ pages/s, \d+ tokens/s$", done.stdout, re.MULTILINE)
    assert "p99" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_each_page_of_a_pdf_is_requested_once(base_url: str) -> None:
    done = load(base_url, "--pdf", str(ROOT / "examples" / "papers.pdf"), "--max-tokens", "1")
    assert "3 of 3 requests answered" in done.stdout


def test_failed_requests_are_reported(base_url: str) -> None:
    done = load(base_url, "--image", str(SIGN), "--model", "gpt-4", "--requests", "2")
    assert done.returncode == 1
    assert "0 of 2 requests answered" in done.stdout
    assert "2 × ClientError: HTTP 404" in done.stdout
