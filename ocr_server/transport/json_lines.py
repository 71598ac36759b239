"""JSON texts that are one line for every reader."""

from __future__ import annotations

_LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}
"""Line ends of Unicode that JSON allows in strings → their escapes."""


def one_line(text: str) -> str:
    """Return a JSON text whose strings contain no line ends of Unicode.

    JSON allows them, but Python's `str.splitlines` and readers of streams that are built on it end a line there.
    """
    if not text.isascii():
        for end, escape in _LINE_ENDS.items():
            text = text.replace(end, escape)
    return text
