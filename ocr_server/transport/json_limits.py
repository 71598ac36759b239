"""Limits on a JSON text that are checked before it is parsed: a parser's time and memory grow with what is in it."""

from __future__ import annotations

from ocr_server.errors import InvalidRequest

MAX_VALUES = 50_000
"""Maximum number of values of a JSON text: lists, objects and what they contain."""
MAX_ESCAPES = 3_000_000
"""Maximum number of escapes such as `\\n` in its strings: base64 of 50 MB in lines, with slashes escaped, has fewer."""
MAX_NON_ASCII_BYTES = 10_000_000
"""Maximum number of bytes of other characters than ASCII, in UTF-8. They are slow to decode; base64 has none."""
CHUNK_BYTES = 1_000_000
"""How much of the text is searched at a time, so that other threads can run in between."""
_ASCII = bytes(range(128))


def check_json(text: bytes) -> None:
    """Raise InvalidRequest if a JSON text has more than `MAX_VALUES` values, `MAX_ESCAPES` escapes or
    `MAX_NON_ASCII_BYTES`.

    Takes little memory, and time in proportion to the text up to the limit. The text need not be valid: a parser reads
    it up to its first error, and up to there the counts are exact.
    """
    if _values_exceed(text, MAX_VALUES):
        raise InvalidRequest(
            f"The JSON has more than {MAX_VALUES:,} values; send fewer elements and fields.", code="json_too_large"
        )
    escapes = non_ascii = 0
    for at in range(0, len(text), CHUNK_BYTES):
        chunk = text[at : at + CHUNK_BYTES]
        escapes += chunk.count(b"\\") - chunk.count(b"\\\\")
        if escapes > MAX_ESCAPES:
            raise InvalidRequest(
                f"The JSON has more than {MAX_ESCAPES:,} escapes in its strings; send characters as they are.",
                code="json_too_large",
            )
        if not chunk.isascii():
            non_ascii += len(chunk.translate(None, delete=_ASCII))
        if non_ascii > MAX_NON_ASCII_BYTES:
            raise InvalidRequest(
                f"The JSON has more than {MAX_NON_ASCII_BYTES:,} bytes of characters other than ASCII; send less text.",
                code="json_too_large",
            )


def _values_exceed(text: bytes, most: int) -> bool:
    """Return whether there are more than `most` values.

    Each value but the first follows a comma or the beginning of a list or object, outside of strings. Strings are left
    out only if the text has more of these signs than that, since this takes longer.
    """
    if not _signs_exceed(text, most):
        return False
    most_quotes = 4 * most  # each value can be a string that has a name
    at = signs = quotes = 0
    while at < len(text):
        chunk = text[at : at + CHUNK_BYTES]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:  # the last escape continues in the next chunk
            chunk = text[at : at + CHUNK_BYTES + 1]
        at += len(chunk)
        pieces = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', most_quotes + 1)
        outside = b"".join(pieces[quotes % 2 :: 2])
        signs += _signs(outside, 0, len(outside))
        quotes += len(pieces) - 1
        if signs >= most or quotes > most_quotes:
            return True
    return False


def _signs_exceed(text: bytes, most: int) -> bool:
    signs = 0
    for at in range(0, len(text), CHUNK_BYTES):
        signs += _signs(text, at, at + CHUNK_BYTES)
        if signs >= most:
            return True
    return False


def _signs(text: bytes, start: int, end: int) -> int:
    return text.count(b",", start, end) + text.count(b"[", start, end) + text.count(b"{", start, end)
