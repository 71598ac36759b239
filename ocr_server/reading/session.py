"""One request's work: its place in the queue and its opened documents, held until its answer has ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from vllm.sampling_params import SamplingParams

from ocr_server.intake.document import Document
from ocr_server.intake.intake import Opens, Source
from ocr_server.observability import metrics
from ocr_server.observability.tracing import stage
from ocr_server.reading.admission import Admission, Ticket
from ocr_server.reading.page import Job, PageReading
from ocr_server.reading.reader import Event, Finish, Reader, Show

Account = dict[str, int]
"""pages, failed_pages, prompt_tokens, completion_tokens."""


class Session:
    """Made by `begin`; `events` closes it at its end, `close` does if it comes to nothing."""

    def __init__(
        self, reader: Reader, ticket: Ticket, documents: Sequence[Document], jobs: list[Job], account: Account
    ) -> None:
        self.jobs = jobs
        """All pages, in order."""
        self._reader = reader
        self._ticket = ticket
        self._documents = documents
        self._account = account

    @classmethod
    async def begin(
        cls,
        admission: Admission,
        intake: Opens,
        reader: Reader,
        sources: Sequence[Source],
        prompt: str,
        params: SamplingParams,
        *,
        client: str = "anonymous",
        account: Account | None = None,
        in_background: bool = False,
    ) -> Session:
        """Queue up, then fetch and open the sources.

        Args:
            client: whose turn it is, for fairness.
            account: told what the request came to, for the log.
            in_background: whether all that is not goes first.

        Raises:
            TooMany: the queue is full; nothing has been fetched or decoded.
            InvalidRequest, TooLarge: a source can't be had or opened.
        """
        ticket = admission.enter(client, in_background=in_background)
        try:
            with stage("open"):
                documents = await intake.open(sources)
        except BaseException:
            ticket.close()
            raise
        jobs = [
            Job(
                load=partial(document.page, place),
                mode=source.mode,
                prompt=prompt,
                params=params,
                source=number,
                number=index,
            )
            for number, (source, document) in enumerate(zip(sources, documents, strict=True))
            for place, index in enumerate(document.indices)
        ]
        ticket.expect(len(jobs))
        return cls(reader, ticket, documents, jobs, {} if account is None else account)

    @property
    def size_bytes(self) -> int:
        return sum(document.size_bytes for document in self._documents)

    @property
    def is_document(self) -> bool:
        """Whether any of the sources is more than a picture."""
        return any(document.is_document for document in self._documents)

    async def events(
        self, *, live: bool = False, show: Show | None = None, finish: Finish | None = None
    ) -> AsyncGenerator[Event]:
        """What the reader makes of the pages; closes the session after it."""
        try:
            reading = self._reader.read(self.jobs, self._ticket, live=live, show=show, finish=finish)
            async with aclosing(reading) as events:
                async for event in events:
                    if isinstance(event, PageReading):
                        self._count(event)
                    yield event
        finally:
            await self.close()

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
        """As often as you like."""
        self._ticket.close()
        for document in self._documents:
            await document.close()
