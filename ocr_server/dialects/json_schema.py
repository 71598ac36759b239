"""JSON schemas in requests, and the limits of their size."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MAX_SCHEMA_VALUES = 5000
"""Maximum number of members and elements of all objects and lists of a JSON schema: properties, branches, values."""
MAX_SCHEMA_CHARS = 100_000
"""Maximum length of all names and strings in a JSON schema."""
MAX_SCHEMA_LEVELS = 40
"""Maximum nesting of a JSON schema."""


def _small(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema if it is within the limits. Looks at no more values than are allowed."""
    values = chars = 0
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_LEVELS):
        inner: list[Any] = []
        for value in level:
            values += len(value) if isinstance(value, dict | list) else 0
            chars += sum(map(len, value)) if isinstance(value, dict) else len(value) if isinstance(value, str) else 0
            if values > MAX_SCHEMA_VALUES or chars > MAX_SCHEMA_CHARS:
                raise PydanticCustomError(
                    "schema_too_large",
                    "the schema is too large; the limits are {values} values and {chars} characters",
                    {"values": MAX_SCHEMA_VALUES, "chars": MAX_SCHEMA_CHARS},
                )
            inner.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        if not inner:
            return schema
        level = inner
    raise PydanticCustomError(
        "schema_too_deep",
        "the schema is nested too deeply; the limit is {levels} levels",
        {"levels": MAX_SCHEMA_LEVELS},
    )


SmallSchema = Annotated[dict[str, Any], Field(max_length=1000), AfterValidator(_small)]
"""A JSON schema within the limits."""
