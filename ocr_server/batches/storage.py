"""Stores the bytes of files in a folder or a bucket, which is named by a URL of fsspec.

The functions that are not asynchronous block; call them through `Storage.run`. The file systems of fsspec raise
different exceptions, so every exception is taken to mean that the storage is unavailable.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO, ParamSpec, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ocr_server.errors import ApiError, NotFound, Unavailable

logger = logging.getLogger(__name__)

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
        try:
            with self.create(name) as file:
                for chunk in chunks:
                    file.write(chunk)
                self.sync(file)
        except ApiError:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def create(self, name: str) -> BinaryIO:
        """Open a new or existing file for writing, and truncate it. Call `sync` before closing it.

        Raises:
            Unavailable: The file cannot be written.
        """
        try:
            system, path = self._place(name)
            return cast(BinaryIO, system.open(path, "wb"))
        except ApiError:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def sync(self, file: BinaryIO) -> None:
        """Make sure that the data is on the disk. In a bucket, it is stored when the file is closed."""
        if self._opened is not None and isinstance(self._opened[0], LocalFileSystem):
            file.flush()
            os.fsync(file.fileno())

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. The file is seekable.

        Raises:
            NotFound: The file has been deleted.
            Unavailable: The file cannot be read.
        """
        try:
            system, path = self._place(name)
            return cast(BinaryIO, system.open(path, "rb"))
        except ApiError:
            raise
        except FileNotFoundError as error:
            raise NotFound("The content of this file has been deleted.", code="file_gone") from error
        except Exception as error:
            raise self._unusable(error) from error

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file. Raises as `open`."""
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

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
        try:
            system, path = self._place(name)
            system.rm_file(path)
        except FileNotFoundError:
            pass
        except ApiError:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def _place(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        if self._opened is None:
            try:
                system, root = fsspec.core.url_to_fs(self._url)
            except (ImportError, ValueError) as error:
                raise self._unusable(error) from error
            if isinstance(system, LocalFileSystem):
                system.makedirs(root, exist_ok=True)
            self._opened = system, root
        system, root = self._opened
        return system, f"{root}/{name}"

    def _unusable(self, error: Exception) -> Unavailable:
        logger.error("the storage of files is unavailable: %s", error)
        return Unavailable(
            "The storage of files is unavailable. Try again later.", code="storage_unavailable", retry_after=5.0
        )
