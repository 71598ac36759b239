"""What goes to standard output: JSON lines, a document's markdown, or nothing."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from ocr_client.progress import plain
from ocr_client.store import PAGE_SEPARATOR


class Lines(Protocol):
    """Told of pages and documents as they are done. Raises BrokenPipeError when nobody reads any more."""

    def page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None: ...

    def document(self, source: str, **facts: Any) -> None: ...


class Silent:
    def page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        pass

    def document(self, source: str, **facts: Any) -> None:
        pass


class JsonLines:
    """One object a line: `{"type": "page", …}` for each page, `{"type": "document", …}` at a document's end."""

    def page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        _print({"type": "page", "source": source, "from_before": from_before, **page})

    def document(self, source: str, **facts: Any) -> None:
        _print({"type": "document", "source": source, **facts})


class Markdown:
    """The pages of one document."""

    def __init__(self) -> None:
        self._separator = ""

    def page(self, source: str, page: dict[str, Any], *, from_before: bool) -> None:
        if page.get("finish_reason") == "error":
            return
        markdown = str(page.get("markdown") or "")
        _write(self._separator + (plain(markdown) if sys.stdout.isatty() else markdown))
        self._separator = PAGE_SEPARATOR

    def document(self, source: str, **facts: Any) -> None:
        if self._separator:
            _write("\n")


def _print(fact: dict[str, Any]) -> None:
    _write(json.dumps(fact, ensure_ascii=False) + "\n")


def _write(text: str) -> None:
    """UTF-8 whatever the locale says: what follows in a pipe expects it."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
