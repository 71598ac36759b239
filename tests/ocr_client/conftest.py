"""The command as a process, against the app with a played engine that can die and come back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from config import EMBEDDED_CHECKPOINT, Settings
from ocr_server.app import create_app
from ocr_server.errors import TooMany
from ocr_server.reading.page import Page, PageDelta
from ocr_server.transport.connections import protocol
from tests.ocr_server.conftest import FakeEngine, delta
from tests.ocr_server.intake.pdfs import filled, pdf

ROOT = Path(__file__).resolve().parents[2]
SHADES = 40
"""Pages that the played engine can tell from one another."""


def document(pages: int) -> bytes:
    """A PDF whose n-th page is of the n-th shade of grey."""
    return pdf(*(filled(*[number / SHADES] * 3) for number in range(1, pages + 1)), size=(60, 60))


def picture(file: Path, number: int = SHADES - 1) -> Path:
    Image.new("RGB", (64, 64), (round(number / SHADES * 255),) * 3).save(file)
    return file


def number_of(page: Page) -> int:
    """Of the shade."""
    view = page.image.global_view
    return round(float(view[view.shape[0] // 2, view.shape[1] // 2, 0]) / 255 * SHADES)


class PlayedServer:
    """A real port with the app behind it. `asked` counts how often each page came to the engine."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(
            MODEL_PATH=str(EMBEDDED_CHECKPOINT),
            BASE_SIZE=64,
            IMAGE_SIZE=64,
            CROP_MODE=False,
            PREPARE_THREADS=1,
            DECODE_WORKERS=1,
            PAGES_AT_ONCE=2,
            BATCHES=False,
            **settings,
        )
        self.asked: Counter[int] = Counter()
        self.prompts: Counter[str] = Counter()
        self.refusals = 0
        self.seconds = 0.0
        """That a page takes."""
        self.says: Callable[[int], str] = "page {}".format
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        self.engine = FakeEngine(self._read)
        self.engine.forgets = True
        listener = socket.create_server(("127.0.0.1", self.port))
        config = uvicorn.Config(
            self._refusing(create_app(self.settings, self.engine)),
            loop="asyncio",
            log_level="critical",
            http=protocol(receive_timeout=30, send_timeout=30),
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        wait_until(lambda: self._server.started)

    def _refusing(self, app: FastAPI) -> ASGIApp:
        """The app, which is full for the first `refusals` of its documents."""

        async def full(scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("path") != "/v1/ocr" or not self.refusals:
                await app(scope, receive, send)
                return
            self.refusals -= 1
            error = TooMany("The server is full.", retry_after=2)
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)

        return full

    def stop(self) -> None:
        """Answers under way are broken off."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _read(self, _: int, page: Page) -> AsyncGenerator[PageDelta]:
        number = number_of(page)
        self.asked[number] += 1
        self.prompts[page.prompt] += 1
        await asyncio.sleep(self.seconds)
        yield delta(self.says(number), finish="stop")


@pytest.fixture
def server() -> Iterator[PlayedServer]:
    server = PlayedServer()
    yield server
    server.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """This process's own, less what would set the command up differently."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DEEPSEEK_OCR_", "OPENAI_"))}
    return own | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | more


def start(*arguments: str | Path, cwd: Path, **more: Any) -> subprocess.Popen[bytes]:
    variables = more.pop("variables", {})
    return subprocess.Popen(
        [sys.executable, "-m", "ocr_client", *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE} | more,
    )


class Done:
    """What became of a run."""

    def __init__(self, process: subprocess.Popen[bytes], given: bytes | None = None) -> None:
        out, error = process.communicate(given, timeout=90)
        self.code = process.returncode
        self.out = (out or b"").decode()
        self.error = error.decode()
        assert "Traceback" not in self.error, self.error

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: str | Path, cwd: Path, given: bytes | None = None, **more: Any) -> Done:
    return Done(start(*arguments, cwd=cwd, stdin=subprocess.PIPE, **more), given)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s"
        time.sleep(0.02)


def pages_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The pages kept in a document's folder, by number."""
    return {int(file.stem): json.loads(file.read_bytes()) for file in (folder / "pages").glob("*.json")}
