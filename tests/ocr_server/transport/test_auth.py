"""API keys: how they are written, stored and compared, and that every route requires one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.types import Message

from config import Settings, load
from ocr_server.app import create_app
from ocr_server.runtime import Runtime
from ocr_server.transport.auth import PROBES
from ocr_server.transport.keys import CHECK_SECONDS, MISSING_SECONDS, KeyRing, parse_key, parse_keys
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, client_of, error_of, until

KEY = "sk-correct-horse"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
BEARER = {"authorization": f"Bearer {KEY}"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


def with_keys(settings: Settings, **more: Any) -> FastAPI:
    return create_app(
        Runtime.build(Settings(**{**settings.model_dump(), "API_KEYS": f"alice:{KEY},sk-other", **more}), FakeEngine())
    )


@pytest.fixture
def locked(settings: Settings) -> FastAPI:
    return with_keys(settings)


@pytest.fixture
async def outside(locked: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(locked) as client:
        yield client


class TestParsing:
    @pytest.mark.parametrize(
        ("written", "label"),
        [
            (KEY, HASH[:8]),
            (f" {KEY}\t", HASH[:8]),
            (f"sha256:{HASH}", HASH[:8]),
            (f"SHA256:{HASH.upper()}", HASH[:8]),
            (f"alice:{KEY}", "alice"),
            (f"alice: {KEY}", "alice"),
            (f"a.b-c_1: sha256:{HASH}", "a.b-c_1"),
        ],
    )
    def test_forms_of_one_key(self, written: str, label: str) -> None:
        key = parse_key(written)
        assert (key.digest.hex(), key.label) == (HASH, label)
        assert key.owner == f"key_{HASH[:16]}", "whatever the label is"
        assert (key.expires, key.pages_per_day, key.bytes_per_day) == (None, None, None)

    @pytest.mark.parametrize(
        ("option", "field", "value"),
        [
            ("expires=2027-01-01", "expires", datetime(2027, 1, 1, tzinfo=UTC).timestamp()),
            ("expires=2027-01-01T01:00+01:00", "expires", datetime(2027, 1, 1, tzinfo=UTC).timestamp()),
            ("owner=accounting", "owner", "accounting"),
            ("pages_per_day=1000", "pages_per_day", 1000),
            ("megabytes_per_day=5", "bytes_per_day", 5_000_000),
        ],
    )
    def test_options(self, option: str, field: str, value: object) -> None:
        for written in (f"{KEY} {option}", f"alice: {KEY}\t{option}", f"sha256:{HASH}  {option} "):
            key = parse_key(written)
            assert getattr(key, field) == value
            assert key.digest.hex() == HASH
        several = parse_key(f"alice:{KEY} {option} owner=all")
        assert (several.label, several.owner) == ("alice", "all")

    @pytest.mark.parametrize(
        "option",
        [
            *["expires=soon", "expires=", "owner=", "owner=label:alice", f"owner={'x' * 65}", "pages_per_day=0"],
            *["pages_per_day=-1", "pages_per_day=1.5", "megabytes_per_day=many", "digest=1", "label=bob", "colour=red"],
        ],
    )
    def test_invalid_options(self, option: str) -> None:
        with pytest.raises(ValueError, match=r"must be|must have|options of a key") as caught:
            parse_key(f"{KEY} {option}")
        assert KEY not in str(caught.value)

    @pytest.mark.parametrize(
        "written",
        [
            *["", " ", "two words", "a:b:c", "sha256:", "sha256:abc", f"sha256:{HASH}0", "alice:", ":key", "schlüssel"],
            *["a,b", f"alice:sha256:{HASH[:-1]}", "two words: key", f"{'x' * 65}:key", "key\nkey"],
        ],
    )
    def test_invalid_keys(self, written: str) -> None:
        with pytest.raises(ValueError, match="a key must be") as caught:
            parse_key(written)
        assert written in ("", " ", "sha256:") or written not in str(caught.value)

    def test_lists(self) -> None:
        assert parse_keys("") == []
        assert [key.label for key in parse_keys("a:1, b:2,,c: 3,")] == ["a", "b", "c"]
        with pytest.raises(ValueError, match="no key"):
            parse_keys(" , ")

    def test_keys_are_never_stored_or_shown(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        made = Settings(**{**settings.model_dump(), "API_KEYS": KEY})
        key = parse_key(KEY)
        assert KEY not in repr(made) + str(made) + repr(key) + repr(vars(key))
        assert HASH not in repr(key)
        with pytest.raises(SystemExit):
            load(["--api-keys", f"{KEY} {KEY}"])
        assert KEY not in capsys.readouterr().err
        with pytest.raises(ValueError, match="API_KEYS") as caught:
            Settings(API_KEYS=f"{KEY} {KEY}")  # type: ignore[arg-type]
        assert KEY not in str(caught.value)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def label_of(ring: KeyRing, key: bytes) -> str | None:
    found = ring.find(key)
    return None if found is None else found.label


class TestKeyRing:
    def test_owners(self) -> None:
        ring = KeyRing(parse_keys(f"alice:{KEY},sk-other"))
        assert label_of(ring, KEY.encode()) == "alice"
        assert label_of(ring, b"sk-other") == hashlib.sha256(b"sk-other").hexdigest()[:8]
        for wrong in (b"", KEY[:-1].encode(), KEY.encode() + b" ", b"alice", HASH.encode(), b"sha256:" + HASH.encode()):
            assert ring.find(wrong) is None

    def test_every_key_is_compared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that the time does not reveal which key matched, or whether one did."""
        compared: list[bytes] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append(one)
            return one == other

        ring = KeyRing(parse_keys("a,b,c"))
        monkeypatch.setattr("ocr_server.transport.keys.hmac.compare_digest", compare)
        for key in (b"a", b"c", b"wrong"):
            compared.clear()
            ring.find(key)
            assert len(compared) == 3

    def test_no_key_is_required_only_without_any_setting(self, file: Path) -> None:
        assert KeyRing([]).open
        assert not KeyRing(parse_keys("a")).open
        for text in (None, "", "# nobody\n"):
            if text is not None:
                file.write_text(text)
            ring = KeyRing([], file)
            assert not ring.open
            assert ring.find(b"") is None
            assert ring.find(b"a") is None

    def test_a_file(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        lines = ["\ufeff# who may ask", "", f"alice: {KEY} # since May", "two words here", "b#b", "  c:3\t", "#d:4"]
        file.write_text("\r\n".join(lines), encoding="utf-8")
        ring = KeyRing(parse_keys("given"), file)
        assert [ring.find(key) is not None for key in (b"given", KEY.encode(), b"b#b", b"3")] == [True] * 4
        assert label_of(ring, KEY.encode()) == "alice"
        assert ring.find(b"4") is None
        assert "line 4" in caplog.text
        assert "words" not in caplog.text

    def test_the_file_is_read_again_when_it_changes(self, file: Path, clock: Clock) -> None:
        file.write_text("old")
        ring = KeyRing([], file, clock=clock)
        file.write_text("newer")
        assert ring.find(b"newer") is None, "the file is checked once a second"
        clock.now += CHECK_SECONDS
        assert ring.find(b"newer") is not None
        assert ring.find(b"old") is None

    def test_a_replaced_file_of_the_same_size_and_time_is_noticed(
        self, file: Path, clock: Clock, tmp_path: Path
    ) -> None:
        """Kubernetes replaces the files of secrets by changing a link."""
        file.write_text("old")
        ring = KeyRing([], file, clock=clock)
        other = tmp_path / "other"
        other.write_text("new")
        times = file.stat()
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        other.replace(file)
        clock.now += CHECK_SECONDS
        assert ring.find(b"new") is not None

    def test_the_file_is_not_read_when_it_has_not_changed(self, file: Path, clock: Clock) -> None:
        file.write_text("old")
        ring = KeyRing([], file, clock=clock)
        times = file.stat()
        file.write_text("new")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        clock.now += CHECK_SECONDS
        assert ring.find(b"old") is not None

    def test_the_keys_of_a_deleted_file_are_revoked_after_a_minute(
        self, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        file.write_text("good")
        ring = KeyRing(parse_keys("given"), file, clock=clock)
        file.unlink()
        for seconds, valid in ((CHECK_SECONDS, True), (MISSING_SECONDS - 1, True), (1, False), (99, False)):
            clock.now += seconds
            assert (ring.find(b"good") is not None) == valid
        assert ring.find(b"given") is not None
        assert not ring.open, "it does not become a server without keys"
        assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
        file.write_text("good")
        clock.now += CHECK_SECONDS
        assert ring.find(b"good") is not None

    @pytest.mark.parametrize("how", ["gone", "a folder", "no text"])
    def test_the_previous_keys_stay_valid_while_the_file_cannot_be_read(
        self, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        file.write_text("good")
        ring = KeyRing([], file, clock=clock)
        if how == "no text":
            file.write_bytes(b"\xff\xfe\xfa")
        else:
            file.unlink()
        if how == "a folder":
            file.mkdir()
        for _ in range(3):
            clock.now += CHECK_SECONDS
            assert ring.find(b"good") is not None
        assert [record.levelname for record in caplog.records] == ["ERROR"], "logged once, not every second"
        if how == "a folder":
            file.rmdir()
        file.write_text("better")
        clock.now += CHECK_SECONDS
        assert ring.find(b"better") is not None
        assert ring.find(b"good") is None

    def test_an_empty_file_has_no_keys(self, file: Path, clock: Clock) -> None:
        file.write_text("good")
        ring = KeyRing([], file, clock=clock)
        file.write_text("")
        clock.now += CHECK_SECONDS
        assert ring.find(b"good") is None
        assert not ring.open


def addresses(app: FastAPI) -> list[str]:
    """A path for every route of the application, and some paths without a route."""
    known = []
    for route in app.routes:
        path = re.sub(r"\{[^}]*\}", "deepseek-ocr", getattr(route, "path", ""))
        assert path, route
        known += [path, f"{path}/swagger-ui.css"] if isinstance(route, Mount) else [path]
    unknown = [*(f"{probe}/" for probe in PROBES), "/nothing", "/v1/", "//livez", "/LIVEZ", "/livez%00", "/livez/x"]
    return list(dict.fromkeys(known + unknown))


class TestEveryRoute:
    async def test_needs_a_key(self, locked: FastAPI, outside: httpx.AsyncClient) -> None:
        free = {(method, probe) for method in ("GET", "HEAD") for probe in PROBES}
        found = addresses(locked)
        assert {CHAT, "/v1/ocr", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css", *PROBES} <= set(found)
        for path in found:
            for method in METHODS:
                response = await outside.request(method, path)
                if (method, path) in free:
                    assert response.status_code == 200, (method, path)
                    continue
                if method in ("GET", "HEAD") and path.startswith("/ui"):  # the files of the web page need no key
                    assert response.status_code == (307 if path == "/ui" else 404), (method, path)
                    continue
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.headers["x-request-id"]
                if method != "HEAD":
                    error = error_of(response, 401)
                    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")

    async def test_accepts_a_valid_key(self, locked: FastAPI, outside: httpx.AsyncClient) -> None:
        for path in addresses(locked):
            for method in METHODS:
                assert (await outside.request(method, path, headers=BEARER)).status_code != 401, (method, path)
        assert (await outside.post(CHAT, json=chat(), headers=BEARER)).status_code == 200

    async def test_needs_no_key_if_none_is_configured(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        for path in addresses(app):
            for headers in ({}, {"authorization": "Bearer EMPTY"}):
                assert (await client.get(path, headers=headers)).status_code != 401

    async def test_metrics_have_a_setting_of_their_own(self, settings: Settings, outside: httpx.AsyncClient) -> None:
        assert (await outside.get("/metrics")).status_code == 401
        async with client_of(with_keys(settings, METRICS_KEY_REQUIRED=False)) as client:
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.post("/metrics")).status_code == 401
            assert (await client.get("/docs")).status_code == 401

    async def test_an_application_mounted_below_a_path(self, settings: Settings) -> None:
        outer = FastAPI()
        outer.mount("/ocr", with_keys(settings))
        async with client_of(outer) as client:
            assert (await client.get("/ocr/livez")).status_code == 200
            assert (await client.get("/ocr/v1/models")).status_code == 401
            assert (await client.get("/ocr/v1/models", headers=BEARER)).status_code == 200

    async def test_websockets_too(self, locked: FastAPI) -> None:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/livez", "headers": [], "query_string": b""}
        await locked(scope, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]


class TestHeader:
    @pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY}", "Bearer sk-other"])
    async def test_valid(self, outside: httpx.AsyncClient, given: str) -> None:
        assert (await outside.get("/v1/models", headers={"authorization": given})).status_code == 200

    @pytest.mark.parametrize(
        "given",
        [
            *["", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer{KEY}", f"Bearer {KEY}x", f"Bearer {KEY} x"],
            *["Bearer alice", f"Bearer {HASH}", f"Bearer sha256:{HASH}", f"Bearer alice:{KEY}", "Bearer \xe9"],
            f"Bearer {KEY},sk-other",
        ],
    )
    async def test_invalid(self, outside: httpx.AsyncClient, given: str) -> None:
        response = await outside.get("/v1/models", headers=[(b"authorization", given.encode("latin-1"))])
        error_of(response, 401)
        assert KEY not in response.text
        assert KEY not in str(response.headers)

    async def test_two_headers_are_refused(self, outside: httpx.AsyncClient) -> None:
        headers = [("authorization", "Bearer wrong"), ("authorization", f"Bearer {KEY}")]
        assert (await outside.get("/v1/models", headers=headers)).status_code == 401

    async def test_probes_ignore_a_wrong_key(self, outside: httpx.AsyncClient) -> None:
        for probe in PROBES:
            assert (await outside.get(probe, headers={"authorization": "Bearer wrong"})).status_code == 200

    async def test_an_expired_key(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        app = with_keys(settings, API_KEYS=f"{KEY} expires=2027-01-01,sk-other")
        async with client_of(app) as client:
            for at, status in ((-1, 200), (0, 401), (1e9, 401)):
                now = datetime(2027, 1, 1, tzinfo=UTC).timestamp() + at
                with monkeypatch.context() as patched:
                    patched.setattr("ocr_server.transport.auth.time.time", lambda now=now: now)
                    response = await client.get("/v1/models", headers=BEARER)
                assert response.status_code == status
            assert error_of(response, 401)["message"] == "The API key has expired."

    async def test_the_label_is_logged(self, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "ocr_server.access")
        async with client_of(with_keys(settings)) as client:
            for key in (KEY, "sk-other"):
                await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            await client.get("/livez")
        assert "client=alice" in caplog.text
        assert "client=anonymous" in caplog.text
        assert f"client={hashlib.sha256(b'sk-other').hexdigest()[:8]}" in caplog.text


async def refused(app: FastAPI, headers: list[tuple[bytes, bytes]], *bodies: Message) -> list[str]:
    """The events, in order, of a request without a key. After `bodies`, the client sends nothing more."""
    happened: list[str] = []
    coming = iter(bodies)

    async def receive() -> Message:
        happened.append("receive")
        message = next(coming, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    async def send(message: Message) -> None:
        complete = "" if message.get("more_body") else " end"
        happened.append(message["type"].removeprefix("http.response.") + complete)
        if message["type"] == "http.response.start":
            assert message["status"] == 401

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    return happened


class TestUploads:
    """Bodies of requests without a key."""

    async def test_nothing_is_read_before_the_answer(self, locked: FastAPI) -> None:
        body = {"type": "http.request", "body": b"x" * 10, "more_body": False}
        assert await refused(locked, []) == ["start end", "body end"]
        assert await refused(locked, [(b"content-length", b"10")], body) == ["start end", "body", "receive", "body end"]

    async def test_the_client_may_disconnect(self, locked: FastAPI) -> None:
        gone = {"type": "http.disconnect"}
        happened = await refused(locked, [(b"transfer-encoding", b"chunked")], gone)
        assert happened == ["start end", "body", "receive", "body end"]


@pytest.fixture
async def address(locked: FastAPI) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(locked, host="127.0.0.1", port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    await until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


def megabytes(count: int) -> Iterator[bytes]:
    for _ in range(count * 16):
        yield b"x" * 62_500


class TestOverTheWire:
    @pytest.mark.parametrize("size", [0, 5, 30])
    async def test_clients_with_large_bodies_receive_the_response(self, address: str, size: int) -> None:
        def upload(content: Any) -> httpx.Response:
            with httpx.Client(base_url=address) as client:
                return client.post(CHAT, content=content)

        error_of(await asyncio.to_thread(upload, b"x" * size * 1_000_000), 401)
        error_of(await asyncio.to_thread(upload, megabytes(size)), 401)

    async def test_the_official_client(self, address: str) -> None:
        def ask(key: str) -> Any:
            with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
                return client.chat.completions.create(**chat_call())

        with pytest.raises(openai.AuthenticationError) as caught:
            await asyncio.to_thread(ask, "wrong")
        assert caught.value.code == "invalid_api_key"
        assert (await asyncio.to_thread(ask, KEY)).choices[0].message.content == "Hello"


def chat_call() -> dict[str, Any]:
    body = chat()
    return {"model": body["model"], "messages": body["messages"], "extra_body": {"ocr": body["ocr"]}}


ASKS = {"origin": "https://page.example", "access-control-request-method": "POST"}


class TestOrigins:
    async def test_off_by_default(self, client: httpx.AsyncClient, outside: httpx.AsyncClient) -> None:
        for each in (client, outside):
            response = await each.get("/livez", headers=ASKS)
            assert "access-control-allow-origin" not in response.headers
            assert (await each.options(CHAT, headers=ASKS)).status_code == 403

    async def test_a_preflight_needs_no_key(self, settings: Settings) -> None:
        async with client_of(with_keys(settings, CORS_ORIGINS="https://page.example, http://localhost:3000")) as client:
            asks = ASKS | {"access-control-request-headers": "authorization,content-type,x-stainless-os"}
            response = await client.options(CHAT, headers=asks)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == "https://page.example"
            assert "authorization" in response.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in response.headers
            assert (await client.options(CHAT)).status_code == 401, "this is not a preflight request"
            response = await client.post(CHAT, json=chat(), headers=ASKS)
            error_of(response, 401)  # and the page can see it:
            assert response.headers["access-control-allow-origin"] == "https://page.example"
            assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
            response = await client.options(CHAT, headers=asks | {"origin": "https://evil.example"})
            assert response.status_code == 400
            assert "access-control-allow-origin" not in response.headers
