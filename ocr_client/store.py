"""What has been read, on disk: a folder for each document, in which a page that is done is a file.

    report.pdf/
        document.md             the pages' markdown, once all of them are done
        figures/                linked in it
        pages/0001.json         a page as the API gives it, written when it is done
        overlay.pdf             or .png, if it was asked for
        deepseek-ocr.json       what was read, how, and what failed

Files come into being whole, by renaming; pages hold for one content and one set of options, and go when either changes.
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

from ocr_client.selection import ranges
from ocr_client.server import Refused
from ocr_client.sources import RECORD

PAGE_SEPARATOR = "\n\n<--- Page Split --->\n\n"
FORMAT = 1
"""Of the record; results in another are read anew."""

_FILE_NAME = re.compile(r"\w[\w.-]*")


@dataclass
class Record:
    """The content of `deepseek-ocr.json`."""

    source: str
    sha256: str
    options: dict[str, str | int | None]
    format: int = FORMAT
    page_count: int | None = None
    """Pages in the document, if all of them or all from one on were asked for."""
    pages: str | None = None
    """Those that `document.md` has, counted from 1; None while it isn't there."""
    failed_pages: tuple[int, ...] = ()
    """Counted from 1."""
    overlay: str | None = None
    """Pages that the overlay has, as `pages`."""
    error: dict[str, str | None] | None = None
    """Why the document can't be read, if the server says so of its content."""


class Store:
    """The results of one document. Every method that writes raises OSError."""

    def __init__(self, folder: Path, record: Record) -> None:
        """Take up what is there, if it is of the same content and options; remove it if not."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = _load(folder / RECORD)
        if found is not None and (found.sha256, found.options) == (record.sha256, record.options):
            self.record = found
        else:
            self._clear()
            self.record = record
            self._save()
        self.done: dict[int, str] = dict(self._found())
        """Index of each page that is done → its finish reason."""

    def forget_failures(self) -> None:
        """Have failed pages, and a failed document, tried again."""
        self.done = {index: finish for index, finish in self.done.items() if finish != "error"}
        if self.record.error is not None:
            self.record.error = None
            self._save()

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of `indices` that are not done."""
        return [index for index in indices if index not in self.done]

    def counted(self, page_count: int) -> None:
        """The document turns out to have so many pages."""
        if self.record.page_count != page_count:
            self.record.page_count = page_count
            self._save()

    def keep(self, index: int, page: dict[str, Any]) -> dict[str, Any]:
        """Write a page; what was written."""
        page = {"page": index + 1} | {name: value for name, value in page.items() if name != "index"}
        page["images"] = [self._keep_figure(image) for image in page.get("images") or []]
        text = json.dumps(page, ensure_ascii=False, indent=1)
        _write(self._page_file(index), text.encode("utf-8", "replace"))
        self.done[index] = str(page.get("finish_reason"))
        return page

    def page(self, index: int) -> dict[str, Any]:
        """A page that is done, as `keep` gave it."""
        page: dict[str, Any] = json.loads(self._page_file(index).read_bytes())
        return page

    def failed(self, error: Refused) -> None:
        """The document can't be read, now or later."""
        self.record.error = {"message": str(error), "code": error.code}
        self._save()

    def begin(self, indices: Sequence[int] | None) -> None:
        """Other pages are asked for than `document.md` has: it goes until they are there."""
        if (
            indices is None
            or self.record.pages != _numbers(indices)
            or any(index not in self.done for index in indices)
        ):
            (self.folder / "document.md").unlink(missing_ok=True)
            if self.record.pages is not None:
                self.record.pages = None
                self._save()

    def finish(self, indices: Sequence[int]) -> None:
        """All of `indices` are done: put them together, unless they are already."""
        file = self.folder / "document.md"
        pages = _numbers(indices)
        if self.record.pages == pages and file.is_file():
            return
        _write(file, (PAGE_SEPARATOR.join(map(self._markdown, indices)) + "\n").encode("utf-8", "replace"))
        self.record.pages = pages
        self.record.failed_pages = tuple(index + 1 for index in indices if self.done[index] == "error")
        self._save()

    def has_overlay(self, indices: Sequence[int]) -> bool:
        there = any((self.folder / name).is_file() for name in ("overlay.pdf", "overlay.png"))
        return there and self.record.overlay == _numbers(indices)

    def keep_overlay(self, indices: Sequence[int], kind: Literal["pdf", "png"], data: bytes) -> None:
        _write(self.folder / f"overlay.{kind}", data)
        self.record.overlay = _numbers(indices)
        self._save()

    def _keep_figure(self, image: dict[str, Any]) -> dict[str, Any]:
        """Write the figure; its description, with the file's name in the place of its bytes."""
        name, uri = str(image.get("id")), image.get("image_base64")
        kept = {key: value for key, value in image.items() if key not in ("image_base64", "image_annotation")}
        if isinstance(uri, str) and _FILE_NAME.fullmatch(name):
            with suppress(binascii.Error, ValueError):
                _write(self.folder / "figures" / name, base64.b64decode(uri.partition(",")[2]))
                kept["file"] = f"figures/{name}"
        return kept

    def _markdown(self, index: int) -> str:
        """Of a page, its figures linked where they lie."""
        page = self.page(index)
        if page.get("finish_reason") == "error":
            return f"<!-- Page {index + 1} could not be read: {_in_comment(page_error(page))} -->"
        markdown = str(page.get("markdown") or "")
        for image in page["images"]:
            if "file" in image:
                markdown = markdown.replace(f"]({image['id']})", f"]({image['file']})")
        return markdown

    def _found(self) -> Iterator[tuple[int, str]]:
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
        """Remove the results of another content or other options; the record last, as it says what they are."""
        for pattern in ("document.md", "overlay.*", "pages/*.json", "figures/*"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        (self.folder / RECORD).unlink(missing_ok=True)


def page_error(page: dict[str, Any]) -> str:
    """Why a page could not be read."""
    error = page.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "the server gave no reason"


def _load(file: Path) -> Record | None:
    """None if there is no record that can be understood."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_bytes())
        found["failed_pages"] = tuple(found["failed_pages"])
        record = Record(**found)
        if record.format == FORMAT:
            return record
    return None


def _numbers(indices: Sequence[int]) -> str:
    return ranges(index + 1 for index in indices)


def _in_comment(text: str) -> str:
    return text.replace("--", "- -").replace("\n", " ")


def _write(file: Path, data: bytes) -> None:
    """The file appears with all of `data`, or not at all."""
    file.parent.mkdir(exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    os.replace(part, file)
