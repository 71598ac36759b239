"""Finds the documents that the command line refers to, and determines where their results are written."""

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
"""Suffixes of the files that are read in folders. A file that is named explicitly is read whatever its suffix."""

STANDARD_INPUT = "-"
RECORD = "deepseek-ocr.json"
"""Name of the file that marks a folder as the results of a document."""


class SourceError(Exception):
    """The command line refers to something that cannot be read. The message is meant for users."""


@dataclass(frozen=True)
class SourceFile:
    """A document that has not been read yet."""

    path: Path
    output_path: Path
    """Folder for the results, relative to the output folder."""
    data: bytes | None = field(default=None, repr=False)
    """Content, if it cannot be read again from `path`: standard input and pipes."""

    @property
    def name(self) -> str:
        """Name for messages and JSON: the path, relative to the current folder if the file is below it."""
        here = Path.cwd()
        shown = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return os.fsencode(shown).decode("utf-8", "replace")

    def open(self) -> io.BufferedReader | io.BytesIO:
        """Open the content for reading. Raises OSError."""
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)

    def sha256(self) -> str:
        """Return the SHA-256 of the content in hexadecimal. Raises OSError."""
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_sources(arguments: Iterable[str], out: Path | None) -> list[SourceFile]:
    """Return the documents that `arguments` refer to, in the order of the arguments and without duplicates.

    Args:
        arguments: files, folders, glob patterns, or `-` for standard input.
        out: the output folder, which is not searched for documents.

    Raises:
        SourceError: if something does not exist, or if two documents would have the same output folder.
    """
    found: dict[Path, SourceFile] = {}
    taken: dict[Path, Path] = {}
    for argument in arguments:
        for source in [_standard_input()] if argument == STANDARD_INPUT else _expand(argument, out):
            if source.path in found:
                continue
            if source.output_path in taken:
                raise SourceError(
                    f"{taken[source.output_path]} and {source.path} would both be written to {source.output_path}. "
                    "Read them with different output folders (-o), or pass a folder that contains both."
                )
            taken[source.output_path] = source.path
            found[source.path] = source
    return list(found.values())


def _expand(argument: str, out: Path | None) -> Iterator[SourceFile]:
    path = Path(os.path.abspath(os.path.expanduser(argument)))
    if path.is_dir():
        found = False
        for file in _files_below(path, out):
            found = True
            yield SourceFile(file, _output_path(file, path))
        if not found:
            raise SourceError(f"The folder {argument} contains no PDFs or images.")
    elif path.exists():
        data = None if path.is_file() else path.read_bytes()  # a pipe, such as <(…), can be read only once
        yield SourceFile(path, _output_path(path, path), data)
    elif glob.has_magic(argument):
        yield from _matching(argument, out)
    else:
        raise SourceError(f"File or folder not found: {argument}")


def _matching(pattern: str, out: Path | None) -> Iterator[SourceFile]:
    base = Path(os.path.abspath(os.path.expanduser(pattern)))
    full = str(base)
    while glob.has_magic(str(base)):
        base = base.parent
    matches = sorted(glob.glob(full, recursive=True))
    if not matches:
        raise SourceError(f"No files match {pattern}.")
    for match in map(Path, matches):
        if match.is_dir():
            for file in _files_below(match, out):
                yield SourceFile(file, _output_path(file, base))
        elif not _is_below(match, out) and not ("**" in pattern and not _is_document(match)):
            yield SourceFile(match, _output_path(match, base))


def _files_below(folder: Path, out: Path | None) -> Iterator[Path]:
    """Yield the PDFs and images below a folder, sorted by name, without hidden files and without results."""
    if folder == out:
        raise SourceError("The output folder is the folder to be read. Choose another output folder (-o).")
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


def _output_path(file: Path, root: Path) -> Path:
    """Return the path relative to the current folder or, for a file outside it, to the parent of the named folder."""
    here = Path.cwd()
    return file.relative_to(here if file.is_relative_to(here) else root.parent)


def _standard_input() -> SourceFile:
    if sys.stdin.isatty():
        raise SourceError("Standard input is a terminal. Redirect a document to it: deepseek-ocr read - < a.pdf")
    return SourceFile(Path(STANDARD_INPUT), Path("standard-input"), sys.stdin.buffer.read())
