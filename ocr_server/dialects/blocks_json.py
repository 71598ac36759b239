"""Blocks as the content of the answer: JSON that follows the schema in the request.

The model does not generate this JSON; the server writes it. The fields that the client's schema names are kept, and all
others are left out.
"""

from __future__ import annotations

from typing import Any

from ocr_server.dialects.page_report import OcrExtension
from ocr_server.errors import InvalidRequest

Schema = dict[str, Any]

LONGEST = 16
"""Longest chain of references in a client's schema, a longer one is taken to be circular; and how many names of a
reference and members of an `anyOf` are looked at. The schema is gone through for each value of an answer."""


class BlocksJson:
    """The parts of the page reports that a client wants."""

    def __init__(self, schema: Schema | None, *, param: str) -> None:
        """Args:
        schema: The client's schema; None for all fields.
        param: Name of the request parameter that gave the schema.

        Raises:
            InvalidRequest: The schema has a property that the page reports do not have.
        """
        self._wanted = schema
        if schema is not None:
            ours = OcrExtension.model_json_schema()
            try:
                _check(schema, schema, ours, ours, "")
            except ValueError as error:
                raise InvalidRequest(f"{error}.", param=param, code="invalid_schema") from error

    def keep(self, value: Any) -> Any:
        """Return the parts of `value`, a JSON value, that the client wants."""
        if self._wanted is None:
            return value
        return _kept(value, self._wanted, self._wanted)


def _check(wanted: Schema, wanted_root: Schema, ours: Schema, our_root: Schema, place: str) -> None:
    wanted, ours = _resolved(wanted, wanted_root), _resolved(ours, our_root)
    properties = wanted.get("properties", {})
    if not isinstance(properties, dict):
        raise ValueError(f"The properties of {place or 'the schema'} are not an object")
    for name, each in properties.items():
        path = f"{place}.{name}" if place else name
        if name not in ours.get("properties", {}):
            raise ValueError(
                f"The schema has the property {path!r}, which does not exist; the properties there are "
                f"{', '.join(ours.get('properties', {})) or 'none'}"
            )
        _check(each, wanted_root, ours["properties"][name], our_root, path)
    if isinstance(wanted.get("items"), dict) and isinstance(ours.get("items"), dict):
        _check(wanted["items"], wanted_root, ours["items"], our_root, place)


def _kept(value: Any, wanted: Schema, root: Schema) -> Any:
    wanted = _resolved(wanted, root)
    if isinstance(value, dict) and "properties" in wanted:
        return {name: _kept(value.get(name), each, root) for name, each in wanted["properties"].items()}
    if isinstance(value, list) and isinstance(wanted.get("items"), dict):
        return [_kept(each, wanted["items"], root) for each in value]
    return value


def _resolved(schema: Any, root: Schema) -> Schema:
    """Return the schema that references and an `anyOf` with null lead to."""
    for _ in range(LONGEST):
        if not isinstance(schema, dict):
            return {}
        if isinstance(reference := schema.get("$ref"), str):
            found: Any = root
            for part in reference.removeprefix("#").split("/", LONGEST):
                found = found.get(part) if part and isinstance(found, dict) else found
            schema = found
        elif isinstance(choices := schema.get("anyOf"), list):
            schema = next((each for each in choices[:LONGEST] if each != {"type": "null"}), {})
        else:
            return schema
    return {}
