"""Reads zip files from untrusted clients. Nothing is unpacked to the disk, and limits are checked first."""

from __future__ import annotations

import struct
import threading
import zipfile
import zlib
from typing import BinaryIO

from ocr_server.batches.requests import MAX_ID_CHARS

MAX_DIRECTORY_BYTES = 16_000_000
"""Maximum size of the central directory. In memory it takes ten times as much."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Supported compression methods."""
_END = b"PK\x05\x06"
_END_BYTES = 22
_ZIP64_LOCATOR = b"PK\x06\x07"
_ZIP64_BYTES = 20
_MAX_COMMENT_BYTES = 65_535


class BadArchive(Exception):
    """The file is not a zip file, or is of an unsupported kind."""


class BadMember(Exception):
    """A file in the zip cannot be read."""


class Archive:
    """An open zip file, whose members are read one at a time."""

    def __init__(self, file: BinaryIO, *, max_bytes: int) -> None:
        """Open a zip file.

        Args:
            file: The zip file. It is closed by `close`, or if this fails.
            max_bytes: Maximum size of all members together, uncompressed. The declared sizes are checked; never more
                than the declared size of a member is uncompressed.

        Raises:
            BadArchive: The file cannot be opened.
        """
        self._file = file
        self._lock = threading.Lock()
        try:
            _check_directory(file)
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError) as error:
            file.close()
            raise BadArchive("The zip file cannot be opened: it is damaged or of an unsupported kind.") from error
        except BaseException:
            file.close()
            raise
        self.members = [info for info in self._zip.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        """The files in the zip, in order, without hidden files."""
        self.problems = list(self._problems(max_bytes))
        """Reasons why it cannot be the input of a batch."""

    def _problems(self, max_bytes: int) -> list[str]:
        problems, seen = [], set[str]()
        if sum(info.file_size for info in self.members) > max_bytes:
            problems.append(f"The files in the zip exceed the limit of {max_bytes:,} bytes, uncompressed.")
        for number, info in enumerate(self.members, start=1):
            name = info.filename
            if len(name) > MAX_ID_CHARS or not name.isprintable():
                problems.append(f"The name of file {number} in the zip is too long or contains control characters.")
            elif name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                problems.append(f"The name of file {number} in the zip is a path outside of the zip.")
            elif name in seen:
                problems.append(f"File {number} in the zip has the same name as an earlier file.")
            seen.add(name)
        return problems

    def read(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        """Return at most `limit` + 1 bytes of a member. Thread-safe.

        Raises:
            BadMember: The member is encrypted, damaged, or compressed with another method than deflate.
        """
        if member.flag_bits & 1:
            raise BadMember("The file is encrypted.")
        if member.compress_type not in METHODS:
            raise BadMember("The file is compressed with another method than deflate.")
        try:
            with self._lock, self._zip.open(member) as file:
                return file.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, struct.error) as error:
            raise BadMember("The file cannot be uncompressed: it is damaged.") from error

    def close(self) -> None:
        self._zip.close()
        self._file.close()


def _check_directory(file: BinaryIO) -> None:
    """Check the size of the central directory before it is read. Raises BadArchive."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _MAX_COMMENT_BYTES - _ZIP64_BYTES))
    tail = file.read()
    place = len(tail) - _END_BYTES
    if tail[place : place + 4] != _END or tail[-2:] != b"\0\0":
        place = tail.rfind(_END)
    if place < 0 or len(tail) < place + _END_BYTES:
        raise BadArchive("The file is not a zip file, or its end is missing.")
    if tail[max(0, place - _ZIP64_BYTES) :].startswith(_ZIP64_LOCATOR):
        raise BadArchive("The zip64 format is not supported.")
    (directory_bytes,) = struct.unpack_from("<I", tail, place + 12)
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise BadArchive("The zip contains too many files.")
    file.seek(0)


def _is_hidden(name: str) -> bool:
    """Return whether a file is hidden, such as `.DS_Store` and `__MACOSX/`, which file managers create."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in (".", "..")]
    return any(part.startswith((".", "__MACOSX")) for part in parts)
