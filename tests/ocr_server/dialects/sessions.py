"""Sessions that replay the events of a reader, for the tests of what a dialect makes of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.modes import MODES
from ocr_server.intake.document import Document
from ocr_server.intake.source import Source, Url
from ocr_server.intake.source_page import SourcePage
from ocr_server.memory import MemoryBudget
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats import Format
from ocr_server.output.formats.raw import RAW
from ocr_server.plan import PlannedSource, ReadPlan
from ocr_server.reading.admission import Admission
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import Event, Piece, Reader
from ocr_server.session import Account, Session


class FakeDocument(Document):
    """A document whose pages are never decoded."""

    closed = False

    async def page(self, number: int) -> SourcePage:
        raise AssertionError("a replayed session loads no page")

    async def close(self) -> None:
        self.closed = True


class ReplayedReader:
    """A reader that yields prepared events, whatever it is asked to read."""

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self._events = events

    def read(self, *_: Any, **__: Any) -> AsyncGenerator[Event]:
        return self._events


def replayed(
    events: AsyncGenerator[Event],
    *,
    indices: Sequence[Sequence[int]] = ((0,),),
    is_document: bool = False,
    artifacts: Artifacts | None = None,
    show_pages: bool = False,
    text: Format = RAW,
    size_bytes: int = 1000,
) -> Session:
    """A session that yields `events`.

    Args:
        indices: Of each document, the indices of its pages from 0.
        is_document: Whether the documents are more than single pictures.
        artifacts: What the plan wants of each page.
        text: The format of the answer's text.
        size_bytes: Size of each document.
    """
    documents = [FakeDocument(each, size_bytes, is_document=is_document) for each in indices]
    plan = ReadPlan(
        family=DEEPSEEK_OCR,
        sources=tuple(
            PlannedSource(Source(Url("data:")), MODES["tiny"], {"file": "file", "pages": "pages"}) for _ in indices
        ),
        prompt="Free OCR.",
        decoding=Decoding(),
        artifacts=artifacts or Artifacts(),
        text=text,
        show_pages=show_pages,
    )
    ticket = Admission(slots=1, most_waiting=1).enter()
    session = Session(plan, cast(Reader, ReplayedReader(events)), ticket, documents, Account(), MemoryBudget(10**9))
    ticket.expect(len(session.jobs))
    return session


async def events_of(readings: Sequence[PageReading]) -> AsyncGenerator[Event]:
    """What a reader yields for these pages: the pieces of each and then its reading."""
    for reading in readings:
        for delta in reading.deltas:
            yield Piece(reading.index, delta)
        yield reading
