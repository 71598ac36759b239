"""Decodes `data:` URIs (RFC 2397), which carry a file inside the request."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable
from concurrent.futures import Executor

import pybase64

from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits

_WHITESPACE = b" \t\r\n"
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_SMALL_CHARS = 65_536
"""Length up to which text is decoded in the event loop."""
_CHUNK_BYTES = 1_000_000
_LONGEST_HEAD = 1024  # characters before the comma; bounds the search in a long string that has none


async def decoded(
    decode: Callable[[str, IntakeLimits], bytes], text: str, limits: IntakeLimits, threads: Executor | None
) -> bytes:
    """Return `decode(text, limits)`, where `decode` is one of the functions below. Long text is decoded in a thread."""
    if len(text) <= _SMALL_CHARS:
        return decode(text, limits)
    return await asyncio.get_running_loop().run_in_executor(threads, decode, text, limits)


def decode_data_uri(uri: str, limits: IntakeLimits) -> bytes:
    """Return the bytes of a URI of the form `data:[media type][;parameters];base64,DATA`.

    Accepts what encoders do differently as long as it is unambiguous: line breaks and blanks in DATA,
    percent-encoding, missing padding, the URL-safe alphabet (`-` and `_`), and any letter case before the comma. The
    media type is ignored: the type of the file is determined from its content.

    Raises:
        SourceError: The URI does not have this form, its base64 is invalid, or it contains no data.
        SourceTooLarge: It contains more than `limits.max_image_bytes` bytes. Checked before decoding.
    """
    comma = uri.find(",", 0, _LONGEST_HEAD)
    words = [word.strip().lower() for word in uri[: max(comma, 0)].split(";")]
    if comma < 0 or not words[0].startswith("data:") or words[-1] != "base64":
        raise SourceError(
            "Not a valid data URI. Use the form data:image/png;base64,DATA; only base64 data is supported.",
            code="invalid_image_url",
        )
    return decode_base64(uri[comma + 1 :], limits)


def decode_base64(payload: str, limits: IntakeLimits) -> bytes:
    """Return the bytes of a base64 text, written as in the DATA of a data URI.

    Raises:
        SourceError: It is not valid base64, or empty.
        SourceTooLarge: It contains more than `limits.max_image_bytes` bytes. Checked before decoding.
    """
    # What percent-encoding, white space and padding can stand for at most is known without undoing them.
    most_left_out = 3 * payload.count("%") + sum(payload.count(sign) for sign in " \t\r\n=")
    _check_size(len(payload) - most_left_out, limits, exact="%" not in payload)
    text = _plain_base64(payload)
    if not text:
        raise SourceError("The file is empty (0 bytes).", code="empty_image_file")
    _check_size(len(text), limits, exact=True)
    try:
        return pybase64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise _broken_base64() from error


def _check_size(characters: int, limits: IntakeLimits, *, exact: bool) -> None:
    """Raise SourceTooLarge if so many characters of base64 are more than `limits.max_image_bytes` bytes.

    Args:
        exact: Whether there are no more characters than that.
    """
    size = characters * 3 // 4
    if size > limits.max_image_bytes:
        least = "" if exact else "at least "
        raise SourceTooLarge(f"The file has {least}{size:,} bytes; the limit is {limits.max_image_bytes:,} bytes.")


def _plain_base64(payload: str) -> bytes:
    """Return the payload in the standard alphabet, without percent-encoding, whitespace and padding."""
    try:
        text = payload.encode("ascii")
    except UnicodeEncodeError as error:
        raise _broken_base64() from error
    text = _standard(text)
    if b"%" in text:
        text = _standard(_percent_decoded(text))
    return text.rstrip(b"=")


def _standard(text: bytes) -> bytes:
    """Return the text in the standard alphabet, without whitespace."""
    # Checking first is many times faster than translating 20 MB without need.
    if any(byte in text for byte in (b"\n", b"-", b"_", b" ", b"\r", b"\t")):
        return text.translate(_URL_SAFE_TO_STANDARD, delete=_WHITESPACE)
    return text


def _percent_decoded(text: bytes) -> bytes:
    """Undo percent-encoding. Raises SourceError if a `%` is not followed by two hexadecimal digits.

    `unquote_to_bytes` of the standard library takes hundreds of bytes and nanoseconds for each `%`. Quoted-printable
    differs only in the sign, and is decoded in C. This is done piece by piece so that other threads can run.
    """
    pieces, start = [], 0
    while start < len(text):
        end = start + _CHUNK_BYTES
        for _ in range(2):  # not between a `%` and its digits
            end += b"%" in text[end - 2 : end]
        piece, start = text[start:end], end
        pieces.append(binascii.a2b_qp(piece.replace(b"=", b"=3D").replace(b"%", b"=")))
        if len(pieces[-1]) != len(piece) - 2 * piece.count(b"%"):
            raise _broken_base64()
    return b"".join(pieces)


def _broken_base64() -> SourceError:
    return SourceError("The base64 data is invalid.", code="invalid_base64_image")
