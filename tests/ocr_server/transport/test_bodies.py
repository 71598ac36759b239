"""Bodies: compressed ones, those that a client announces, and those that are nested too deeply."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from ocr_server.dialects.json_schema import MAX_SCHEMA_LEVELS
from ocr_server.dialects.validation import MAX_LEVELS
from ocr_server.errors import ApiError, InvalidRequest, TooLarge
from ocr_server.memory import BYTES_HELD, SHARES, MemoryBudget, Use
from ocr_server.transport.bodies import PIECE_BYTES, BodyLimit
from tests.ocr_server.conftest import CHAT, WHITE, FakeEngine, chat, error_of

OCR = "/v1/ocr"


def nested(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = {"a": value}
    return value


def with_schema(levels: int) -> dict[str, Any]:
    """A chat request whose schema has `levels` objects inside each other, and a value in the innermost."""
    form = {"type": "json_schema", "json_schema": {"name": "deep", "schema": nested(levels)}}
    return chat(response_format=form)


class TestDepth:
    @pytest.mark.parametrize("levels", [MAX_SCHEMA_LEVELS, 150])
    async def test_a_deep_schema(self, levels: int, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, json=with_schema(levels)), 400)
        assert error["param"] == "response_format.json_schema.schema"
        assert str(MAX_SCHEMA_LEVELS) in error["message"]

    async def test_a_schema_with_the_maximum_depth(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        assert (await client.post(CHAT, json=with_schema(MAX_SCHEMA_LEVELS - 1))).status_code == 200
        assert len(engine.pages) == 1

    async def test_what_has_no_effect_may_be_nested(self, client: httpx.AsyncClient) -> None:
        response = await client.post(CHAT, json=chat(metadata=nested(MAX_LEVELS)))
        assert (response.status_code, response.headers["x-ignored-parameters"]) == (200, "metadata")

    @pytest.mark.timeout(60)  # far more than it takes, unless the time is quadratic
    @pytest.mark.parametrize("field", ["metadata", "tools", "messages", "no_such_field"])
    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    async def test_a_hundred_thousand_levels_anywhere(
        self, opening: bytes, field: str, client: httpx.AsyncClient
    ) -> None:
        deep = opening * 100_000 + b"1" + {b"[": b"]"}.get(opening, b"}") * 100_000
        for url in (CHAT, OCR):
            for body in (deep, b'{"%s":%s}' % (field.encode(), deep), b'{"%s":%s' % (field.encode(), deep[:100_000])):
                error = error_of(await client.post(url, content=body), 400)
                assert error["code"] in ("json_too_deep", "json_too_large")

    async def test_in_parts_that_have_no_effect(self, client: httpx.AsyncClient) -> None:
        unused = {"type": "thinking", "thought": nested(100)}
        body = chat({"role": "assistant", "content": [unused]}, *chat()["messages"], ocr={"mode": "tiny"})
        assert error_of(await client.post(CHAT, json=body), 400)["param"] == "messages"

    async def test_in_an_annotation(self, client: httpx.AsyncClient) -> None:
        body = {"document": {"document_url": WHITE}, "bbox_annotation_format": nested(100)}
        error = error_of(await client.post(OCR, json=body), 400)
        assert (error["code"], error["param"]) == ("json_too_deep", "bbox_annotation_format")

    @pytest.mark.parametrize("field", ["bbox_annotation_format", "pages", "mode"])
    async def test_in_a_field_of_a_form(self, field: str, client: httpx.AsyncClient) -> None:
        form = {field: "[" * 100_000 + "]" * 100_000}
        error = error_of(await client.post(OCR, data=form, files={"file": b"\xff\xd8\xff"}), 400)
        assert error["param"] == field

    async def test_brackets_in_a_string_are_not_counted(self, client: httpx.AsyncClient) -> None:
        body = chat()
        body["messages"][0]["content"][1]["text"] = "[{" * 1000
        assert (await client.post(CHAT, json=body)).status_code == 200


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate, identity": raw_deflate,
}


class TestCompressed:
    @pytest.mark.parametrize("encoding", COMPRESSED)
    async def test_a_compressed_body_is_read(
        self, encoding: str, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        body = COMPRESSED[encoding](json.dumps(chat()).encode())
        response = await client.post(CHAT, content=body, headers={"content-encoding": encoding})
        assert response.status_code == 200, response.text
        assert len(engine.pages) == 1

    @pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "none", "x" * 5000])
    async def test_another_encoding(self, encoding: str, client: httpx.AsyncClient) -> None:
        response = await client.post(CHAT, json=chat(), headers={"content-encoding": encoding})
        error = error_of(response, 415)
        assert (error["code"], error["param"]) == ("unsupported_encoding", "content-encoding")
        assert encoding[:10] in error["message"]
        assert len(error["message"]) < 300
        assert response.headers["accept-encoding"] == "gzip, deflate"

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b"{}", "damaged"),
            (gzip.compress(b"{}", mtime=0)[:-3], "incomplete"),
            (gzip.compress(b"{}" * 10_000, mtime=0)[:20], "incomplete"),
            (gzip.compress(b"{}", mtime=0) + b"{}", "followed"),
            (b"", "incomplete"),
        ],
    )
    async def test_damaged_data(self, body: bytes, problem: str, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, content=body, headers={"content-encoding": "gzip"}), 400)
        assert error["code"] == "invalid_encoding"
        assert problem in error["message"]


class Received:
    """An application that receives a body."""

    def __init__(self) -> None:
        self.body = b""
        self.error: ApiError | None = None

    async def __call__(self, _: Scope, receive: Receive, __: Send) -> None:
        try:
            more = True
            while more:
                message = await receive()
                assert len(message["body"]) <= PIECE_BYTES
                self.body += message["body"]
                more = message["more_body"]
            self.last = await receive()
        except ApiError as error:
            self.error = error


async def received(
    *pieces: bytes, encoding: str = "gzip", limit: int = 10**9, budget: int = 10**9, length: int | None = None
) -> Received:
    """Send a body in pieces through `BodyLimit`."""
    app = Received()
    memory = MemoryBudget(budget)
    limited = BodyLimit(app, limit=limit, memory=memory, timeout=60)
    headers = [(b"content-encoding", encoding.encode())]
    headers += [] if length is None else [(b"content-length", str(length).encode())]

    async def messages() -> AsyncIterator[Message]:
        for number, piece in enumerate(pieces, 1):
            yield {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        yield {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise AssertionError("nothing is answered")

    iterator = messages()
    await limited({"type": "http", "path": "/", "headers": headers}, iterator.__anext__, send)
    assert memory.used[Use.BODIES] == 0, "the body is still counted after its request"
    return app


class TestDecompression:
    @pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
    @pytest.mark.parametrize("step", [1, 7, 10_000])
    async def test_in_any_pieces(self, size: int, step: int) -> None:
        body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        data = gzip.compress(body)
        app = await received(*(data[at : at + step] for at in range(0, len(data), step)), b"")
        assert app.error is None
        assert app.body == body
        assert app.last["type"] == "http.disconnect"

    async def test_a_bomb_is_refused_by_what_it_expands_to(self) -> None:
        bomb = gzip.compress(bytes(100_000_000))
        assert len(bomb) < 200_000
        app = await received(bomb, limit=5_000_000)
        assert isinstance(app.error, TooLarge)
        assert len(app.body) <= 5_000_000

    async def test_a_bomb_draws_on_the_memory_of_all_bodies(self) -> None:
        budget = int(BYTES_HELD * 2_000_000 / SHARES[Use.BODIES])
        app = await received(gzip.compress(bytes(100_000_000)), budget=budget)
        assert isinstance(app.error, TooLarge)
        assert app.error.code == "too_many_bytes"
        assert len(app.body) <= 2_000_000

    async def test_data_that_expands_to_nothing_is_limited_as_well(self) -> None:
        nothing = b"\x00\x00\x00\xff\xff" * 1000  # blocks without content
        app = await received(*[nothing] * 100, encoding="deflate", limit=100_000)
        assert isinstance(app.error, TooLarge)

    async def test_damaged_data_is_an_error_of_the_request(self) -> None:
        app = await received(gzip.compress(b"a" * 1000)[:-5])
        assert isinstance(app.error, InvalidRequest)
