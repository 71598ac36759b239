"""The application as a whole: errors, limits, request ids, health, lifespan, and its OpenAPI documentation."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from config import ROOT, Settings
from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.modes import MODES
from ocr_server import __version__
from ocr_server.app import create_app
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.errors import ApiError, DecodingError, EngineFailure, InvalidRequest, NotFound, TooLarge, Unavailable
from ocr_server.runtime import Runtime
from ocr_server.transport.middleware import HeadAsGet
from tests.ocr_server.conftest import (
    CHAT,
    FakeEngine,
    chat,
    client_of,
    error_of,
    fails,
    message,
    picture,
    png,
    says,
)

MEGABYTE = 1_000_000


LONG = "x" * 300_000


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """Yield a body whose length is not declared."""
    for part in parts:
        yield part


@pytest.fixture
def narrow(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(
        Runtime.build(Settings(**{**settings.model_dump(), "MAX_BODY_MB": 1, "MAX_IMAGE_MEGAPIXELS": 1}), engine)
    )


@pytest.fixture
async def narrow_client(narrow: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(narrow) as client:
        yield client


class TestErrors:
    async def test_unknown_route(self, client: httpx.AsyncClient) -> None:
        error = error_of(await client.get("/v1/nothing"), 404)
        assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")
        assert "GET /v1/nothing" in error["message"]

    async def test_method_not_allowed(self, client: httpx.AsyncClient) -> None:
        response = await client.get(CHAT)
        assert error_of(response, 405)["code"] == "method_not_allowed"
        assert response.headers["allow"] == "POST"

    @pytest.mark.parametrize(
        ("path", "methods"),
        [("/v1/files", "GET, HEAD, POST"), ("/v1/files/file-1", "DELETE, GET, HEAD"), ("/health", "GET, HEAD")],
    )
    async def test_the_methods_of_a_path_are_listed(
        self, path: str, methods: str, settings: Settings, tmp_path: Path
    ) -> None:
        places = {"BATCHES": True, "DATABASE_URL": f"sqlite:///{tmp_path}/batches.db", "STORAGE_URL": str(tmp_path)}
        app = create_app(Runtime.build(Settings(**{**settings.model_dump(), **places}), FakeEngine()))
        async with client_of(app) as client:
            response = await client.put(path)
        error_of(response, 405)
        assert response.headers["allow"] == methods

    async def test_a_long_path_is_not_repeated(self, client: httpx.AsyncClient) -> None:
        for method, path in (("GET", "/"), ("PUT", "/v1/models/")):
            response = await client.request(method, path + "x" * 50_000)
            assert response.status_code in (404, 405)
            assert len(response.content) < 2000

    async def test_a_byte_order_mark(self, client: httpx.AsyncClient) -> None:
        body = json.dumps(chat()).encode("utf-8-sig")
        assert (await client.post(CHAT, content=body)).status_code == 200

    @pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
    async def test_another_charset(self, charset: str, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, content=json.dumps(chat()).encode(charset)), 415)
        assert (error["code"], error["param"]) == ("unsupported_charset", "content-type")
        assert "UTF-8" in error["message"]

    @pytest.mark.parametrize(
        ("path", "body", "param", "code"),
        [
            (CHAT, chat(stop=5), "stop", None),
            (CHAT, chat(stop=[5]), "stop[0]", None),
            (CHAT, chat(ocr={"pages": {}}), "ocr.pages", None),
            (CHAT, chat(ocr={"body": 1}), "ocr.body", "unknown_parameter"),
            (CHAT, chat(audio={"voice": "a"}), "audio", "unsupported_parameter"),
            ("/v1/responses", {"model": "deepseek-ocr", "input": 5}, "input", None),
        ],
    )
    async def test_the_name_and_the_code_of_a_parameter(
        self, path: str, body: dict[str, Any], param: str, code: str | None, client: httpx.AsyncClient
    ) -> None:
        error = error_of(await client.post(path, json=body), 400)
        assert (error["param"], error["code"]) == (param, code)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            (CHAT, chat(model=LONG)),
            (CHAT, chat(**{LONG: 1})),
            (CHAT, chat(ocr={LONG: 1})),
            (CHAT, chat(ocr={"mode": LONG})),
            (CHAT, chat(ocr={"pages": LONG})),
            (CHAT, chat(tool_choice=LONG)),
            (CHAT, chat(message(picture(LONG)))),
            (CHAT, chat(message(picture("http://" + LONG)))),
            (CHAT, chat({"role": LONG, "content": "a"})),
            (CHAT, chat(message({"type": LONG}))),
            (CHAT, chat(response_format={"type": LONG})),
            (
                CHAT,
                chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": LONG}}}),
            ),
            ("/v1/ocr", {"model": LONG, "document": {"document_url": "data:"}}),
            ("/v1/ocr", {"document": {"document_url": LONG}}),
            ("/v1/ocr", {"document": {"type": LONG, "document_url": "data:"}}),
            ("/v1/responses", {"model": "deepseek-ocr", "input": [{"type": "item_reference", "id": LONG}]}),
            ("/v1/responses", {"model": "deepseek-ocr", "input": "a", "tools": [{"type": LONG}]}),
        ],
    )
    async def test_an_error_does_not_repeat_the_request(
        self, path: str, body: dict[str, Any], client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        response = await client.post(path, json=body)
        assert len(response.content) < 3000
        assert max((len(value) for value in response.headers.values()), default=0) < 3000

    @pytest.mark.parametrize("body", [b"", b"{", b'{"model": }', b"\xff", b'{"a": "\xc3"}', b"5", b"[]", b"null"])
    @pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
    async def test_a_body_that_is_not_a_json_object(
        self, client: httpx.AsyncClient, body: bytes, kind: str | None
    ) -> None:
        headers = {} if kind is None else {"content-type": kind}
        error = error_of(await client.post(CHAT, content=body, headers=headers), 400)
        assert error["type"] == "invalid_request_error"
        assert error["param"] is None

    async def test_the_message_names_invalid_json(self, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, content=b'{"model": }'), 400)
        assert error["message"].startswith("The body is not valid JSON")

    async def test_a_missing_parameter_is_named(self, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, json={"model": "deepseek-ocr"}), 400)
        assert (error["param"], error["type"], error["code"]) == ("messages", "invalid_request_error", None)

    async def test_unknown_model(self, client: httpx.AsyncClient) -> None:
        assert error_of(await client.post(CHAT, json=chat(model="gpt-4o")), 404)["code"] == "model_not_found"
        assert error_of(await client.get("/v1/models/gpt-4o"), 404)["code"] == "model_not_found"

    @pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "x.png", "http://127.0.0.1/a.png", "ftp://host/a"])
    async def test_a_picture_that_cannot_be_loaded(self, client: httpx.AsyncClient, url: str) -> None:
        error = error_of(await client.post(CHAT, json=chat(message("a", picture(url)))), 400)
        assert error["param"] == "messages[0].content[1].image_url.url"

    async def test_a_page_that_does_not_exist(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        error = error_of(await client.post(CHAT, json=chat(message(picture()), ocr={"pages": "2"})), 400)
        assert (error["code"], error["param"]) == ("invalid_pages", "ocr.pages")
        assert not engine.pages

    async def test_a_picture_that_is_too_large(self, narrow_client: httpx.AsyncClient, engine: FakeEngine) -> None:
        body = chat(message(picture(), picture(png(1001, 1000))))
        error = error_of(await narrow_client.post(CHAT, json=body), 413)
        assert (error["code"], error["param"]) == ("too_large", "messages[0].content[1].image_url.url")
        assert not engine.pages

    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (InvalidRequest("m", param="messages"), 400, None),
            (InvalidRequest("m", code="context_length_exceeded"), 400, "context_length_exceeded"),
            (NotFound("m"), 404, "not_found"),
            (TooLarge("m"), 413, "too_large"),
            (EngineFailure("m"), 500, "engine_error"),
            (Unavailable("m"), 503, "engine_unavailable"),
        ],
    )
    async def test_every_error_of_the_engine(
        self, client: httpx.AsyncClient, engine: FakeEngine, error: ApiError, status: int, code: str | None
    ) -> None:
        engine.script = fails(error)
        got = error_of(await client.post(CHAT, json=chat()), status)
        assert got == {"message": "m", "type": error.type, "param": error.param, "code": code}
        assert got["type"] == ("server_error" if status >= 500 else "invalid_request_error")

    async def test_an_unexpected_error_hides_its_details(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.script = fails(RuntimeError("secret"))
        response = await client.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
        error = error_of(response, 500)
        assert (error["type"], error["code"], error["param"]) == ("server_error", "internal_error", None)
        assert "secret" not in response.text
        assert response.headers["x-request-id"] == "mine"

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(errno.EMFILE, "secret"),
            OSError(errno.ENOSPC, "secret", "/tmp/secret"),
            RuntimeError("can't start new thread"),
        ],
    )
    async def test_trouble_of_the_machine_can_be_tried_again(
        self, client: httpx.AsyncClient, engine: FakeEngine, error: Exception
    ) -> None:
        engine.script = fails(error)
        response = await client.post(CHAT, json=chat())
        assert error_of(response, 503)["code"] == "out_of_resources"
        assert response.headers["retry-after"] == "5"
        assert "secret" not in response.text

    async def test_other_errors_of_the_system_are_unexpected(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.script = fails(OSError(errno.ENOENT, "secret"))
        assert error_of(await client.post(CHAT, json=chat()), 500)["code"] == "internal_error"

    async def test_structured_output_applies_to_a_single_page(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        form = {"response_format": {"type": "json_object"}, "ocr": {"mode": "tiny"}}
        assert (await client.post(CHAT, json=chat(message(picture()), **form))).status_code == 200
        error = error_of(await client.post(CHAT, json=chat(message(picture(), picture()), **form)), 400)
        assert error["param"] == "response_format"
        assert len(engine.pages) == 1


class TestBodyLimit:
    async def test_a_declared_length(self, narrow_client: httpx.AsyncClient) -> None:
        response = await narrow_client.post(CHAT, content=b" " * (MEGABYTE + 1))
        error = error_of(response, 413)
        assert (error["code"], error["type"]) == ("body_too_large", "invalid_request_error")
        assert "1 MB" in error["message"]
        assert response.headers["x-request-id"]

    async def test_a_declared_length_is_enough_to_refuse(self, narrow_client: httpx.AsyncClient) -> None:
        headers = {"content-length": str(MEGABYTE + 1)}
        error_of(await narrow_client.post(CHAT, content=b"{}", headers=headers), 413)

    async def test_an_undeclared_length(self, narrow_client: httpx.AsyncClient) -> None:
        body = pieces(b" " * (MEGABYTE // 2), b" " * (MEGABYTE // 2), b" ")
        assert error_of(await narrow_client.post(CHAT, content=body), 413)["code"] == "body_too_large"

    async def test_a_declared_length_that_is_too_small(self, narrow_client: httpx.AsyncClient) -> None:
        headers = {"content-length": "5"}
        error_of(await narrow_client.post(CHAT, content=b" " * (MEGABYTE + 1), headers=headers), 413)

    @pytest.mark.parametrize(("length", "status"), [("-1", 400), ("x", 400), ("", 400), ("1" * 5000, 413)])
    async def test_a_declared_length_that_is_not_a_length(
        self, narrow_client: httpx.AsyncClient, length: str, status: int
    ) -> None:
        """It is ignored unless it is a number: then the body, which lacks a model, is what is wrong."""
        response = await narrow_client.post(CHAT, content=b"{}", headers={"content-length": length})
        error = error_of(response, status)
        assert (error["param"], error["code"]) == (("model", None) if status == 400 else (None, "body_too_large"))

    async def test_a_body_of_exactly_the_limit(self, narrow_client: httpx.AsyncClient) -> None:
        body = json.dumps(chat()).encode()
        padded = body + b" " * (MEGABYTE - len(body))
        assert (await narrow_client.post(CHAT, content=padded)).status_code == 200
        assert (await narrow_client.post(CHAT, content=pieces(padded))).status_code == 200


class TestHead:
    @pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/openapi.json", "/ui/", "/nothing"])
    async def test_it_is_answered_like_get_without_the_body(self, path: str, client: httpx.AsyncClient) -> None:
        got, head = await client.get(path), await client.head(path)
        assert head.status_code == got.status_code
        assert head.headers["content-type"] == got.headers["content-type"]
        assert "content-length" in head.headers
        assert head.content == b""

    async def test_of_what_cannot_be_read(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        response = await client.head(CHAT)
        assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"")
        assert engine.pages == []

    async def test_a_stream_is_not_read_to_its_end(self) -> None:
        ended = asyncio.Event()

        async def endless(_: Scope, __: Receive, send: Send) -> None:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
            finally:
                ended.set()

        transport = httpx.ASGITransport(HeadAsGet(endless))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            async with asyncio.timeout(30):
                response = await client.head("/")
        assert (response.status_code, response.content) == (200, b"")
        assert ended.is_set()

    async def test_a_failure_is_the_server_s(self) -> None:
        async def failing(_: Scope, __: Receive, ___: Send) -> None:
            raise ValueError("wrong")

        transport = httpx.ASGITransport(HeadAsGet(failing))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            with pytest.raises(ValueError, match="wrong"):
                await client.head("/")


class TestRequestId:
    @pytest.mark.parametrize("given", ["a", "req_123", "x" * 128, "!~", "0-0:0/0"])
    async def test_a_valid_id_is_kept(self, client: httpx.AsyncClient, given: str) -> None:
        for response in (
            await client.get("/health", headers={"x-request-id": given}),
            await client.get("/nothing", headers={"x-request-id": given}),
            await client.post(CHAT, json=chat(stream=True), headers={"x-request-id": given}),
        ):
            assert response.headers.get_list("x-request-id") == [given]

    @pytest.mark.parametrize(
        "given", [b"", b"x" * 129, b"a b", b"a\tb", b"a\r\nset-cookie: b", b"a\x00", b"\xe9", b"a\n"]
    )
    async def test_an_invalid_id_is_replaced(self, client: httpx.AsyncClient, given: bytes) -> None:
        response = await client.get("/health", headers=[(b"x-request-id", given)])
        assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])
        assert "set-cookie" not in response.headers

    async def test_generated_ids_are_unique(self, client: httpx.AsyncClient) -> None:
        ids = {(await client.get("/health")).headers["x-request-id"] for _ in range(5)}
        assert len(ids) == 5


class TestAvailability:
    async def test_health(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        response = await client.get("/health")
        assert (response.status_code, response.json()["status"], response.json()["reason"]) == (200, "ok", None)
        engine.reason = "The model is being loaded."
        response = await client.get("/health")
        assert response.status_code == 503
        expected = {"status": "unavailable", "reason": engine.reason, "model": "deepseek-ocr", "version": __version__}
        assert response.json() == expected

    @pytest.mark.parametrize("stream", [True, False])
    async def test_nothing_is_decoded_while_the_engine_is_unavailable(
        self, client: httpx.AsyncClient, engine: FakeEngine, stream: bool
    ) -> None:
        engine.reason = "The model is being loaded."
        broken = chat(message(picture("data:image/png;base64,AAAA")), stream=stream)
        response = await client.post(CHAT, json=broken)
        error = error_of(response, 503)
        assert (error["message"], error["code"]) == (engine.reason, "engine_unavailable")
        assert response.headers["retry-after"] == "3"
        assert not engine.pages

    async def test_invalid_requests_are_refused_while_the_engine_is_unavailable(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.reason = "The model is being loaded."
        error_of(await client.post(CHAT, json=chat(model="gpt-4o")), 404)
        error_of(await client.post(CHAT, json=chat(max_tokens=0)), 400)

    @pytest.mark.parametrize("reason", [None, "The model is being loaded."])
    @pytest.mark.parametrize(
        ("path", "body", "field", "param"),
        [
            (CHAT, chat(logit_bias={"word": 1.0}), "logit_bias", "logit_bias"),
            (CHAT, chat(response_format={"type": "json_object"}), "json_schema", "response_format"),
            (CHAT, chat(), "", None),
            ("/v1/ocr", {"document": {"image_url": png()}}, "max_tokens", "max_tokens"),
        ],
    )
    async def test_decoding_options_are_checked_by_the_engine(
        self,
        client: httpx.AsyncClient,
        engine: FakeEngine,
        path: str,
        body: dict[str, Any],
        field: str,
        param: str | None,
        reason: str | None,
    ) -> None:
        engine.reason, engine.refusal = reason, DecodingError("This is not valid.", field=field)
        error = error_of(await client.post(path, json=body), 400)
        assert (error["message"], error["param"]) == ("This is not valid.", param)
        assert not engine.pages

    @pytest.mark.parametrize("path", ["/", "/v1/models", "/docs", "/openapi.json", "/metrics"])
    async def test_other_routes_work_while_the_engine_is_unavailable(
        self, client: httpx.AsyncClient, engine: FakeEngine, path: str
    ) -> None:
        engine.reason = "The model is being loaded."
        assert (await client.get(path)).status_code == 200


class TestLifespan:
    async def test_it_starts_and_closes_the_engine(self, app: FastAPI, engine: FakeEngine) -> None:
        assert (engine.starts, engine.closes) == (0, 0)
        async with app.router.lifespan_context(app):
            assert (engine.starts, engine.closes) == (1, 0)
        assert (engine.starts, engine.closes) == (1, 1)

    async def test_it_closes_the_engine_after_a_failure(self, app: FastAPI, engine: FakeEngine) -> None:
        with pytest.raises(ZeroDivisionError):
            async with app.router.lifespan_context(app):
                raise ZeroDivisionError
        assert engine.closes == 1

    def test_two_applications_share_no_state(self, settings: Settings) -> None:
        first, second = (create_app(Runtime.build(settings, FakeEngine())) for _ in range(2))
        assert first.state.runtime.intake is not second.state.runtime.intake
        assert first.openapi() == second.openapi()
        assert first.openapi() is not second.openapi()


class TestService:
    async def test_api_information(self, client: httpx.AsyncClient) -> None:
        information = (await client.get("/")).json()
        assert information["model"] == "deepseek-ocr"
        assert information["modes"] == list(MODES)
        assert information["prompts"] == list(DEEPSEEK_OCR.prompts.values())
        assert list(information["formats"]) == ["raw", "markdown", "blocks", "overlay"]
        assert str(ROOT) not in json.dumps(information)

    async def test_every_listed_endpoint_exists(self, client: httpx.AsyncClient, app: FastAPI) -> None:
        for endpoint in (await client.get("/")).json()["endpoints"].values():
            method, path = endpoint.split(" ")
            response = await client.request(method, path)
            assert response.status_code == (200 if method == "GET" else 400), endpoint

    async def test_models(self, client: httpx.AsyncClient) -> None:
        listing = (await client.get("/v1/models")).json()
        assert listing["object"] == "list"
        assert [model["id"] for model in listing["data"]] == [
            "deepseek-ocr",
            *(f"deepseek-ocr:{suffix}" for suffix in (*MODES, "raw", "markdown", "blocks")),
        ]
        for model in listing["data"]:
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model
            assert (await client.post(CHAT, json=chat(message(picture()), model=model["id"]))).json()["model"] == model[
                "id"
            ]

    async def test_metrics(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain")

    async def test_no_local_path_is_shown(self, settings: Settings, tmp_path: Any) -> None:
        folder = tmp_path / "my-checkpoint"
        folder.mkdir()
        app = create_app(Runtime.build(Settings(**{**settings.model_dump(), "MODEL_PATH": str(folder)}), FakeEngine()))
        async with client_of(app) as client:
            for path in ("/", "/v1/models"):
                answer = (await client.get(path)).text
                assert "my-checkpoint" in answer
                assert str(tmp_path) not in answer

    async def test_the_fingerprint_depends_on_the_model(self, settings: Settings, tmp_path: Any) -> None:
        other = Settings(**{**settings.model_dump(), "MODEL_PATH": str(tmp_path)})
        fingerprints = [
            create_app(Runtime.build(each, FakeEngine())).state.runtime.fingerprint
            for each in (settings, settings, other)
        ]
        assert fingerprints[0] == fingerprints[1] != fingerprints[2]


class TestReading:
    async def test_what_reaches_the_engine(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        body = chat(message(picture(png(40, 20)), picture(), "Free OCR."), ocr={"mode": "tiny"}, max_tokens=9)
        response = await client.post(CHAT, json=body)
        assert response.status_code == 200
        assert [page.prompt for page in engine.pages] == ["Free OCR."] * 2
        assert [page.image.num_tokens for page in engine.pages] == [73, 73]
        assert [page.decoding.max_tokens for page in engine.pages] == [9, 9]
        assert response.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 146
        assert response.json()["choices"][0]["message"]["content"] == "Hello\n\n<--- Page Split --->\n\nHello"

    async def test_greedy_choices_are_generated_once(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        choices = (await client.post(CHAT, json=chat(n=3))).json()["choices"]
        assert [choice["message"]["content"] for choice in choices] == ["Hello"] * 3
        assert len(engine.pages) == 1

    async def test_sampled_choices_are_generated_by_the_engine(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.script = says("a", "b")
        choices = (await client.post(CHAT, json=chat(n=3, temperature=1.0))).json()["choices"]
        assert [choice["message"]["content"] for choice in choices] == ["ab"] * 3


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


class TestOpenapi:
    @pytest.fixture
    async def schema(self, client: httpx.AsyncClient) -> dict[str, Any]:
        schema: dict[str, Any] = (await client.get("/openapi.json")).json()
        return schema

    def test_every_reference_resolves(self, schema: dict[str, Any]) -> None:
        found = set(references(schema))
        assert {
            f"#/components/schemas/{name}" for name in ("ChatCompletionRequest", "OcrRequest", "ErrorResponse")
        } <= found
        for reference in found:
            assert reference.startswith("#/")
            target: Any = schema
            for key in reference.removeprefix("#/").split("/"):
                target = target[key]

    def test_every_schema_is_valid(self, schema: dict[str, Any]) -> None:
        assert schema["openapi"].startswith("3.1")
        for definition in schema["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(definition)

    def test_streams_are_documented(self, schema: dict[str, Any]) -> None:
        success = schema["paths"][CHAT]["post"]["responses"]["200"]["content"]
        assert success["application/json"]["schema"]["$ref"].endswith("/ChatCompletion")
        assert success["text/event-stream"]["schema"]["$ref"].endswith("/ChatCompletionChunk")
        chunk = schema["components"]["schemas"]["ChatCompletionChunk"]
        usual = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
        assert set(chunk["properties"]) == usual | {"prompt_token_ids"}

    async def test_answers_match_their_schema(self, schema: dict[str, Any], client: httpx.AsyncClient) -> None:
        def check(name: str, value: Any) -> None:
            jsonschema.validate(value, {**schema, "$ref": f"#/components/schemas/{name}"})

        check("ChatCompletion", (await client.post(CHAT, json=chat(n=2))).json())
        check("ModelList", (await client.get("/v1/models")).json())
        check("ApiInformation", (await client.get("/")).json())
        check("Health", (await client.get("/health")).json())
        check("ErrorResponse", (await client.post(CHAT, json={})).json())
        check("ChatCompletionRequest", chat(n=2, ocr={"mode": "tiny"}))

    def test_all_errors_of_reading_are_documented(self, schema: dict[str, Any]) -> None:
        responses = schema["paths"][CHAT]["post"]["responses"]
        for kind in ApiError.__subclasses__():
            documented = responses[str(kind.status)]["content"]["application/json"]["schema"]["$ref"]
            assert documented.endswith("/ErrorResponse")

    def test_errors_of_other_routes_are_documented(self, schema: dict[str, Any]) -> None:
        paths = schema["paths"]
        assert "404" in paths["/v1/models/{model_id}"]["get"]["responses"]
        assert "503" in paths["/health"]["get"]["responses"]

    def test_status_422_is_not_documented(self, schema: dict[str, Any]) -> None:
        """Validation errors have status 400, as in OpenAI's API, instead of FastAPI's 422."""
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                assert "422" not in operation["responses"], path

    def test_the_examples_are_valid_requests(self) -> None:
        extra = ChatCompletionRequest.model_config["json_schema_extra"]
        assert isinstance(extra, dict)
        for example in extra["examples"]:  # type: ignore[union-attr]
            ChatCompletionRequest.model_validate(example)

    async def test_the_documentation_loads_nothing_from_other_hosts(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).text
        assert "https://" not in page
        files = re.findall(r'(?:src|href)="(/[^"]+)"', page)
        assert {file.rpartition(".")[2] for file in files} == {"css", "png", "js"}
        for file in files:
            assert (await client.get(file)).status_code == 200

    def test_every_option_of_this_server_is_documented(self, schema: dict[str, Any]) -> None:
        options = schema["components"]["schemas"]["OcrOptions"]["properties"]
        assert all(option.get("description") for option in options.values())


async def test_the_server_accepts_its_own_examples(app: FastAPI, client: httpx.AsyncClient) -> None:
    schema = app.openapi()
    tried = 0
    for path, operations in schema["paths"].items():
        body = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
        for example in schema["components"]["schemas"].get(name, {}).get("examples", []):
            tried += 1
            response = await client.post(path, json=example)
            assert response.status_code == 200, response.text
    assert tried >= 2
