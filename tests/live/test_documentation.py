"""Every example in the documentation runs, against the live server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "README.zh-CN.md", "OPENAI_API_GUIDE.md", "OPENAI_API_GUIDE.zh-CN.md")
NOT_RUN = "<!-- not run"
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>python|bash)\n(?P<code>.*?)```", re.DOTALL)
CLIENT_CALL = re.compile(r"^(python test_openai_client\.py .*)$", re.MULTILINE)


def examples() -> list[Any]:
    """Return every example of the documents as a test case; one that several of them contain is run once."""
    places: dict[tuple[str, str], list[str]] = {}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if not block["before"].startswith(NOT_RUN):
                line = text.count("\n", 0, block.start("code")) + 1
                places.setdefault((block["language"], block["code"]), []).append(f"{document}:{line}")
    return [pytest.param(*example, id=",".join(where)) for example, where in places.items()]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pictures() -> Iterator[str]:
    """Where the examples that read a picture from a URL find it."""
    handler = partial(QuietHandler, directory=str(ROOT / "examples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def run(language: str, code: str, base_url: str, pictures: str = "") -> subprocess.CompletedProcess[str]:
    """Run an example as it stands, but for where the server is."""
    here = base_url.removesuffix("/").removesuffix("/v1").removeprefix("http://")
    code = CLIENT_CALL.sub(rf"\1 --base-url http://{here}/v1", code)
    code = code.replace("localhost:8000", here).replace("localhost:9000", pictures)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DEEPSEEK_OCR_BASE_URL": base_url}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, env=environment)


@pytest.mark.parametrize(("language", "code"), examples())
def test_example_runs(language: str, code: str, base_url: str, pictures: str) -> None:
    result = run(language, code, base_url, pictures)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "an example shows something"
    assert '"error"' not in result.stdout


def test_the_readmes_first_example_prints_what_the_readme_says(base_url: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block["code"] for block in BLOCK.finditer(text) if block["language"] == "python")
    promised = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert promised is not None
    assert run("python", code, base_url).stdout == promised[1]
