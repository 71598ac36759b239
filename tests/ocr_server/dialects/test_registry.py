"""The registry: routes, OpenAPI types, `GET /` and the endpoints of batches follow from one list."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from config import Settings
from ocr_server.app import create_app
from ocr_server.dialects.registry import DIALECTS, apis
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import FakeEngine, client_of


@pytest.fixture(params=[False, True], ids=["without batches", "with batches"])
def some_settings(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    return Settings(
        **{
            **settings.model_dump(),
            "BATCHES": request.param,
            "DATABASE_URL": f"sqlite:///{tmp_path}/batches.db",
            "STORAGE_URL": str(tmp_path),
        }
    )


@pytest.fixture
def app(some_settings: Settings) -> FastAPI:
    return create_app(Runtime.build(some_settings, FakeEngine()))


def test_dialects_are_found_by_their_path() -> None:
    assert list(DIALECTS) == ["/v1/chat/completions", "/v1/responses", "/v1/ocr"]
    assert all(dialect.path == path for path, dialect in DIALECTS.items())


def test_every_route_is_served(app: FastAPI, some_settings: Settings) -> None:
    expected = {
        (route.path_format, method)
        for api in apis(some_settings)
        for route in api.router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    served = {(path, method.upper()) for path, operations in app.openapi()["paths"].items() for method in operations}
    assert served == expected
    assert {(path, "POST") for path in DIALECTS} < expected


def test_every_wire_type_is_documented(app: FastAPI, some_settings: Settings) -> None:
    names = {model.__name__ for api in apis(some_settings) for model in api.wire_types}
    assert {"ChatCompletionRequest", "ChatCompletionChunk", "OcrRequest", "OcrPageEvent"} <= names
    assert ("BatchRequest" in names) == some_settings.BATCHES
    assert names <= set(app.openapi()["components"]["schemas"])


async def test_the_information_lists_every_endpoint(app: FastAPI, some_settings: Settings) -> None:
    async with client_of(app) as client:
        listed = (await client.get("/")).json()["endpoints"]
    expected = {name: path for api in apis(some_settings) for name, path in api.endpoints.items()}
    assert listed == expected
    assert {f"POST {path}" for path in DIALECTS} < set(listed.values())
    assert ("batches" in listed, "files" in listed) == (some_settings.BATCHES, some_settings.BATCHES)


def test_a_batch_may_have_requests_of_every_dialect(app: FastAPI, some_settings: Settings) -> None:
    if some_settings.BATCHES:
        assert dict(app.state.batches.endpoints) == dict(DIALECTS)
    else:
        assert app.state.batches is None
