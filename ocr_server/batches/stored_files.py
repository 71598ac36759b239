"""Stored files as sources of pages: by id for their owner, by signed URL for everyone."""

from __future__ import annotations

from dataclasses import dataclass

from ocr_server.batches.files import Files
from ocr_server.batches.signing import Signer, parse_url
from ocr_server.errors import NotFound
from ocr_server.intake.errors import SourceError, SourceNotFound, SourceTooLarge
from ocr_server.memory import Reservation
from ocr_server.observability import metrics


@dataclass(frozen=True)
class OwnFiles:
    """The stored files that one client may use. Implements `intake.stored.StoredFiles`."""

    files: Files
    signer: Signer
    owner: str

    async def read(self, file_id: str, memory: Reservation, max_bytes: int) -> bytes:
        """Return the content of one of the client's files."""
        metrics.FILE_READS.labels(by="id").inc()
        return await self._read(self.owner, file_id, memory, max_bytes)

    async def read_signed(self, url: str, memory: Reservation, max_bytes: int) -> bytes | None:
        """Return the content of the file that a signed URL of this server refers to. None for any other URL."""
        signed = parse_url(url)
        if signed is None or not await self.signer.is_valid(signed):
            return None
        if self.signer.has_expired(signed):
            raise SourceError(
                "The signed URL has expired. GET /v1/files/{file_id}/url returns a new one.", code="signed_url_expired"
            )
        metrics.FILE_READS.labels(by="signed_url").inc()
        return await self._read(None, signed.file_id, memory, max_bytes)

    async def _read(self, owner: str | None, file_id: str, memory: Reservation, max_bytes: int) -> bytes:
        try:
            row = await self.files.get(owner, file_id)
            size = row["bytes"]
            if size > max_bytes:
                raise SourceTooLarge(f"The file has {size:,} bytes; the limit is {max_bytes:,} bytes.")
            memory.grow(size)
            return await self.files.storage.run(self.files.storage.read, row["id"])
        except NotFound as error:
            raise SourceNotFound(error.message, code="file_not_found") from error
