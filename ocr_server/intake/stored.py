"""The interface that the intake needs of the files that clients have uploaded. `batches.stored_files` implements it."""

from __future__ import annotations

from typing import Protocol

from ocr_server.memory import Reservation


class StoredFiles(Protocol):
    """The stored files that one client may use."""

    async def read(self, file_id: str, memory: Reservation, max_bytes: int) -> bytes:
        """Return the content of a file.

        Args:
            file_id: Id of the file as the client wrote it.
            memory: Grows with the content. If reading fails, the caller closes it.
            max_bytes: Maximum size of the file.

        Raises:
            SourceNotFound: The client has no such file.
            SourceTooLarge: The file is larger than `max_bytes`.
            TooMany: There is no memory for it at present.
            Unavailable: The database or the storage is unavailable.
        """

    async def read_signed(self, url: str, memory: Reservation, max_bytes: int) -> bytes | None:
        """Return the content of the file that a signed URL of this server refers to. None for any other URL.

        Arguments and errors as for `read`.

        Raises:
            SourceError: The signed URL has expired.
        """
