"""Where the bytes of files lie: a folder or a bucket, by fsspec's URLs. All of it blocks: call it in a thread.

Each of fsspec's systems has exceptions of its own, so that any of them means that the storage can't be used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ocr_server.errors import ApiError, NotFound, Unavailable

logger = logging.getLogger(__name__)

CHUNK = 1 << 20


class Storage:
    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: tuple[fsspec.AbstractFileSystem, str] | None = None

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Keep a file, in place of what it had; it is on the disk when this returns.

        Raises:
            Unavailable: it can't be written.
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
        """A file to write, in place of what it had; `sync` and close it.

        Raises:
            Unavailable: it can't be written.
        """
        try:
            system, path = self._place(name)
            return cast(BinaryIO, system.open(path, "wb"))
        except ApiError:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def sync(self, file: BinaryIO) -> None:
        """What was written is on the disk; in a bucket it is when the file is closed."""
        if self._opened is not None and isinstance(self._opened[0], LocalFileSystem):
            file.flush()
            os.fsync(file.fileno())

    def open(self, name: str) -> BinaryIO:
        """A file to read and to seek in.

        Raises:
            NotFound: it has been deleted.
            Unavailable: the storage can't be read.
        """
        try:
            system, path = self._place(name)
            return cast(BinaryIO, system.open(path, "rb"))
        except ApiError:
            raise
        except FileNotFoundError as error:
            raise NotFound("The content of this file is gone.", code="file_gone") from error
        except Exception as error:
            raise self._unusable(error) from error

    def chunks(self, name: str) -> Iterator[bytes]:
        """Raises as `open`."""
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def remove(self, name: str) -> None:
        """There may be none. Raises Unavailable."""
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
        logger.error("the storage of files can't be used: %s", error)
        return Unavailable("The storage of files can't be used now.", code="storage_unavailable", retry_after=5.0)
