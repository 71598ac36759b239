"""The form of an upload: the file, its purpose and its lifetime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.datastructures import FormData, UploadFile

from ocr_server.dialects.files.wire import BATCH, PURPOSES
from ocr_server.dialects.validation import MAX_NAME_CHARS
from ocr_server.dialects.wire import LEAST_SECONDS, MOST_SECONDS
from ocr_server.errors import InvalidRequest, TooLarge

MOST_NAME_CHARS = 255
HOUR = 3600
ANCHOR, SECONDS, EXPIRY = "expires_after[anchor]", "expires_after[seconds]", "expiry"
FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES), "default": "user_data"},
        ANCHOR: {"type": "string", "enum": ["created_at"]},
        SECONDS: {"type": "integer", "minimum": LEAST_SECONDS, "maximum": MOST_SECONDS},
        EXPIRY: {
            "type": "integer",
            "minimum": LEAST_SECONDS // HOUR,
            "maximum": MOST_SECONDS // HOUR,
            "description": "Mistral: lifetime in hours.",
        },
    },
}
MAX_FIELDS = 20
_KNOWN = frozenset({"file", "purpose", ANCHOR, SECONDS, EXPIRY})


class Upload(NamedTuple):
    """A valid upload."""

    file: UploadFile
    size: int
    """Bytes."""
    filename: str
    purpose: str
    seconds: int | None
    """Lifetime; None for the default."""
    ignored: tuple[str, ...]
    """Names of fields that have no effect, such as `visibility`."""


def upload_of(form: FormData, *, max_bytes: Mapping[str, int]) -> Upload:
    """Check a form.

    Args:
        max_bytes: Purpose → maximum size of the file.

    Raises:
        InvalidRequest: A field is missing or not valid.
        TooLarge: The file is larger than the limit.
    """
    file = form.get("file")
    fields = {name: value for name, value in form.items() if name != "file" and value != ""}
    if not isinstance(file, UploadFile):
        raise InvalidRequest("The form has no field file.", param="file")
    purpose, seconds = _purpose(fields), _seconds(fields)
    size = file.size or 0
    if size == 0:
        raise InvalidRequest("The file is empty (0 bytes).", param="file")
    if size > max_bytes[purpose]:
        raise TooLarge(f"The file has {size:,} bytes; the limit is {max_bytes[purpose]:,} bytes.", param="file")
    ignored = tuple(name[:MAX_NAME_CHARS] for name in fields if name not in _KNOWN)
    return Upload(file, size, _filename(file.filename), purpose, seconds, ignored)


def _purpose(fields: Mapping[str, Any]) -> str:
    purpose = fields.get("purpose", "user_data")
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"purpose must be one of {', '.join(PURPOSES)}. {BATCH} is for the input of a batch, the others are for "
            "pictures and documents.",
            param="purpose",
        )
    return str(purpose)


def _seconds(fields: Mapping[str, Any]) -> int | None:
    """Return the lifetime as OpenAI's or Mistral's clients give it; None if they do not."""
    if EXPIRY in fields:
        return HOUR * _integer(fields, EXPIRY, LEAST_SECONDS // HOUR, MOST_SECONDS // HOUR)
    if ANCHOR not in fields and SECONDS not in fields:
        return None
    if fields.get(ANCHOR) != "created_at":
        raise InvalidRequest(f"{ANCHOR} must be created_at.", param=ANCHOR)
    return _integer(fields, SECONDS, LEAST_SECONDS, MOST_SECONDS)


def _integer(fields: Mapping[str, Any], name: str, least: int, most: int) -> int:
    text = str(fields.get(name, ""))
    if not (text.isascii() and text.isdigit() and least <= int(text[:12]) <= most):
        raise InvalidRequest(f"{name} must be an integer from {least} to {most}.", param=name)
    return int(text)


def _filename(name: str | None) -> str:
    """Return the file name without folders and control characters."""
    shown = "".join(sign for sign in (name or "").replace("\\", "/").rsplit("/", 1)[-1] if sign.isprintable())
    return shown[:MOST_NAME_CHARS] or "file"
