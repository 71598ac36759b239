"""Bodies that are nested too deeply are refused quickly and with the name of the parameter."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ocr_server.dialects.json_schema import MAX_SCHEMA_LEVELS
from ocr_server.dialects.validation import MAX_LEVELS
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

    async def test_metadata_is_nested_no_deeper_than_the_body_may_be(self, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, json=chat(metadata=nested(MAX_LEVELS))), 400)
        assert (error["code"], error["param"]) == ("json_too_deep", "metadata")

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
