"""The command-line client, run as a user runs it, with the real engine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pypdfium2
import pytest
from live_requests import RECEIPT, ROOT, SIGN, truth
from live_server import WAIT_SECONDS, Server, environment, wait_until

pytestmark = pytest.mark.live

PAPERS = ROOT / "examples" / "papers.pdf"
SEPARATOR = "<--- Page Split --->"


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ocr_client", *arguments],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, standard output and standard error."""
    process = start(folder, *arguments)
    out, error = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, out.decode(), error.decode()


def test_a_folder_is_read(base_url: str, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for file in (RECEIPT, SIGN, PAPERS):
        shutil.copy(file, tmp_path / "scans")
    (tmp_path / "scans" / "broken.png").write_bytes(b"\x89PNG and no more")
    read = ("read", "scans", "-o", "texts", "--prompt", "Free OCR.", "--base-url", base_url)
    code, _, error = run(tmp_path, *read)
    assert code == 1, error
    assert "failed: scans/broken.png" in error
    texts = tmp_path / "texts" / "scans"
    for file in (RECEIPT, SIGN):
        assert (texts / file.name / "document.md").read_text(encoding="utf-8").strip() == truth(file).strip()
    pages = len(pypdfium2.PdfDocument(PAPERS))
    assert (texts / PAPERS.name / "document.md").read_text(encoding="utf-8").count(SEPARATOR) == pages - 1
    code, _, error = run(tmp_path, *read)
    assert code == 1
    assert "0 pages read" in error
    assert f"{pages + 2} pages from an earlier run" in error


def test_a_killed_run_is_resumed(base_url: str, engine_idle: Server, tmp_path: Path) -> None:
    for number in range(4):
        shutil.copy(PAPERS, tmp_path / f"{number}.pdf")
    total = 4 * len(pypdfium2.PdfDocument(PAPERS))
    read = ("read", "*.pdf", "-o", "texts", "--prompt", "Free OCR.", "--concurrency", "1", "--base-url", base_url)

    def pages() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in tmp_path.glob("texts/*/pages/*.json")}

    process = start(tmp_path, *read)
    wait_until("pages are stored", lambda: len(pages()) >= 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = pages()
    assert len(kept) < total
    engine_idle.wait_idle()

    code, _, error = run(tmp_path, *read)
    assert code == 0, error
    assert f"{total - len(kept)} pages read" in error
    assert f"{len(kept)} pages from an earlier run" in error
    assert kept.items() <= pages().items()
    assert len(list(tmp_path.glob("texts/*/document.md"))) == 4


def test_overlays_and_json(base_url: str, tmp_path: Path) -> None:
    shutil.copy(SIGN, tmp_path)
    code, out, error = run(tmp_path, "read", SIGN.name, "-o", "texts", "--overlays", "--json", "--base-url", base_url)
    assert code == 0, error
    page, document = map(json.loads, out.splitlines())
    assert (page["type"], page["page"], document["type"]) == ("page", 1, "document")
    assert (tmp_path / "texts" / SIGN.name / "overlay.png").read_bytes().startswith(b"\x89PNG")


def test_doctor_finds_the_running_server(server: Server, tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "doctor", "--port", str(server.port))
    assert code == 0, out
    assert f"a server is running at {server.url}" in out
