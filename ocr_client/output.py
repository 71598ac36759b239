"""Standard output of a run: JSON lines, the markdown of a document, or nothing."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from ocr_client.progress import replace_control_characters
from ocr_client.results import PAGE_SEPARATOR


class Output(Protocol):
    """Receives pages and documents as they are finished. The methods raise BrokenPipeError if the reader has gone."""

    def write_page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        """Write a page. `from_before` says whether it comes from an earlier run."""

    def write_document(self, source: str, **facts: Any) -> None:
        """Write the end of a document, after all of its pages."""


class NoOutput:
    """Writes nothing."""

    def write_page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        pass

    def write_document(self, source: str, **facts: Any) -> None:
        pass


class JsonLinesOutput:
    """Writes one JSON object per line.

    It is `{"type": "page", …}` for each page, and `{"type": "document", …}` after the last page of a document.
    """

    def write_page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        _print({"type": "page", "source": source, "from_before": from_before, **page})

    def write_document(self, source: str, **facts: Any) -> None:
        _print({"type": "document", "source": source, **facts})


class MarkdownOutput:
    """Writes the markdown of the pages of a single document, with separators. Pages that failed are left out."""

    def __init__(self) -> None:
        self._separator = ""

    def write_page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        if page.get("finish_reason") == "error":
            return
        markdown = str(page.get("markdown") or "")
        _write(self._separator + (replace_control_characters(markdown) if sys.stdout.isatty() else markdown))
        self._separator = PAGE_SEPARATOR

    def write_document(self, source: str, **facts: Any) -> None:
        if self._separator:
            _write("\n")


def _print(value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False)
    for end in ("\u2028", "\u2029", "\x85"):  # JSON allows them in strings, but many readers end a line there
        text = text.replace(end, f"\\u{ord(end):04x}")
    _write(text + "\n")


def _write(text: str) -> None:
    """Write `text` as UTF-8, regardless of the locale, because the next program in a pipeline expects it."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
