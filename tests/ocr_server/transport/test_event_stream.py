"""Server-sent events: framing, errors, keep-alive, shutdown, and clients that disconnect."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus, EventSourceResponse

from ocr_server.errors import ApiError, EngineFailure, InvalidRequest, Unavailable
from ocr_server.reading.page import Page, PageDelta
from ocr_server.transport.event_stream import event_stream
from tests.ocr_server.conftest import (
    CHAT,
    FakeEngine,
    chat,
    delta,
    endless,
    envelope,
    error_of,
    events,
    fails,
    message,
    never,
    picture,
    says,
    until,
)

SECRET = "/srv/secret.py line 5"


async def silent(closed: list[bool]) -> AsyncGenerator[str]:
    """Events that never arrive. `closed` gets an entry when the generator is closed."""
    try:
        await asyncio.Event().wait()
        yield ""
    finally:
        closed.append(True)


class TestFraming:
    async def test_every_event_ends_with_an_empty_line(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = says("a\n\nb\r\n", "data: [DONE]\n\n", "\u2028\u2029\x85", "é😀")
        response = await client.post(CHAT, json=chat(stream=True))
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"].startswith("no-")
        *chunks, done = response.content.split(b"\n\n")[:-1]
        assert response.content.endswith(b"\n\n")
        assert done == b"data: [DONE]"
        assert len(chunks) == 6
        texts = [
            json.loads(chunk.removeprefix(b"data: "))["choices"][0]["delta"].get("content", "") for chunk in chunks
        ]
        assert "".join(texts) == "a\n\nb\r\ndata: [DONE]\n\n\u2028\u2029\x85é😀"

    async def test_done_is_sent_once_and_last(self, client: httpx.AsyncClient) -> None:
        got = events((await client.post(CHAT, json=chat(stream=True))).text)
        assert [event == "[DONE]" for event in got] == [False] * (len(got) - 1) + [True]

    async def test_events_are_sent_as_they_arrive(self) -> None:
        """The first frame is sent before the second event exists."""
        gate = asyncio.Event()

        async def slow() -> AsyncGenerator[str]:
            yield "1"
            await gate.wait()
            yield "2"

        response = await event_stream(slow(), shutdown_timeout=1)
        frames = response.body_iterator.__aiter__()
        async with asyncio.timeout(5):
            assert await anext(frames) == b"data: 1\n\n"
        gate.set()
        assert [frame async for frame in frames] == [b"data: 2\n\n", b"data: [DONE]\n\n"]


class TestErrors:
    @pytest.mark.parametrize(
        "error", [InvalidRequest("bad", param="messages", code="x"), EngineFailure("broken"), Unavailable("gone")]
    )
    async def test_before_the_first_event(self, client: httpx.AsyncClient, engine: FakeEngine, error: ApiError) -> None:
        engine.script = fails(error)
        for stream in (True, False):
            response = await client.post(CHAT, json=chat(stream=stream))
            assert response.headers["content-type"] == "application/json"
            assert error_of(response, error.status) == error.body()["error"]

    async def test_after_the_first_event(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        error = EngineFailure("The engine stopped reading this page.")
        engine.script = fails(error, "a", "b")
        response = await client.post(CHAT, json=chat(stream=True, stream_options={"include_usage": True}))
        assert response.status_code == 200
        *chunks, failure, done = events(response.text)
        assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "a", "b"]
        assert failure == error.body()
        assert envelope(failure)["code"] == "engine_error"
        assert done == "[DONE]"

    async def test_on_a_later_page(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number == 1:
                raise InvalidRequest("Page 2 is bad.")
            yield delta("page 1", finish="stop")

        engine.script = script
        request = chat(message(picture(), picture()), ocr={"mode": "tiny"}, stream=True)
        *chunks, done = events((await client.post(CHAT, json=request)).text)
        reports = [page for chunk in chunks for page in chunk["choices"][0]["delta"].get("ocr", {}).get("pages", [])]
        assert sorted(report["finish_reason"] for report in reports) == ["error", "stop"]
        (error,) = (report["error"] for report in reports if report["finish_reason"] == "error")
        assert error == {"message": "Page 2 is bad.", "code": None}
        assert (chunks[-1]["choices"][0]["finish_reason"], done) == ("length", "[DONE]")

    async def test_unexpected_errors_show_no_details(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = fails(RuntimeError(SECRET), "a")
        response = await client.post(CHAT, json=chat(stream=True))
        *_, failure, done = events(response.text)
        assert envelope(failure)["code"] == "internal_error"
        assert (failure["error"]["type"], done) == ("server_error", "[DONE]")
        assert "secret" not in response.text

    async def test_trouble_of_the_machine_is_named(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = fails(MemoryError(), "a")
        response = await client.post(CHAT, json=chat(stream=True))
        *_, failure, _ = events(response.text)
        assert envelope(failure)["code"] == "out_of_resources"

    async def test_unexpected_errors_before_the_first_event(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.script = fails(RuntimeError(SECRET))
        response = await client.post(CHAT, json=chat(stream=True))
        assert error_of(response, 500)["code"] == "internal_error"
        assert "secret" not in response.text

    async def test_cancelled_while_waiting_for_the_first_event(self) -> None:
        closed: list[bool] = []
        waiting = asyncio.create_task(event_stream(silent(closed), shutdown_timeout=1))
        await asyncio.sleep(0.01)  # it waits now
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert closed


class RunResponse:
    """Runs a response without a server."""

    def __init__(self, response: EventSourceResponse) -> None:
        self.response = response
        self.sent = b""

    async def run(self) -> str:
        async with asyncio.timeout(10):
            await self.response({"type": "http", "method": "POST"}, self.receive, self.send)
        return self.sent.decode()

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        self.sent += message.get("body", b"")


class TestSlowness:
    async def test_the_response_begins_before_the_first_event(self) -> None:
        gate = asyncio.Event()

        async def slow() -> AsyncGenerator[str]:
            await gate.wait()
            yield "1"

        async with asyncio.timeout(5):
            response = RunResponse(await event_stream(slow(), shutdown_timeout=1, patience=0.01))
        response.response.ping_interval = 0.01
        running = asyncio.create_task(response.run())
        await until(lambda: response.sent.count(b": ping") >= 2)
        gate.set()
        assert events(await running) == [1, "[DONE]"]

    async def test_a_late_error_is_a_frame(self) -> None:
        async def failing() -> AsyncGenerator[str]:
            await asyncio.sleep(0.05)
            raise EngineFailure("late")
            yield ""

        response = RunResponse(await event_stream(failing(), shutdown_timeout=1, patience=0.01))
        assert events(await response.run()) == [EngineFailure("late").body(), "[DONE]"]

    async def test_an_early_error_is_raised(self) -> None:
        async def failing() -> AsyncGenerator[str]:
            await asyncio.sleep(0.01)
            raise EngineFailure("soon")
            yield ""

        with pytest.raises(EngineFailure, match="soon"):
            await event_stream(failing(), shutdown_timeout=1, patience=10)

    async def test_a_client_that_disconnects_before_the_first_event(self) -> None:
        closed: list[bool] = []
        response = RunResponse(await event_stream(silent(closed), shutdown_timeout=1, patience=0.01))

        async def gone() -> Any:
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        response.receive = gone  # type: ignore[method-assign]
        await response.run()
        assert closed


class TestShutdown:
    @pytest.fixture(autouse=True)
    def _told_to_stop(self) -> Iterator[None]:
        """As after SIGTERM. The library keeps this flag for the whole process."""
        AppStatus.should_exit = True
        yield
        AppStatus.should_exit = False

    async def test_a_stream_may_finish(self) -> None:
        async def slow() -> AsyncGenerator[str]:
            for number in range(5):
                yield str(number)
                await asyncio.sleep(0.05)

        assert events(await RunResponse(await event_stream(slow(), shutdown_timeout=10)).run()) == [
            0,
            1,
            2,
            3,
            4,
            "[DONE]",
        ]

    @pytest.mark.slow
    async def test_the_time_to_finish_is_limited(self) -> None:
        closed = []

        async def on_and_on() -> AsyncGenerator[str]:
            try:
                while True:
                    yield "1"
                    await asyncio.sleep(0.01)
            finally:
                closed.append(True)

        await RunResponse(await event_stream(on_and_on(), shutdown_timeout=0.2)).run()
        assert closed


class Served:
    """The application in a real server, since the in-process transport does not support disconnects."""

    def __init__(self, app: FastAPI) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
def served(app: FastAPI) -> Iterator[Served]:
    served = Served(app)
    served.thread.start()
    yield served
    served.server.should_exit = True
    served.thread.join(10)
    assert not served.thread.is_alive()


@pytest.fixture
async def remote(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    await until(lambda: served.server.started)
    async with httpx.AsyncClient(base_url=served.address) as client:
        yield client


TWO_PAGES = chat(message(picture(), picture()), ocr={"mode": "tiny"})


class TestDisconnect:
    async def gone(self, engine: FakeEngine) -> None:
        await until(lambda: sorted(engine.aborted) == [0, 1])
        assert engine.running == 0

    async def test_in_the_middle_of_a_stream(self, remote: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = endless
        async with remote.stream("POST", CHAT, json={**TWO_PAGES, "stream": True}) as response:
            lines = response.aiter_lines()
            for _ in range(5):
                await anext(lines)
            assert engine.running == 2
        await self.gone(engine)

    @pytest.mark.parametrize(("script", "stream"), [(never, True), (never, False), (endless, False)])
    async def test_before_the_first_byte(
        self, remote: httpx.AsyncClient, engine: FakeEngine, script: Any, stream: bool
    ) -> None:
        engine.script = script
        request = asyncio.create_task(remote.post(CHAT, json={**TWO_PAGES, "stream": stream}))
        await until(lambda: engine.running == 2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await self.gone(engine)

    async def test_the_next_client_is_served(self, remote: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = never
        request = asyncio.create_task(remote.post(CHAT, json=TWO_PAGES))
        await until(lambda: engine.running == 2)
        request.cancel()
        await self.gone(engine)
        engine.script = says("served")
        assert (await remote.post(CHAT, json=chat())).json()["choices"][0]["message"]["content"] == "served"
        assert events((await remote.post(CHAT, json=chat(stream=True))).text)[-1] == "[DONE]"
