"""Logging: an access log entry for each request, its id in all records, and no content of documents."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from config import Settings
from ocr_server.app import create_app
from ocr_server.errors import EngineFailure
from ocr_server.observability import logs
from ocr_server.reading.page import Page, PageDelta
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import CHAT, FakeEngine, Script, chat, client_of, delta, fails, message, picture, says

MARK = "zyzzyva"
"""Part of everything that must not be logged."""


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    form: str = request.param
    return form


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def _logging(form: str, written: io.StringIO) -> Iterator[None]:
    """Configure logging as the server does, at the level debug, and restore it afterwards."""
    root = logging.getLogger()
    names = ["", *logs.VERBOSE_LOGGERS]
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    root.handlers = []  # `force` would close pytest's own
    logs.set_up("debug", form, written)
    yield
    root.handlers = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def access_lines(written: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in lines if line["logger"] == "ocr_server.access"]


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize("form", ["json"], indirect=True)
class TestAccess:
    async def test_an_entry_for_each_request(self, client: httpx.AsyncClient, written: io.StringIO) -> None:
        await client.get(f"/v1/models/{MARK}?q={MARK}", headers={"x-request-id": "mine"})
        (line,) = access_lines(written)
        assert line.pop("seconds") >= 0
        assert line.pop("time").endswith("+00:00")
        assert line.pop("message").startswith("GET /v1/models/{model_id} 404 ")
        assert line == {
            "level": "info",
            "logger": "ocr_server.access",
            "request_id": "mine",
            "method": "GET",
            "route": "/v1/models/{model_id}",
            "status": 404,
            "client": "anonymous",
        }

    async def test_the_counts_of_what_was_read(
        self, app: FastAPI, client: httpx.AsyncClient, written: io.StringIO
    ) -> None:
        @app.get("/read")
        async def read() -> None: ...

        inner = app.router.routes[-1]

        async def reads(scope: Any, receive: Any, send: Any) -> None:
            scope["state"]["reading"] = {"pages": 3, "prompt_tokens": 5, "completion_tokens": 7, "text": MARK}
            await original(scope, receive, send)

        original = inner.app  # type: ignore[attr-defined]
        inner.app = reads  # type: ignore[attr-defined]
        await client.get("/read")
        (line,) = access_lines(written)
        assert (line["pages"], line["prompt_tokens"], line["completion_tokens"]) == (3, 5, 7)
        assert "pages=3 prompt_tokens=5" in line["message"]
        assert MARK not in written.getvalue()

    async def test_a_stream_is_logged_at_its_end(
        self, client: httpx.AsyncClient, engine: FakeEngine, written: io.StringIO
    ) -> None:
        async def slow(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            yield delta("a")
            await asyncio.sleep(0.2)
            yield delta("b", finish="stop")

        engine.script = slow
        await client.post(CHAT, json=chat(stream=True))
        (line,) = access_lines(written)
        assert line["status"] == 200
        assert line["seconds"] >= 0.2

    @pytest.mark.parametrize(
        ("outcome", "status"), [("ends", 200), ("breaks", 500), ("is cut off", 503), ("is left", 499)]
    )
    async def test_the_status_depends_on_how_the_response_ends(
        self, app: FastAPI, written: io.StringIO, outcome: str, status: int
    ) -> None:
        """After the status line has been sent."""

        async def endpoint(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if outcome == "breaks":
                raise RuntimeError(MARK)
            if outcome == "is cut off":
                raise asyncio.CancelledError
            if outcome == "ends":
                await send({"type": "http.response.body", "body": b""})

        app.mount("/inner", endpoint)

        async def nothing(*_: Any) -> Any: ...

        scope = {"type": "http", "method": "GET", "path": "/inner/x", "headers": [], "query_string": b""}
        try:
            await app(scope, nothing, nothing)
        except (RuntimeError, asyncio.CancelledError):
            assert outcome in ("breaks", "is cut off")
        (line,) = access_lines(written)
        assert (line["status"], line["route"]) == (status, "/inner/*")

    async def test_a_client_that_disconnects_while_it_sends(self, app: FastAPI, written: io.StringIO) -> None:
        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None: ...

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
        await app(scope, receive, send)
        assert [line["status"] for line in access_lines(written)] == [499]
        assert '"error"' not in written.getvalue()


@pytest.mark.usefixtures("_logging")
class TestIds:
    async def test_every_record_has_its_requests_id(self, app: FastAPI, written: io.StringIO, form: str) -> None:
        @app.get("/logs/{name}")
        async def endpoint(name: str) -> None:
            await asyncio.sleep(0.01)
            await asyncio.to_thread(logging.getLogger("some.library").warning, "about %s", name)

        names = [f"name-{number}" for number in range(5)]
        async with client_of(app) as client:
            await asyncio.gather(
                *(client.get(f"/logs/{name}", headers={"x-request-id": f"id-{name}"}) for name in names)
            )
        about = [line for line in written.getvalue().splitlines() if "about" in line]
        assert len(about) == len(names)
        for line, name in zip(sorted(about, key=lambda line: line[-12:]), names, strict=False):
            assert line.count("name-") == 2, name
        for line in about:
            said = json.loads(line)["message"] if form == "json" else line
            assert f"id-{said.split('about ')[1]}" in line

    async def test_unexpected_errors_are_logged_with_the_id(
        self, client: httpx.AsyncClient, engine: FakeEngine, written: io.StringIO, form: str
    ) -> None:
        engine.script = fails(RuntimeError(MARK))
        await client.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
        errors = [line for line in written.getvalue().splitlines() if "failed unexpectedly" in line]
        assert len(errors) == 1
        assert "mine" in errors[0]


class TestExceptions:
    def record(self, error: Exception) -> str:
        written = io.StringIO()
        logger = logging.Logger("some")
        logger.addHandler(logs.handler("text", written))
        logger.error("broke", exc_info=error)
        return written.getvalue()

    def failure(self) -> Exception:
        try:
            try:
                raise KeyError(MARK)
            except KeyError as error:
                raise ExceptionGroup(MARK, [ValueError(MARK)]) from error
        except ExceptionGroup as error:
            return error

    def test_during_a_request_the_messages_are_left_out(self) -> None:
        token = logs.request_id.set("mine")
        try:
            said = self.record(self.failure())
        finally:
            logs.request_id.reset(token)
        assert said.startswith("ERROR ")
        assert "some [mine]: broke" in said
        assert "in failure" in said
        assert all(name in said for name in ("builtins.KeyError", "builtins.ValueError", "ExceptionGroup"))
        assert MARK not in said

    def test_otherwise_the_messages_are_logged(self) -> None:
        token = logs.request_id.set("")
        try:
            assert MARK in self.record(self.failure())
        finally:
            logs.request_id.reset(token)


async def loops(_: int, __: Page) -> AsyncGenerator[PageDelta]:
    yield delta(MARK, finish="repetition")


@pytest.mark.usefixtures("_logging")
@pytest.mark.slow
class TestSecrets:
    @pytest.mark.parametrize("keys", ["", f"sk-{MARK}"])
    async def test_nothing_of_a_document_a_prompt_or_a_key_is_logged(
        self, settings: Settings, written: io.StringIO, keys: str
    ) -> None:
        marked = base64.b64encode(f"%PDF-1.7 {MARK}".encode()).decode()
        bodies: list[Any] = [
            chat(message(picture(), MARK), stream=stream, ocr={"mode": "tiny"}) for stream in (False, True)
        ]
        bodies += [
            chat(message(picture(f"https://{MARK}.example/{MARK}?{MARK}"), MARK)),
            chat(message(picture(f"data:application/pdf;base64,{marked}"), MARK)),
            chat(message(picture(f"data:{MARK};base64,{MARK}"))),
            chat(message(MARK, role=MARK)),
            chat(unknown=MARK),
            chat(model=MARK),
            {"document": {"document_url": f"data:;base64,{marked}"}},
            {"document": {"document_url": MARK}, "unknown": MARK},
            MARK,
        ]
        scripts: list[Script] = [
            says(MARK, MARK),
            loops,
            fails(EngineFailure(MARK)),
            fails(RuntimeError(MARK)),
            fails(RuntimeError(MARK), MARK),
        ]
        engine = FakeEngine()
        app = create_app(Runtime.build(Settings(**{**settings.model_dump(), "API_KEYS": keys}), engine))
        given = [{"authorization": f"Bearer sk-{MARK}"}, {"authorization": f"Bearer wrong-{MARK}"}, {}]
        statuses, sent = set(), 0
        async with client_of(app) as client:
            for script in scripts:
                engine.script = script
                for headers in given:
                    for path in (CHAT, "/v1/ocr", f"/{MARK}", f"/v1/models/{MARK}?{MARK}"):
                        for body in bodies:
                            answer = await client.post(path, json=body, headers=headers)
                            statuses.add(answer.status_code)
                            sent += 1
                        file = {"file": (f"{MARK}.pdf", MARK.encode())}
                        statuses.add((await client.post(path, files=file, headers=headers)).status_code)
                        await client.post(path, content=f'{{"{MARK}": '.encode(), headers=headers)
                        sent += 2
        await app.state.runtime.intake.close()
        assert {200, 400, 404, 405, 500} <= statuses
        assert (401 in statuses) is bool(keys)
        said = written.getvalue()
        assert said.count("ocr_server.access") == sent
        found = [line for line in said.splitlines() if MARK in line.lower() or marked[20:40] in line]
        assert found == []

    async def test_the_level_of_verbose_libraries_is_raised(self, written: io.StringIO) -> None:
        for name in logs.VERBOSE_LOGGERS:
            logging.getLogger(f"{name}.inner").debug(MARK)
        logging.getLogger("httpx").info(MARK)
        logging.getLogger("ocr_server.other").debug("heard")
        assert MARK not in written.getvalue()
        assert "heard" in written.getvalue()
