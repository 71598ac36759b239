"""One request's work: its place in the queue and its opened documents, held until its answer has ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from ocr_server.errors import InputError, InvalidRequest, TooMany
from ocr_server.intake.document import Document
from ocr_server.intake.errors import SourceError
from ocr_server.intake.intake import Intake
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.stored import StoredFiles
from ocr_server.memory import ClientMemory, MemoryBudget, Use
from ocr_server.observability import metrics
from ocr_server.observability.logs import ANONYMOUS
from ocr_server.observability.tracing import stage
from ocr_server.output.artifacts import ArtifactMaker, artifacts_of, page_picture
from ocr_server.plan import ReadPlan
from ocr_server.reading.admission import Admission, Ticket
from ocr_server.reading.page import Job, PageReading
from ocr_server.reading.reader import Event, Reader
from ocr_server.transport.quotas import Quota

Account = dict[str, int]
"""Totals of a request: `pages`, `failed_pages`, `prompt_tokens` and `completion_tokens`."""


@dataclass(frozen=True)
class Caller:
    """On whose behalf pages are read."""

    client: str = ANONYMOUS
    """Who shares the engine fairly with all others: an API key, or an address."""
    account: Account = field(default_factory=Account)
    """Filled with the totals of the request, for the access log."""
    in_background: bool = False
    """Whether all other requests go first."""
    files: StoredFiles | None = None
    """The stored files that the client may use; None if there are none."""
    quota: Quota | None = None
    """What the client may use in a day. Background requests are counted, but not refused."""


class Session:
    """The work of one request. Create it with `begin`, then iterate `events` to its end, or call `close`."""

    def __init__(
        self,
        plan: ReadPlan,
        reader: Reader,
        ticket: Ticket,
        documents: Sequence[Document],
        account: Account,
        memory: MemoryBudget,
    ) -> None:
        self.plan = plan
        self.jobs = [
            Job(
                load=partial(_load, document, position, number),
                mode=planned.mode,
                prompt=plan.prompt,
                decoding=plan.decoding,
                source=number,
                number=index,
            )
            for number, (planned, document) in enumerate(zip(plan.sources, documents, strict=True))
            for position, index in enumerate(document.indices)
        ]
        """All pages, in order."""
        self._reader = reader
        self._ticket = ticket
        self._documents = documents
        self._account = account
        self._memory = ClientMemory(memory, ticket.client)
        self._answer = self._memory.reserve(Use.ANSWERS)

    @classmethod
    async def begin(
        cls,
        admission: Admission,
        intake: Intake,
        reader: Reader,
        plan: ReadPlan,
        caller: Caller,
        memory: MemoryBudget,
    ) -> Session:
        """Join the queue, then fetch and open the sources.

        Raises:
            TooMany: The queue is full, or the client's quota is used up. Unless the request has more pages than
                sources, nothing has been fetched.
            InvalidRequest, TooLarge: A source cannot be fetched or opened, or there is more than one page although
                the request allows only one.
            Unavailable: No process can be started to decode in.
        """
        quota = None if caller.in_background else caller.quota
        if quota is not None:
            quota.check_pages(len(plan.sources))
        ticket = admission.enter(caller.client, pages=len(plan.sources), in_background=caller.in_background)
        try:
            with stage("open"):
                sources = [planned.source for planned in plan.sources]
                documents = await intake.open(sources, caller.client, caller.files)
        except InputError as error:
            ticket.close()
            raise plan.api_error(error) from error
        except BaseException:
            ticket.close()
            raise
        session = cls(plan, reader, ticket, documents, caller.account, memory)
        try:
            ticket.expect(len(session.jobs))
            if quota is not None:
                quota.check_pages(len(session.jobs))
        except TooMany:
            await session.close()
            raise
        limit = plan.page_limit
        if limit is not None and len(session.jobs) > limit.pages:
            await session.close()
            raise InvalidRequest(
                f"{limit.parameter} applies to at most {limit.pages} page{'s' if limit.pages > 1 else ''}; "
                f"this request has {len(session.jobs)}.",
                param=limit.parameter,
            )
        if caller.quota is not None:
            caller.quota.take_pages(len(session.jobs))
        return session

    @property
    def size_bytes(self) -> int:
        """Size of all sources as files."""
        return sum(document.size_bytes for document in self._documents)

    @property
    def is_document(self) -> bool:
        """Whether any of the sources is more than a single picture."""
        return any(document.is_document for document in self._documents)

    async def events(self) -> AsyncGenerator[Event]:
        """Yield the events of the reader for all pages. Closes the session at the end."""
        plan = self.plan
        finish = self._artifact_maker() if plan.artifacts else None
        show = page_picture if plan.show_pages else None
        try:
            reading = self._reader.read(self.jobs, self._ticket, live=plan.decoding.stream, show=show, finish=finish)
            async with aclosing(reading) as events:
                async for event in events:
                    if isinstance(event, PageReading):
                        self._count(event)
                    yield event
                    if isinstance(event, PageReading) and plan.decoding.stream:
                        self._answer.shrink_to(self._answer.size - artifacts_of(event).nbytes)
        except InputError as error:
            raise plan.api_error(error) from error
        finally:
            await self.close()

    def _artifact_maker(self) -> ArtifactMaker:
        plan = self.plan
        return ArtifactMaker(
            plan.artifacts, plan.family, of_document=self.is_document, memory=self._memory, answer=self._answer
        )

    def _count(self, reading: PageReading) -> None:
        metrics.page_done(reading)
        for name, value in (
            ("pages", 1),
            ("failed_pages", int(reading.error is not None)),
            ("prompt_tokens", reading.prompt_tokens),
            ("completion_tokens", reading.completion_tokens),
        ):
            self._account[name] = self._account.get(name, 0) + value

    async def close(self) -> None:
        """Leave the queue and close the documents. Idempotent."""
        self._ticket.close()
        self._answer.close()
        for document in self._documents:
            await document.close()


async def _load(document: Document, position: int, source: int) -> SourcePage:
    try:
        return await document.page(position)
    except SourceError as error:
        error.source = source
        raise
