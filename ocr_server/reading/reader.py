"""Many pages, read at once and answered in order. Every endpoint reads through here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from deepseek_ocr.families import Family, mode_name
from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import ReadError, Unavailable
from ocr_server.intake.source_page import SourcePage
from ocr_server.observability.metrics import ENGINE_SECONDS, INTAKE_SECONDS, QUEUE_SECONDS
from ocr_server.observability.tracing import stage
from ocr_server.reading.engine import Engine
from ocr_server.reading.loops import REPETITION, LoopPolicy, attempt, next_attempt
from ocr_server.reading.page import Job, Page, PageDelta, PageReading

PAGE_SEPARATOR = "\n\n<--- Page Split --->\n\n"

Prepare = Callable[[SourcePage, ResolutionMode], Awaitable[PreparedImage]]
Finish = Callable[[PageReading, SourcePage], Awaitable[object]]
"""Makes what an endpoint wants beside the text, while the page's picture is still there."""
Show = Callable[[SourcePage], Awaitable[bytes]]
"""Makes the picture of a page that is shown before it is read."""


class Turns(Protocol):
    """Says when the next page of a request may be loaded and read (see `admission`)."""

    async def acquire(self) -> None: ...

    def release(self) -> None: ...


AHEAD = 4
"""Pages begun before the first of them has been answered, in multiples of those read at once: one long page does
not hold up those behind it, and a client that reads slowly does not pile up a thousand answers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a page's answer, with the page it belongs to."""

    page: int
    delta: PageDelta


@dataclass(frozen=True, slots=True)
class Opened:
    """A page is about to be read, and looks like this."""

    reading: PageReading
    picture: bytes


Event = Opened | Piece | PageReading


class Reader:
    """Reads pages with one engine."""

    def __init__(
        self, engine: Engine, prepare: Prepare, *, family: Family, at_once: int, loops: LoopPolicy = "retry"
    ) -> None:
        """Args:
        at_once: most pages of one request whose pictures are in memory and which the engine reads.
        loops: what to do about pages on which the model repeats itself.
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
        """Read all pages concurrently and yield, page after page, each page's pieces and then its reading; with `show`,
        before them, how it looks.

        With `live`, the pieces of the page whose turn it is come as they are made; without, once the page is
        done. A page that loops is read again unless pieces of it are out already. Closing the generator aborts
        every page that is still being read.

        Each page is loaded when it has a turn from `ticket`, and gives it back when it is read.

        A page that fails is a reading with an error, as long as there is a page that doesn't fail.

        Raises:
            Unavailable: the engine has stopped.
            ReadError: all pages failed; the error of the first.
        """
        work = _Work(self, jobs, ticket, show, finish)
        withheld: list[PageReading] = []
        first_error: ReadError | None = None
        succeeded = False
        try:
            for slot in work.slots:
                async with aclosing(slot.events(live)) as events:
                    async for event in events:
                        if isinstance(event, PageReading):
                            first_error = first_error or event.error
                            succeeded = succeeded or event.error is None
                            if not succeeded:
                                withheld.append(event)  # an error of the whole request, if no page does better
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
        """Read the page of `slot`, as often as it takes."""
        reading = slot.reading
        try:
            source: SourcePage | None = None
            trial: Job | None = job
            while trial is not None:
                source = await self._attempt(slot, trial, source, show)
                reading.attempts.append(attempt(trial, reading.finish_reason()))
                trial = None
                if self._loops == "retry" and reading.finish_reason() == REPETITION and slot.begin_again(job):
                    trial = next_attempt(job, reading.attempts, self._family)
            if finish is not None and source is not None:
                with stage("output", ocr_page=reading.index):
                    reading.artifacts = await finish(reading, source)
        except Unavailable:
            raise
        except ReadError as error:
            reading.error = error

    async def _attempt(self, slot: _Slot, job: Job, source: SourcePage | None, show: Show | None) -> SourcePage:
        """Read the page once, and load it if it has not been; the picture that was read."""
        reading = slot.reading
        mode = mode_name(job.mode) or "custom"
        with stage("intake", INTAKE_SECONDS, ocr_page=reading.index, ocr_mode=mode):
            if source is None:
                source = await job.load()
                reading.width, reading.height = source.size
                reading.dpi = source.dpi
                if show is not None:
                    slot.open(await show(source))
            image = await self._prepare(source, job.mode)
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
        return source


class _Work:
    """The pages of one request under way, begun in order and within bounds."""

    def __init__(
        self, reader: Reader, jobs: Sequence[Job], ticket: Turns, show: Show | None, finish: Finish | None
    ) -> None:
        self.slots = [_Slot(PageReading(index, job.source, job.number)) for index, job in enumerate(jobs)]
        self._reader = reader
        self._jobs = jobs
        self._ticket = ticket
        self._show = show
        self._finish = finish
        self._at_once = asyncio.Semaphore(reader._at_once)
        self._ahead = asyncio.Semaphore(AHEAD * reader._at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._all())

    def answered(self) -> None:
        """One page has been passed on."""
        self._ahead.release()

    async def stop(self) -> None:
        while self._tasks:  # the one that begins the others may have begun one more
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            self._tasks = {task for task in self._tasks if not task.done()}

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _all(self) -> None:
        for slot, job in zip(self.slots, self._jobs, strict=True):
            await self._ahead.acquire()
            await self._at_once.acquire()
            with stage("queue", QUEUE_SECONDS, ocr_page=slot.reading.index):
                await self._ticket.acquire()
            # Not in a `finally` of the page's own: cancelled before its first step, it would not get there.
            self._begin(self._one(slot, job)).add_done_callback(self._give_back)

    def _give_back(self, _: object) -> None:
        self._ticket.release()
        self._at_once.release()

    async def _one(self, slot: _Slot, job: Job) -> None:
        try:
            await self._reader.read_page(slot, job, self._show, self._finish)
            slot.end()
        except Exception as error:
            slot.end(error)


class _Slot:
    """Where the pieces of one page wait for its turn."""

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

    def begin_again(self, job: Job) -> bool:
        """Whether the page can be read anew: nobody has seen any of it, and it has one answer."""
        return self._passed_on == 0 and job.decoding.n == 1

    async def events(self, live: bool) -> AsyncGenerator[Event]:
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
