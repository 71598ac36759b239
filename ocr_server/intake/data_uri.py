"""Pictures that travel inside the request, as `data:` URIs (RFC 2397)."""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes

import pybase64

from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits

_WHITESPACE = b" \t\r\n"
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_LONGEST_HEAD = 1024  # characters before the comma; keeps the search short in a long string without one


def decode_data_uri(uri: str, limits: IntakeLimits) -> bytes:
    """The bytes that a URI `data:[media type][;parameters];base64,DATA` carries.

    Lenient where encoders differ and nothing becomes ambiguous: line breaks and blanks in DATA,
    percent-encoding, missing padding and the URL-safe alphabet (`-` and `_`) are all accepted, and so is any
    letter case before the comma. The media type isn't looked at: what the bytes are is decided by the bytes.

    Raises SourceError if the URI isn't of that form, its base64 is broken or it carries nothing; SourceTooLarge,
    before decoding, if it carries more than `limits.max_image_bytes` bytes.
    """
    comma = uri.find(",", 0, _LONGEST_HEAD)
    words = [word.strip().lower() for word in uri[:comma].split(";")]
    if comma < 0 or not words[0].startswith("data:") or words[-1] != "base64":
        raise SourceError(
            "This data URI isn't in the form data:image/png;base64,DATA; only base64 data is supported.",
            code="invalid_image_url",
        )
    text = _plain_base64(uri[comma + 1 :])
    if not text:
        raise SourceError("The data URI carries no data.", code="empty_image_file")
    size = len(text) * 3 // 4
    if size > limits.max_image_bytes:
        raise SourceTooLarge(f"The picture has {size:,} bytes; the limit is {limits.max_image_bytes:,} bytes.")
    try:
        return pybase64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise _broken_base64() from error


def _plain_base64(payload: str) -> bytes:
    """The payload in the standard alphabet, without percent-encoding, whitespace and padding."""
    try:
        text = payload.encode("ascii")
    except UnicodeEncodeError as error:
        raise _broken_base64() from error
    if b"%" in text:
        text = unquote_to_bytes(text)
    # Asking first is many times faster than translating 20 MB for nothing.
    if any(byte in text for byte in (b"\n", b"-", b"_", b" ", b"\r", b"\t")):
        text = text.translate(_URL_SAFE_TO_STANDARD, delete=_WHITESPACE)
    return text.rstrip(b"=")


def _broken_base64() -> SourceError:
    return SourceError("The base64 of the data URI is broken.", code="invalid_base64_image")
