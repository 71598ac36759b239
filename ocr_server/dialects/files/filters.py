"""Which files a list contains, as OpenAI's and Mistral's clients say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from sqlalchemy import ColumnElement, false, or_

from ocr_server.batches.database import files
from ocr_server.dialects.files.wire import BATCH, BATCH_OUTPUT, ERROR_ID
from ocr_server.errors import InvalidRequest

NO_NUL = r"^[^\x00]*$"
Text = Annotated[str | None, Query(max_length=255, pattern=NO_NUL)]
Texts = Annotated[list[str] | None, Query(max_length=20)]

_WRITTEN = files.c.purpose == BATCH_OUTPUT
_SOURCES: dict[str, ColumnElement[bool]] = {"upload": ~_WRITTEN, "mistral": _WRITTEN}
_SAMPLE_TYPES: dict[str, ColumnElement[bool]] = {
    "batch_request": files.c.purpose == BATCH,
    "batch_result": _WRITTEN & ~files.c.id.startswith(ERROR_ID),
    "batch_error": _WRITTEN & files.c.id.startswith(ERROR_ID),
    "ocr_input": files.c.purpose.not_in((BATCH, BATCH_OUTPUT)),
}


def filters(
    purpose: Text = None,
    sample_type: Texts = None,
    source: Texts = None,
    search: Text = None,
    mimetypes: Texts = None,
) -> list[ColumnElement[bool]]:
    """Return the conditions of a list. Use it as a dependency.

    Args:
        purpose: Purpose of the files.
        sample_type: Mistral: any of these sample types.
        source: Mistral: any of these sources.
        search: Mistral: a part of the name.
        mimetypes: Refused: media types are not stored.

    Raises:
        InvalidRequest: `mimetypes` is given.
    """
    if mimetypes:
        raise InvalidRequest(
            "Files cannot be selected by mimetypes; use purpose or search.",
            param="mimetypes",
            code="unsupported_parameter",
        )
    found = []
    if purpose:
        found.append(files.c.purpose == purpose)
    if sample_type:
        found.append(_any_of(_SAMPLE_TYPES, sample_type))
    if source:
        found.append(_any_of(_SOURCES, source))
    if search:
        found.append(files.c.filename.contains(search, autoescape=True))
    return found


def _any_of(known: dict[str, ColumnElement[bool]], names: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that one of `names` holds. No file has a name that is not known."""
    return or_(false(), *(known[name] for name in names if name in known))
