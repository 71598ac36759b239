"""Files, folders and patterns from the command line → documents to read, and where their results go."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset("pdf jpg jpeg png bmp gif webp tif tiff heic heif avif".split())
"""What is taken from folders. A file that is named is read whatever it is called."""

STANDARD_INPUT = "-"
RECORD = "deepseek-ocr.json"
"""The file by which a folder with results is known."""


class SourceError(Exception):
    """The command line names something that can't be read; the text is for people."""


@dataclass(frozen=True)
class Source:
    """A document that is still in its file."""

    path: Path
    place: Path
    """Where its results go, below the output folder."""
    data: bytes | None = field(default=None, repr=False)
    """Of what is no file: standard input, pipes."""

    @property
    def name(self) -> str:
        """For people and for JSON: the path from the current folder, if the file is below it."""
        here = Path.cwd()
        shown = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return os.fsencode(shown).decode("utf-8", "replace")

    def open(self) -> io.BufferedReader | io.BytesIO:
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)

    def sha256(self) -> str:
        """Of its content. Raises OSError."""
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find(arguments: Iterable[str], out: Path | None) -> list[Source]:
    """The documents that `arguments` name, each once, in their order.

    Args:
        out: the output folder, in which no documents are looked for.

    Raises:
        SourceError: something named isn't there, or two documents would have the same place.
    """
    found: dict[Path, Source] = {}
    taken: dict[Path, Path] = {}
    for argument in arguments:
        for source in [_standard_input()] if argument == STANDARD_INPUT else _named(argument, out):
            if source.path in found:
                continue
            if source.place in taken:
                raise SourceError(
                    f"{taken[source.place]} and {source.path} would both be written to {source.place}: read them with "
                    "different -o, or name a folder above both."
                )
            taken[source.place] = source.path
            found[source.path] = source
    return list(found.values())


def _named(argument: str, out: Path | None) -> Iterator[Source]:
    path = Path(os.path.abspath(os.path.expanduser(argument)))
    if path.is_dir():
        found = False
        for file in _files_below(path, out):
            found = True
            yield Source(file, _place(file, path))
        if not found:
            raise SourceError(f"The folder {argument} has no PDFs or pictures in it.")
    elif path.exists():
        data = None if path.is_file() else path.read_bytes()  # a pipe, as of <(…), can be read once
        yield Source(path, _place(path, path), data)
    elif glob.has_magic(argument):
        yield from _matching(argument, out)
    else:
        raise SourceError(f"There is no file or folder {argument}.")


def _matching(pattern: str, out: Path | None) -> Iterator[Source]:
    base = Path(os.path.abspath(os.path.expanduser(pattern)))
    full = str(base)
    while glob.has_magic(str(base)):
        base = base.parent
    matches = sorted(glob.glob(full, recursive=True))
    if not matches:
        raise SourceError(f"Nothing matches {pattern}.")
    for match in map(Path, matches):
        if match.is_dir():
            for file in _files_below(match, out):
                yield Source(file, _place(file, base))
        elif not _is_below(match, out) and not ("**" in pattern and not _is_document(match)):
            yield Source(match, _place(match, base))


def _files_below(folder: Path, out: Path | None) -> Iterator[Path]:
    """PDFs and pictures by name, without hidden files and folders, and without results."""
    if folder == out:
        raise SourceError("The output folder is the one that is read: choose another -o.")
    for parent, folders, files in os.walk(folder):
        if RECORD in files:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(parent, name) != out)
        yield from (
            path for name in sorted(files) if not name.startswith(".") and _is_document(path := Path(parent, name))
        )


def _is_document(path: Path) -> bool:
    return path.is_file() and path.suffix.lower().removeprefix(".") in SUFFIXES


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.is_relative_to(folder)


def _place(file: Path, root: Path) -> Path:
    """Below the current folder, the path from there; elsewhere, from the folder that was named."""
    here = Path.cwd()
    return file.relative_to(here if file.is_relative_to(here) else root.parent)


def _standard_input() -> Source:
    if sys.stdin.isatty():
        raise SourceError("Standard input is the keyboard: pipe a document into it, as in: deepseek-ocr read - < a.pdf")
    return Source(Path(STANDARD_INPUT), Path("standard-input"), sys.stdin.buffer.read())
