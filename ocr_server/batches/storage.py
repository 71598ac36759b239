"""Stores the bytes of files in a folder or a bucket, which is named by a URL of fsspec.

The functions that are not asynchronous block; call them through `Storage.run`. The file systems of fsspec raise
different exceptions, so every exception is taken to mean that the storage is unavailable.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ocr_server.batches import private
from ocr_server.errors import ApiError, NotFound, Unavailable

logger = logging.getLogger(__name__)

STORED = re.compile(r"file-((output|error)-)?[0-9a-f]{32}")
"""Names of stored files."""
CHUNK = 1 << 20
"""Number of bytes that are read at once."""
THREADS = 16
"""Number of files that are read or written at the same time."""

P = ParamSpec("P")
T = TypeVar("T")


class Storage:
    """A flat folder of files. It is opened at its first use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: tuple[fsspec.AbstractFileSystem, str] | None = None
        self._threads = ThreadPoolExecutor(THREADS, "storage")

    async def run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call a function that uses the storage in one of its threads, and return what it returns.

        They are threads of its own, so that a storage that does not respond delays nothing else.
        """
        context = contextvars.copy_context()  # the log's request id
        call = partial(context.run, function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write or overwrite a file. It is on the disk when this returns.

        Raises:
            Unavailable: The file cannot be written.
        """
        with self._usable(), self.create(name) as file:
            for chunk in chunks:
                file.write(chunk)

    @contextmanager
    def create(self, name: str) -> Generator[BinaryIO]:
        """Open a new or existing file for writing, and truncate it. At the end it is on the disk, or in the bucket.

        Raises:
            Unavailable: The file cannot be written.
        """
        with self._usable():
            system, path = self._place(name)
            is_local = isinstance(system, LocalFileSystem)
            file = cast(BinaryIO, system.open(path, "wb"))
            if is_local:
                os.fchmod(file.fileno(), private.FILE)
        try:
            yield cast(BinaryIO, StoredFile(file, self._usable))
            with self._usable():
                if is_local:
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            with self._usable():
                file.close()

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. The file is seekable.

        Raises:
            NotFound: The file has been deleted.
            Unavailable: The file cannot be read. Reading from it raises this as well.
        """
        with self._usable():
            system, path = self._place(name)
            return cast(BinaryIO, StoredFile(cast(BinaryIO, system.open(path, "rb")), self._usable))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file. Raises as `open`."""
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def read(self, name: str) -> bytes:
        """Return the whole content of a file. Raises as `open`."""
        with self.open(name) as file:
            return file.read()

    async def download(self, name: str) -> AsyncGenerator[bytes]:
        """Yield the content of a file. Raises as `open`."""
        file = await self.run(self.open, name)
        try:
            while chunk := await self.run(file.read, CHUNK):
                yield chunk
        finally:
            await self.run(file.close)

    def remove(self, name: str) -> None:
        """Delete a file if it exists. Raises Unavailable."""
        with suppress(NotFound), self._usable():
            system, path = self._place(name)
            system.rm_file(path)

    def modified(self) -> dict[str, float]:
        """Return when each file was last written: name → Unix time. Raises Unavailable."""
        with self._usable():
            system, root = self._root()
            system.invalidate_cache()
            found = {}
            for entry in system.ls(root, detail=True) if system.isdir(root) else ():
                at = entry.get("mtime") or entry.get("LastModified")
                if at is not None and entry["type"] == "file":
                    found[entry["name"].rsplit("/", 1)[-1]] = at.timestamp() if isinstance(at, datetime) else float(at)
            return found

    @contextmanager
    def _usable(self) -> Generator[None]:
        """Turn every error of the file system into `Unavailable`, or into `NotFound` if the file does not exist."""
        try:
            yield
        except ApiError:
            raise
        except FileNotFoundError as error:
            raise NotFound("The content of this file has been deleted.", code="file_gone") from error
        except Exception as error:
            logger.error("the storage of files is unavailable: %s", error)
            raise Unavailable(
                "The storage of files is unavailable. Try again later.", code="storage_unavailable", retry_after=5.0
            ) from error

    def _place(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        system, root = self._root()
        return system, f"{root}/{name}"

    def _root(self) -> tuple[fsspec.AbstractFileSystem, str]:
        if self._opened is None:
            system, root = fsspec.core.url_to_fs(self._url)
            if isinstance(system, LocalFileSystem):
                private.make_folder(Path(root), STORED)
            self._opened = system, root
        return self._opened


class StoredFile:
    """A file that is open for reading or writing. Its errors are those of the storage."""

    def __init__(self, file: BinaryIO, usable: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._usable = usable

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # seek, tell, closed, … (zipfile expects the errors of seek as they are)

    def read(self, size: int = -1) -> bytes:
        with self._usable():
            return self._file.read(size)

    def write(self, data: bytes) -> int:
        with self._usable():
            return self._file.write(data)
