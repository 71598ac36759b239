"""A PDF, each page of which is a request, and a zip of pictures, each of which is one."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial

from ocr_server.batches.archive import Archive, BadArchive, BadMember
from ocr_server.batches.requests import Checked, Item, count_errors
from ocr_server.batches.storage import Storage
from ocr_server.errors import InputError, InvalidRequest, NotFound, TooLarge
from ocr_server.intake.document import Document
from ocr_server.intake.intake import Intake
from ocr_server.intake.source import Content
from ocr_server.plan import ReadPlan


class PdfRequests:
    """The PDF stays open for as long as its pages are read."""

    def __init__(
        self,
        storage: Storage,
        file_id: str,
        intake: Intake,
        body: bytes,
        plan: Callable[[bytes], ReadPlan],
        *,
        most: int,
        largest: int,
    ) -> None:
        """Args:
        body: Of each request.
        plan: File → plan of a request that reads all of it.
        most: Most requests.
        largest: Most bytes of the file.
        """
        self._storage = storage
        self._file_id = file_id
        self._intake = intake
        self._body = body
        self._plan = plan
        self._most = most
        self._largest = largest
        self._document: Document | None = None

    async def check(self) -> Checked:
        try:
            document = await self._opened()
        except (InvalidRequest, NotFound, TooLarge) as error:
            return Checked().refused(error)
        return count_errors(Checked(total=len(set(document.indices))), self._most)

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
            plan = self._plan(await asyncio.to_thread(self._read))
            try:
                (self._document,) = await self._intake.open([planned.source for planned in plan.sources])
            except InputError as error:
                raise plan.api_error(error) from error
        return self._document

    def _read(self) -> bytes:
        with self._storage.open(self._file_id) as file:
            return file.read(self._largest + 1)  # over it, the intake refuses it


async def _page(document: Document, position: int) -> Content:
    return document.single(position)


class ZipRequests:
    """Read member by member, never unpacked."""

    def __init__(
        self, storage: Storage, file_id: str, body: bytes, *, most: int, largest: int, most_bytes: int
    ) -> None:
        """Args:
        most: requests.
        largest: bytes of a member.
        most_bytes: of all members, unpacked.
        """
        self._storage = storage
        self._file_id = file_id
        self._body = body
        self._most = most
        self._largest = largest
        self._most_bytes = most_bytes
        self._archive: Archive | None = None

    async def check(self) -> Checked:
        checked = Checked()
        try:
            archive = await self._opened()
        except BadArchive as error:
            checked.wrong("invalid_zip", str(error))
            return checked
        checked.total = len(archive.members)
        for problem in archive.problems:
            if checked.wrong("invalid_zip", problem):
                break
        return count_errors(checked, self._most)

    async def items(self, done: Collection[int]) -> AsyncGenerator[Item]:
        archive = await self._opened()
        for line, member in enumerate(archive.members, start=1):
            if line not in done:
                yield Item(line, member.filename, self._body, partial(self._content, archive, member))

    async def close(self) -> None:
        if self._archive is not None:
            await asyncio.to_thread(self._archive.close)

    async def _opened(self) -> Archive:
        if self._archive is None:
            self._archive = await asyncio.to_thread(self._open)
        return self._archive

    def _open(self) -> Archive:
        return Archive(self._storage.open(self._file_id), most_bytes=self._most_bytes)

    async def _content(self, archive: Archive, member: zipfile.ZipInfo) -> Content:
        try:
            return await asyncio.to_thread(archive.read, member, self._largest)
        except BadMember as error:
            raise InvalidRequest(str(error), param="input_file_id", code="invalid_zip") from error
