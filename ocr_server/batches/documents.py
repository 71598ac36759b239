"""Batches whose input is a PDF, where each page is a request, or a zip of pictures, where each picture is a request."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial

from ocr_server.batches.archive import Archive, BadArchive, BadMember
from ocr_server.batches.requests import CheckResult, Item, count_errors
from ocr_server.batches.storage import Storage
from ocr_server.errors import InputError, InvalidRequest, NotFound, TooLarge
from ocr_server.intake.document import Document
from ocr_server.intake.intake import Intake
from ocr_server.intake.source import Content
from ocr_server.plan import ReadPlan


class PdfRequests:
    """The pages of a PDF. The PDF is opened once, and stays open while its pages are read."""

    def __init__(
        self,
        storage: Storage,
        file_id: str,
        intake: Intake,
        body: bytes,
        plan: Callable[[bytes], ReadPlan],
        *,
        max_requests: int,
        max_bytes: int,
    ) -> None:
        """Args:
        storage: Where the file is stored.
        file_id: Id of the file.
        intake: Opens the PDF.
        body: Body of each request.
        plan: Returns the plan of a request that reads the whole file.
        max_requests: Maximum number of requests.
        max_bytes: Maximum size of the file in bytes.
        """
        self._storage = storage
        self._file_id = file_id
        self._intake = intake
        self._body = body
        self._plan = plan
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._document: Document | None = None

    async def check(self) -> CheckResult:
        try:
            document = await self._opened()
        except (InvalidRequest, NotFound, TooLarge) as error:
            return CheckResult().with_error(error)
        return count_errors(CheckResult(total=len(set(document.indices))), self._max_requests)

    async def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        document = await self._opened()
        positions = {index: position for position, index in enumerate(document.indices)}
        for index, position in positions.items():
            if index + 1 not in done:
                yield Item(index + 1, f"page-{index + 1}", self._body, partial(_page, document, position))

    async def close(self) -> None:
        if self._document is not None:
            await self._document.close()

    async def _opened(self) -> Document:
        if self._document is None:
            plan = self._plan(await self._storage.run(self._read))
            try:
                (self._document,) = await self._intake.open([planned.source for planned in plan.sources])
            except InputError as error:
                raise plan.api_error(error) from error
        return self._document

    def _read(self) -> bytes:
        with self._storage.open(self._file_id) as file:
            return file.read(self._max_bytes + 1)  # the intake refuses a larger file


async def _page(document: Document, position: int) -> Content:
    return document.single(position)


class ZipRequests:
    """The pictures in a zip. Each is read when it is needed; nothing is unpacked to the disk."""

    def __init__(
        self, storage: Storage, file_id: str, body: bytes, *, max_requests: int, max_member_bytes: int, max_bytes: int
    ) -> None:
        """Args:
        storage: Where the file is stored.
        file_id: Id of the file.
        body: Body of each request.
        max_requests: Maximum number of requests.
        max_member_bytes: Maximum size of a picture in bytes.
        max_bytes: Maximum size of all pictures together in bytes, uncompressed.
        """
        self._storage = storage
        self._file_id = file_id
        self._body = body
        self._max_requests = max_requests
        self._max_member_bytes = max_member_bytes
        self._max_bytes = max_bytes
        self._archive: Archive | None = None

    async def check(self) -> CheckResult:
        checked = CheckResult()
        try:
            archive = await self._opened()
        except BadArchive as error:
            checked.add_error("invalid_zip", str(error))
            return checked
        checked.total = len(archive.members)
        for problem in archive.problems:
            if checked.add_error("invalid_zip", problem):
                break
        return count_errors(checked, self._max_requests)

    async def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        archive = await self._opened()
        for line, member in enumerate(archive.members, start=1):
            if line not in done:
                yield Item(line, member.filename, self._body, partial(self._content, archive, member))

    async def close(self) -> None:
        if self._archive is not None:
            await self._storage.run(self._archive.close)

    async def _opened(self) -> Archive:
        if self._archive is None:
            self._archive = await self._storage.run(self._open)
        return self._archive

    def _open(self) -> Archive:
        return Archive(self._storage.open(self._file_id), max_bytes=self._max_bytes)

    async def _content(self, archive: Archive, member: zipfile.ZipInfo) -> Content:
        try:
            return await self._storage.run(archive.read, member, self._max_member_bytes)
        except BadMember as error:
            raise InvalidRequest(str(error), param="input_file_id", code="invalid_zip") from error
