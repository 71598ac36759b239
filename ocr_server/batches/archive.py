"""A zip that may be hostile: never unpacked to the disk, and bounded before it is believed."""

from __future__ import annotations

import struct
import threading
import zipfile
import zlib
from typing import BinaryIO

from ocr_server.batches.requests import MOST_ID_CHARS

MOST_DIRECTORY_BYTES = 16_000_000
"""Of the list of members, which takes ten times as much in memory."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END = b"PK\x05\x06"
_END_BYTES = 22
_ZIP64_LOCATOR = b"PK\x06\x07"
_ZIP64_BYTES = 20
_LONGEST_COMMENT = 65_535


class BadArchive(Exception):
    """The file is no zip, or not one that is read."""


class BadMember(Exception):
    """One of its files can't be had."""


class Archive:
    """Reads one member at a time."""

    def __init__(self, file: BinaryIO, *, most_bytes: int) -> None:
        """Takes over `file`.

        Args:
            most_bytes: of all members, unpacked; what they say of themselves, and no more is ever unpacked.

        Raises:
            BadArchive: it can't be opened.
        """
        self._file = file
        self._lock = threading.Lock()
        try:
            _check_directory(file)
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError) as error:
            file.close()
            raise BadArchive("The zip can't be opened: it is damaged or of a kind that is not read.") from error
        except BaseException:
            file.close()
            raise
        self.members = [info for info in self._zip.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        """Its files, in order, without hidden ones."""
        self.problems = list(self._problems(most_bytes))
        """Why it can't be a batch's input."""

    def _problems(self, most_bytes: int) -> list[str]:
        problems, seen = [], set[str]()
        if sum(info.file_size for info in self.members) > most_bytes:
            problems.append(f"The files in the zip have more than {most_bytes:,} bytes together.")
        for number, info in enumerate(self.members, start=1):
            name = info.filename
            if len(name) > MOST_ID_CHARS or not name.isprintable():
                problems.append(f"File {number} in the zip has a name that is too long or has control characters.")
            elif name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                problems.append(f"File {number} in the zip has a name that leads out of it.")
            elif name in seen:
                problems.append(f"File {number} in the zip has the name of an earlier one.")
            seen.add(name)
        return problems

    def read(self, member: zipfile.ZipInfo, most: int) -> bytes:
        """At most `most` + 1 bytes of it. From any thread.

        Raises:
            BadMember: it is encrypted, compressed in another way than deflate, or damaged.
        """
        if member.flag_bits & 1:
            raise BadMember("The file is encrypted.")
        if member.compress_type not in METHODS:
            raise BadMember("The file is compressed by another method than deflate.")
        try:
            with self._lock, self._zip.open(member) as file:
                return file.read(most + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, struct.error) as error:
            raise BadMember("The file can't be unpacked: it is damaged.") from error

    def close(self) -> None:
        self._zip.close()
        self._file.close()


def _check_directory(file: BinaryIO) -> None:
    """Raises BadArchive before a long list of members is read."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT - _ZIP64_BYTES))
    tail = file.read()
    place = len(tail) - _END_BYTES
    if tail[place : place + 4] != _END or tail[-2:] != b"\0\0":
        place = tail.rfind(_END)
    if place < 0 or len(tail) < place + _END_BYTES:
        raise BadArchive("The file is no zip, or its end is missing.")
    if tail[max(0, place - _ZIP64_BYTES) :].startswith(_ZIP64_LOCATOR):
        raise BadArchive("The zip has the extension zip64, which is not read.")
    (directory_bytes,) = struct.unpack_from("<I", tail, place + 12)
    if directory_bytes > MOST_DIRECTORY_BYTES:
        raise BadArchive("The zip has too many files.")
    file.seek(0)


def _is_hidden(name: str) -> bool:
    """As file managers leave them: `.DS_Store`, `__MACOSX/`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in (".", "..")]
    return any(part.startswith((".", "__MACOSX")) for part in parts)
