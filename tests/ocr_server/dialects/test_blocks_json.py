"""`BlocksJson`: which schemas a client may ask for blocks with, and what is kept for each."""

from __future__ import annotations

from typing import Any

import pytest

from ocr_server.dialects.blocks_json import BlocksJson
from ocr_server.errors import InvalidRequest

PARAM = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"colour": {}}}, "colour"),
        ({"properties": {"pages": {"items": {"properties": {"smell": {}}}}}}, "pages.smell"),
    ],
)
def test_a_schema_that_asks_for_an_unknown_field(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=repr(named)) as caught:
        BlocksJson(schema, param=PARAM)
    assert (caught.value.param, caught.value.code) == (PARAM, "invalid_schema")


@pytest.mark.parametrize("properties", [5, ["pages"], {"pages": {"items": {"properties": "page"}}}])
def test_properties_that_are_not_an_object(properties: Any) -> None:
    with pytest.raises(InvalidRequest, match="not an object") as caught:
        BlocksJson({"properties": properties}, param=PARAM)
    assert (caught.value.param, caught.value.code) == (PARAM, "invalid_schema")


def test_a_circular_schema() -> None:
    with pytest.raises(InvalidRequest, match=r"pages\.pages"):
        BlocksJson({"properties": {"pages": {"$ref": "#"}}}, param=PARAM)
    circle = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert BlocksJson(circle, param=PARAM).keep({"pages": []}) == {"pages": []}


def test_without_a_schema_everything_is_kept() -> None:
    assert BlocksJson(None, param=PARAM).keep({"pages": [{"page": 1}]}) == {"pages": [{"page": 1}]}


def test_only_the_fields_of_the_schema_are_kept() -> None:
    schema = {"properties": {"pages": {"items": {"properties": {"page": {}}}}}}
    assert BlocksJson(schema, param=PARAM).keep({"pages": [{"page": 1, "width": 5}]}) == {"pages": [{"page": 1}]}
