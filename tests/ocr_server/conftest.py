"""Helpers for the tests of the server: a fake engine, request bodies, and parsers of streams and errors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from PIL import Image

from config import EMBEDDED_CHECKPOINT, Settings
from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import NO_TILES
from ocr_server.app import create_app
from ocr_server.errors import DecodingError
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta
from ocr_server.runtime import Runtime

Script = Callable[[int, Page], AsyncGenerator[PageDelta]]
"""What the fake engine does with a page; the first argument is the number of the page, from 0."""

CHAT = "/v1/chat/completions"


def examples(count: int) -> hypothesis_settings:
    """Return Hypothesis settings for this many examples, in the fast part of the tests a fifth of them.

    The examples are the same ones each time, without a time limit.
    """
    fast = os.environ.get("OCR_TESTS_FAST") == "1"
    return hypothesis_settings(
        max_examples=max(1, count // 5) if fast else count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


class FakeEngine:
    """A fake engine that follows a script instead of reading pages."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or says("Hello")
        self.reason: str | None = None
        """Why no page can be read."""
        self.refusal: DecodingError | None = None
        """What `check` raises."""
        self.retry_after = 3.0
        self.starts = self.closes = 0
        self.forgets = False
        """Whether pages are recorded without their pictures, to save memory."""
        self.pages: list[Page] = []
        self.finished: list[int] = []
        self.aborted: list[int] = []

    @property
    def running(self) -> int:
        return len(self.pages) - len(self.finished) - len(self.aborted)

    def unavailable(self) -> str | None:
        return self.reason

    async def check(self, decoding: Decoding) -> None:
        if self.refusal is not None:
            raise self.refusal

    def start(self) -> None:
        self.starts += 1

    async def close(self) -> None:
        self.closes += 1

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        number = len(self.pages)
        self.pages.append(replace(page, image=None) if self.forgets else page)  # type: ignore[arg-type]
        try:
            async with aclosing(self.script(number, page)) as deltas:
                async for delta in deltas:
                    yield delta
        except (GeneratorExit, asyncio.CancelledError):
            self.aborted.append(number)
            raise
        except BaseException:
            self.finished.append(number)
            raise
        self.finished.append(number)


def delta(text: str = "", *, choice: int = 0, tokens: int = 1, finish: str | None = None, **more: Any) -> PageDelta:
    return PageDelta(choice, text, tokens, more.pop("prompt_tokens", 10), finish_reason=finish, **more)


def says(*texts: str, finish: str = "stop") -> Script:
    """Return a script that answers every page with `texts`, each of them one piece."""

    async def script(_: int, page: Page) -> AsyncGenerator[PageDelta]:
        for choice in range(page.decoding.n):
            for text in texts[:-1]:
                yield delta(text, choice=choice)
            yield delta(texts[-1], choice=choice, finish=finish)

    return script


def fails(error: Exception, *texts: str) -> Script:
    """Return a script that raises `error` on every page, after the pieces `texts`."""

    async def script(_: int, __: Page) -> AsyncGenerator[PageDelta]:
        for text in texts:
            yield delta(text)
        raise error

    return script


async def never(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    """A script that never answers."""
    await asyncio.Event().wait()
    yield delta()


async def endless(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    """A script whose answers never end."""
    while True:
        yield delta("on ")
        await asyncio.sleep(0.005)


def prepared(tokens: int = 7) -> PreparedImage:
    """Return a minimal prepared image, for tests that do not look at it."""
    return PreparedImage(torch.zeros(1, 1, 3), torch.empty(0, 0, 0, 3), NO_TILES, tokens)


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (255, 255, 255)) -> str:
    """Return a PNG of one colour as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


WHITE = png()


def picture(url: str = WHITE, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def message(*parts: dict[str, Any] | str, role: str = "user") -> dict[str, Any]:
    """Return a message. If its only part is a string, that string is the content; otherwise a list of parts is."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": role, "content": parts[0]}
    return {"role": role, "content": [text(part) if isinstance(part, str) else part for part in parts]}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a request body. Without messages, it has one white picture, read in tiny mode."""
    if not messages:
        messages, more = (message(picture(), "Free OCR."),), {"ocr": {"mode": "tiny"}, **more}
    return {"model": "deepseek-ocr", "messages": list(messages), **more}


def events(stream: str) -> list[Any]:
    """Parse a stream into the data of its events, without comments. `[DONE]` stays a string."""
    assert stream.endswith("\n\n"), "the last event does not end with an empty line"
    found = []
    for event in stream[:-2].split("\n\n"):
        lines = [line for line in event.split("\n") if not line.startswith(":")]
        assert len(lines) <= 1, event
        for line in lines:
            assert line.startswith("data: "), line
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check the status and the form of an error response. Return the error."""
    assert response.status_code == status, response.text
    return envelope(response.json())


def envelope(body: Any) -> dict[str, Any]:
    """Check that a body is OpenAI's error body. Return the error."""
    assert list(body) == ["error", "message"]
    error: dict[str, Any] = body["error"]
    assert body["message"] == error["message"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return error


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Return a client of an application. The lifespan is not run, and unexpected errors are answered, not raised."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # it may happen in another thread
            await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Settings without batches, which would create files. Tests of batches enable them in temporary folders."""
    return Settings(
        MODEL_PATH=str(EMBEDDED_CHECKPOINT),
        MODEL_NAME="deepseek-ocr",
        PREPARE_THREADS=2,
        ALLOW_URLS=False,
        BATCHES=False,
    )


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def app(settings: Settings, engine: FakeEngine) -> AsyncIterator[FastAPI]:
    app = create_app(Runtime.build(settings, engine))
    yield app
    await app.state.runtime.intake.close()  # there is no lifespan to do it


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client
