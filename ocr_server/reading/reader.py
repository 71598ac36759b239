"""Reads many pages at the same time, and returns them in order. Every endpoint uses this reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from deepseek_ocr.families import Family, mode_name
from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import ReadError, TooMany, Unavailable
from ocr_server.intake.source_page import KEPT_PIXELS, SourcePage
from ocr_server.memory import Reservation
from ocr_server.observability.metrics import ENGINE_SECONDS, INTAKE_SECONDS, QUEUE_SECONDS
from ocr_server.observability.tracing import stage
from ocr_server.reading.engine import Engine
from ocr_server.reading.loops import REPETITION, LoopPolicy, attempt, next_attempt
from ocr_server.reading.page import Job, Page, PageDelta, PageReading

PAGE_SEPARATOR = "\n\n<--- Page Split --->\n\n"
"""Stands between the texts of two pages, as in DeepSeek-OCR's own scripts."""

Prepare = Callable[[SourcePage, ResolutionMode], Awaitable[PreparedImage]]
"""Resizes and cuts a page for the engine."""
Load = Callable[[], Awaitable[SourcePage]]
"""Returns the page's picture, which is decoded again if it has not been kept."""
Finish = Callable[[PageReading, Load], Awaitable[object]]
"""Makes what an endpoint needs in addition to the text."""
Show = Callable[[SourcePage], Awaitable[bytes]]
"""Makes the picture that is shown to the client before the page is read."""


class Turns(Protocol):
    """Gives the pages of a request their turns to be loaded and read. `admission.Ticket` is one."""

    async def acquire(self) -> None: ...

    def release(self) -> None: ...


AHEAD = 4
"""How many pages are started ahead of the first unanswered one, as a multiple of `at_once`.

A long page does not delay the pages behind it, and a client that reads slowly does not fill the memory with answers.
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a page's answer, with the page it belongs to."""

    page: int
    delta: PageDelta


@dataclass(frozen=True, slots=True)
class Opened:
    """A page is about to be read. `picture` shows it."""

    reading: PageReading
    picture: bytes


Event = Opened | Piece | PageReading


class Reader:
    """Reads the pages of requests with an engine."""

    def __init__(
        self, engine: Engine, prepare: Prepare, *, family: Family, at_once: int, loops: LoopPolicy = "retry"
    ) -> None:
        """Args:
        engine: Reads the pages.
        prepare: Resizes and cuts a page for the engine.
        family: The family of the engine's model.
        at_once: Number of pages of one request that are in memory and in the engine at a time.
        loops: What to do with pages on which the model repeats itself.
        """
        self._engine = engine
        self._prepare = prepare
        self._at_once = at_once
        self._loops = loops
        self._family = family

    async def read(
        self,
        jobs: Sequence[Job],
        ticket: Turns,
        *,
        live: bool = False,
        show: Show | None = None,
        finish: Finish | None = None,
    ) -> AsyncGenerator[Event]:
        """Read all pages concurrently, and yield the events of each page in order.

        The events of a page are `Opened` (with `show` only), its pieces, and its reading. A page on which the model
        repeats itself is read again, unless pieces of it have been yielded already. Closing the generator aborts every
        page that is still being read.

        A page that fails is yielded as a reading with an error, provided that another page does not fail.

        Args:
            jobs: The pages.
            ticket: Gives each page the turn in which it is loaded and read.
            live: Whether the pieces of the first unanswered page are yielded as they are generated, and not once the
                page is done.
            show: Makes the picture of each page that is yielded before it is read.
            finish: Makes the artifacts of each page.

        Raises:
            Unavailable: The engine has stopped.
            ReadError: All pages failed. This is the error of the first.
        """
        work = _Work(self, jobs, ticket, show, finish)
        withheld: list[PageReading] = []
        first_error: ReadError | None = None
        succeeded = False
        try:
            while work.slots:
                slot = work.slots.popleft()
                async with aclosing(slot.events(live)) as events:
                    async for event in events:
                        if isinstance(event, PageReading):
                            first_error = first_error or event.error
                            succeeded = succeeded or event.error is None
                            if not succeeded:
                                withheld.append(event)  # an error of the whole request if all pages fail
                                continue
                        for reading in withheld:
                            yield reading
                        withheld.clear()
                        yield event
                work.answered()
            if first_error is not None and not succeeded:
                raise first_error
        finally:
            await work.stop()

    async def read_page(self, slot: _Slot, job: Job, show: Show | None, finish: Finish | None) -> None:
        """Read the page of `slot`, with as many attempts as are needed."""
        reading = slot.reading
        picture = _Picture(job)
        try:
            trial: Job | None = job
            while trial is not None:
                await self._attempt(slot, trial, picture, show, keep=finish is not None)
                reading.attempts.append(attempt(trial, reading.finish_reason()))
                trial = None
                if self._loops == "retry" and reading.finish_reason() == REPETITION and slot.can_be_read_again(job):
                    trial = next_attempt(job, reading.attempts, self._family)
            if finish is not None:
                with stage("output", ocr_page=reading.index):
                    reading.artifacts = await finish(reading, picture.load)
        except (Unavailable, TooMany):
            raise
        except ReadError as error:
            reading.error = error
        finally:
            picture.drop()

    async def _attempt(self, slot: _Slot, job: Job, picture: _Picture, show: Show | None, *, keep: bool) -> None:
        """Read the page once. `keep` says whether its picture is needed afterwards."""
        reading = slot.reading
        mode = mode_name(job.mode) or "custom"
        with stage("intake", INTAKE_SECONDS, ocr_page=reading.index, ocr_mode=mode):
            source = await picture.load()
            if not reading.attempts:
                reading.width, reading.height = source.size
                reading.dpi = source.dpi
                if show is not None:
                    slot.open(await show(source))
            image = await self._prepare(source, job.mode)
            del source
            picture.prepared(image, keep=keep and reading.width * reading.height <= KEPT_PIXELS)
        reading.image_tokens = image.num_tokens
        reading.deltas.clear()
        decoding = replace(job.decoding, detect_loops=self._loops != "off")
        with stage("engine", ENGINE_SECONDS, ocr_page=reading.index, ocr_mode=mode) as span:
            async with aclosing(self._engine.read(Page(image, job.prompt, decoding))) as deltas:
                async for delta in deltas:
                    slot.add(delta)
            span.set_attributes(
                {
                    "ocr.image_tokens": image.num_tokens,
                    "gen_ai.usage.input_tokens": reading.prompt_tokens,
                    "gen_ai.usage.output_tokens": reading.completion_tokens,
                    "gen_ai.response.finish_reasons": [reading.finish_reason() or "none"],
                }
            )


class _Picture:
    """The picture of a page, in memory only while it is needed."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._source: SourcePage | None = None
        self._memory: Reservation | None = None

    async def load(self) -> SourcePage:
        """Return the picture, decoded again if it has been dropped. Raises as `Job.load`."""
        if self._source is None:
            self.drop()  # who holds memory must not wait for more
            self._source = await self._job.load()
            self._memory = self._source.memory
        return self._source

    def prepared(self, image: PreparedImage, *, keep: bool) -> None:
        """Drop the picture unless `keep`, and reserve memory for its views instead of for decoding it."""
        kept = self._source.pixels.nbytes if self._source is not None and keep else 0
        if not keep:
            self._source = None
        if self._memory is not None:
            self._memory.resize(kept + image.nbytes)

    def drop(self) -> None:
        """Drop the picture, and give back the memory of it and its views."""
        self._source = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class _Work:
    """The pages of one request, started in order and within the limits."""

    def __init__(
        self, reader: Reader, jobs: Sequence[Job], ticket: Turns, show: Show | None, finish: Finish | None
    ) -> None:
        self.slots = deque(_Slot(PageReading(index, job.source, job.number)) for index, job in enumerate(jobs))
        """Pages that have not been yielded. Those that have been are not kept."""
        self._to_begin = deque(zip(self.slots, jobs, strict=True))
        self._reader = reader
        self._ticket = ticket
        self._show = show
        self._finish = finish
        self._at_once = asyncio.Semaphore(reader._at_once)
        self._ahead = asyncio.Semaphore(AHEAD * reader._at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._begin_all())

    def answered(self) -> None:
        """A page has been yielded completely."""
        self._ahead.release()

    async def stop(self) -> None:
        """Cancel all pages, and wait until they have ended."""
        while self._tasks:  # the task that starts the pages may have started another one
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            self._tasks = {task for task in self._tasks if not task.done()}

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _begin_all(self) -> None:
        while self._to_begin:
            slot, job = self._to_begin.popleft()
            await self._ahead.acquire()
            await self._at_once.acquire()
            with stage("queue", QUEUE_SECONDS, ocr_page=slot.reading.index):
                await self._ticket.acquire()
            # Not in a `finally` of the page's task, which would not run if the task is cancelled before its first step.
            self._begin(self._read(slot, job)).add_done_callback(self._give_back)

    def _give_back(self, _: object) -> None:
        self._ticket.release()
        self._at_once.release()

    async def _read(self, slot: _Slot, job: Job) -> None:
        try:
            await self._reader.read_page(slot, job, self._show, self._finish)
            slot.end()
        except Exception as error:
            slot.end(error)


class _Slot:
    """Keeps the events of a page until they are yielded."""

    def __init__(self, reading: PageReading) -> None:
        self.reading = reading
        self._opened: Opened | None = None
        self._passed_on = 0
        self._changed = asyncio.Event()
        self._done = False
        self._failure: Exception | None = None

    def open(self, picture: bytes) -> None:
        self._opened = Opened(self.reading, picture)
        self._changed.set()

    def add(self, delta: PageDelta) -> None:
        self.reading.deltas.append(delta)
        self._changed.set()

    def end(self, failure: Exception | None = None) -> None:
        self._done, self._failure = True, failure
        self._changed.set()

    def can_be_read_again(self, job: Job) -> bool:
        """Whether the page can be read again: none of its pieces have been yielded, and it has a single choice."""
        return self._passed_on == 0 and job.decoding.n == 1

    async def events(self, live: bool) -> AsyncGenerator[Event]:
        """Yield the page's events; its pieces as they come if `live`, else once the page is done."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._opened is not None:
                opened, self._opened = self._opened, None
                yield opened
            deltas = self.reading.deltas
            while (live or self._done) and self._passed_on < len(deltas):
                delta = deltas[self._passed_on]
                self._passed_on += 1
                yield Piece(self.reading.index, delta)
            if self._failure is not None:
                raise self._failure
            if self._done and self._passed_on == len(deltas):
                yield self.reading
                return
