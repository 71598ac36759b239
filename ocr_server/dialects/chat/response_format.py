"""The wire type of `response_format`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ocr_server.dialects.json_schema import SmallSchema
from ocr_server.dialects.wire import Wire


class JsonSchema(Wire):
    name: str
    description: str | None = None
    schema_: Annotated[SmallSchema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError(
                "json_schema", "json_schema is required with type json_schema and not allowed with other types"
            )
        return self
