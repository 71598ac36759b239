"""Results on disk: a folder for each document, in which every finished page is saved as a file.

    report.pdf/
        document.md             the markdown of all pages, written when they are all done
        figures/                the figures that document.md links to
        pages/0001.json         a page as returned by the API, written when it is finished
        overlay.pdf             or overlay.png, if it was requested
        deepseek-ocr.json       what was read, with which options, and what failed

Files are written atomically, by renaming. Saved pages are valid for one content and one set of options; they are
removed when either of them changes.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ocr_client.client import DocumentRejected
from ocr_client.selection import format_ranges
from ocr_client.sources import RECORD

PAGE_SEPARATOR = "\n\n<--- Page Split --->\n\n"
FORMAT = 1
"""Version of the record's format. Results in another format are discarded and read again."""

_FILE_NAME = re.compile(r"\w[\w.-]*")


@dataclass
class Record:
    """The content of `deepseek-ocr.json`."""

    source: str
    sha256: str
    options: dict[str, str | int | None]
    format: int = FORMAT
    page_count: int | None = None
    """Number of pages in the document, if an open range of pages was requested; otherwise it is not known."""
    pages: str | None = None
    """Pages in `document.md`, as ranges counted from 1. None while the file does not exist."""
    failed_pages: tuple[int, ...] = ()
    """Pages that could not be read, counted from 1."""
    overlay: str | None = None
    """Pages in the overlay, in the same form as `pages`."""
    error: dict[str, str | None] | None = None
    """Message and code of the server's error, if the content of the document cannot be read."""


class ResultStore:
    """The saved results of one document. All methods that write raise OSError."""

    def __init__(self, folder: Path, record: Record) -> None:
        """Load the results in `folder` if they have the same content and options as `record`; otherwise remove them."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = _load(folder / RECORD)
        if found is not None and (found.sha256, found.options) == (record.sha256, record.options):
            self.record = found
        else:
            self._clear()
            self.record = record
            self._save()
        self.done: dict[int, str] = dict(self._finished_pages())
        """Finish reason of each finished page, by the index of the page."""

    def clear_failures(self) -> None:
        """Forget the failed pages and the error of the document, so that they are tried again."""
        self.done = {index: finish for index, finish in self.done.items() if finish != "error"}
        if self.record.error is not None:
            self.record.error = None
            self._save()

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Return the pages of `indices` that are not finished."""
        return [index for index in indices if index not in self.done]

    def set_page_count(self, page_count: int) -> None:
        """Record the number of pages in the document."""
        if self.record.page_count != page_count:
            self.record.page_count = page_count
            self._save()

    def save_page(self, index: int, page: dict[str, Any]) -> dict[str, Any]:
        """Save a page and its figures.

        Args:
            index: index of the page, counted from 0.
            page: the page as returned by the API.

        Returns:
            The page as it was saved: with `page` counted from 1, and with file names instead of the figures' content.
        """
        page = {"page": index + 1} | {name: value for name, value in page.items() if name != "index"}
        page["images"] = [self._save_figure(image) for image in page.get("images") or []]
        text = json.dumps(page, ensure_ascii=False, indent=1)
        _write(self._page_file(index), text.encode("utf-8", "replace"))
        self.done[index] = str(page.get("finish_reason"))
        return page

    def load_page(self, index: int) -> dict[str, Any]:
        """Return a finished page as it was saved."""
        page: dict[str, Any] = json.loads(self._page_file(index).read_bytes())
        return page

    def save_error(self, error: DocumentRejected) -> None:
        """Record that the document cannot be read."""
        self.record.error = {"message": str(error), "code": error.code}
        self._save()

    def prepare(self, indices: Sequence[int] | None) -> None:
        """Remove `document.md` if it does not consist of exactly the requested pages.

        Args:
            indices: the requested pages; None if the page count is not known yet.
        """
        if indices is None or self.record.pages != _ranges(indices) or any(index not in self.done for index in indices):
            (self.folder / "document.md").unlink(missing_ok=True)
            if self.record.pages is not None:
                self.record.pages = None
                self._save()

    def finish(self, indices: Sequence[int]) -> None:
        """Write `document.md` from the pages of `indices`, all of which are finished, unless it is up to date."""
        file = self.folder / "document.md"
        pages = _ranges(indices)
        if self.record.pages == pages and file.is_file():
            return
        _write(file, (PAGE_SEPARATOR.join(map(self._markdown, indices)) + "\n").encode("utf-8", "replace"))
        self.record.pages = pages
        self.record.failed_pages = tuple(index + 1 for index in indices if self.done[index] == "error")
        self._save()

    def has_overlay(self, indices: Sequence[int]) -> bool:
        """Return whether there is an overlay of exactly these pages."""
        exists = any((self.folder / name).is_file() for name in ("overlay.pdf", "overlay.png"))
        return exists and self.record.overlay == _ranges(indices)

    def save_overlay(self, indices: Sequence[int], kind: Literal["pdf", "png"], data: bytes) -> None:
        """Save the overlay of the pages of `indices`."""
        _write(self.folder / f"overlay.{kind}", data)
        self.record.overlay = _ranges(indices)
        self._save()

    def _save_figure(self, image: dict[str, Any]) -> dict[str, Any]:
        """Save a figure, and return its description with the name of the file instead of the content."""
        name, uri = str(image.get("id")), image.get("image_base64")
        saved = {key: value for key, value in image.items() if key not in ("image_base64", "image_annotation")}
        if isinstance(uri, str) and _FILE_NAME.fullmatch(name):
            with suppress(binascii.Error, ValueError):
                _write(self.folder / "figures" / name, base64.b64decode(uri.partition(",")[2]))
                saved["file"] = f"figures/{name}"
        return saved

    def _markdown(self, index: int) -> str:
        """Return the markdown of a page, with links to the files of its figures."""
        page = self.load_page(index)
        if page.get("finish_reason") == "error":
            return f"<!-- Page {index + 1} could not be read: {_in_comment(page_error(page))} -->"
        markdown = str(page.get("markdown") or "")
        for image in page["images"]:
            if "file" in image:
                markdown = markdown.replace(f"]({image['id']})", f"]({image['file']})")
        return markdown

    def _finished_pages(self) -> Iterator[tuple[int, str]]:
        """Yield index and finish reason of each saved page. Damaged files are skipped."""
        for file in (self.folder / "pages").glob("*.json"):
            with suppress(OSError, ValueError, TypeError, KeyError):
                page = json.loads(file.read_bytes())
                index = int(file.stem) - 1
                if page["page"] == index + 1:
                    yield index, str(page["finish_reason"])

    def _page_file(self, index: int) -> Path:
        return self.folder / "pages" / f"{index + 1:04}.json"

    def _save(self) -> None:
        _write(self.folder / RECORD, json.dumps(asdict(self.record), ensure_ascii=False, indent=1).encode())

    def _clear(self) -> None:
        """Remove all results. The record, which identifies them, is removed last."""
        for pattern in ("document.md", "overlay.*", "pages/*.json", "figures/*"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        (self.folder / RECORD).unlink(missing_ok=True)


def page_error(page: dict[str, Any]) -> str:
    """Return the reason why a page could not be read."""
    error = page.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "the server gave no reason"


def _load(file: Path) -> Record | None:
    """Load a record. Returns None if it is missing, damaged, or in another format."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_bytes())
        found["failed_pages"] = tuple(found["failed_pages"])
        record = Record(**found)
        if record.format == FORMAT:
            return record
    return None


def _ranges(indices: Sequence[int]) -> str:
    """Return page indices as ranges counted from 1."""
    return format_ranges(index + 1 for index in indices)


def _in_comment(text: str) -> str:
    """Return `text` in a form that cannot end an HTML comment."""
    return text.replace("--", "- -").replace("\n", " ")


def _write(file: Path, data: bytes) -> None:
    """Write a file atomically: it appears with all of `data`, or not at all."""
    file.parent.mkdir(exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    os.replace(part, file)
