"""Fixtures that run the command as a process, and a server with a fake engine that can be stopped and restarted."""

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
from ocr_server.runtime import Runtime
from ocr_server.transport.connections import protocol
from tests.ocr_server.conftest import FakeEngine, delta
from tests.ocr_server.intake.pdfs import filled, pdf

ROOT = Path(__file__).resolve().parents[2]
SHADES = 40
"""Number of pages that the fake engine can distinguish."""


def document(pages: int) -> bytes:
    """Return a PDF whose n-th page is filled with the n-th shade of grey."""
    return pdf(*(filled(*[number / SHADES] * 3) for number in range(1, pages + 1)), size=(60, 60))


def write_image(file: Path, number: int = SHADES - 1) -> Path:
    """Write an image that is filled with a shade of grey, and return its path."""
    Image.new("RGB", (64, 64), (round(number / SHADES * 255),) * 3).save(file)
    return file


def number_of(page: Page) -> int:
    """Return the number of the page's shade of grey."""
    view = page.image.global_view
    return round(float(view[view.shape[0] // 2, view.shape[1] // 2, 0]) / 255 * SHADES)


class FakeServer:
    """The application with a fake engine, listening on a real port."""

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
        """How often the engine has been given each page, by the number of its shade."""
        self.prompts: Counter[str] = Counter()
        self.refusals = 0
        """Number of requests for documents that are still to be answered with 429."""
        self.seconds = 0.0
        """Seconds that the engine takes for a page."""
        self.answer: Callable[[int], str] = "page {}".format
        """Returns the engine's answer for the page with a number."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        """Start the server. After `stop`, start it again on the same port."""
        self.engine = FakeEngine(self._read)
        self.engine.forgets = True
        listener = socket.create_server(("127.0.0.1", self.port))
        runtime = Runtime.build(self.settings, self.engine)
        config = uvicorn.Config(
            self._with_refusals(create_app(runtime)),
            loop="asyncio",
            log_level="critical",
            http=protocol(receive_timeout=30, send_timeout=30, memory=runtime.memory),
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        wait_until(lambda: self._server.started)

    def _with_refusals(self, app: FastAPI) -> ASGIApp:
        """Return an application that answers the first `refusals` requests for documents with 429."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("path") != "/v1/ocr" or not self.refusals:
                await app(scope, receive, send)
                return
            self.refusals -= 1
            error = TooMany("The server is full.", retry_after=2)
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)

        return wrapped

    def stop(self) -> None:
        """Stop the server immediately, in the middle of any response."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _read(self, _: int, page: Page) -> AsyncGenerator[PageDelta]:
        number = number_of(page)
        self.asked[number] += 1
        self.prompts[page.prompt] += 1
        await asyncio.sleep(self.seconds)
        yield delta(self.answer(number), finish="stop")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process, without the variables that configure the command."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DEEPSEEK_OCR_", "OPENAI_"))}
    return own | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | more


def start(*arguments: str | Path, cwd: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start the command. `variables` are added to the environment; other keywords are passed to Popen."""
    variables = more.pop("variables", {})
    return subprocess.Popen(
        [sys.executable, "-m", "ocr_client", *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE} | more,
    )


class Done:
    """Exit code and output of a process that has finished."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes | None = None) -> None:
        out, error = process.communicate(stdin, timeout=90)
        self.code = process.returncode
        self.out = (out or b"").decode()
        self.error = error.decode()
        assert "Traceback" not in self.error, self.error

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines on standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: str | Path, cwd: Path, given: bytes | None = None, **more: Any) -> Done:
    """Run the command with `given` as its standard input, and wait until it has finished."""
    return Done(start(*arguments, cwd=cwd, stdin=subprocess.PIPE, **more), given)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition is true. Fails after `seconds`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"the condition did not become true within {seconds:g} s"
        time.sleep(0.02)


def pages_of(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the pages saved in a document's folder, by their number."""
    return {int(file.stem): json.loads(file.read_bytes()) for file in (folder / "pages").glob("*.json")}
