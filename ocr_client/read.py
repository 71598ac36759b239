"""Reading many documents: some at a time, each page kept as it comes, troubles waited out."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ocr_client.lines import Lines
from ocr_client.progress import RunProgress
from ocr_client.selection import Selection, ranges
from ocr_client.server import KeyRefused, PageRead, Patience, ReadOptions, Refused, Server, Trouble, Unreachable
from ocr_client.sources import Source
from ocr_client.store import Record, Store, page_error

ALL_READ, SOME_FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""

MOST_BROKEN = 5
"""Times in a row that the server may break off a document without a single page of it: then the document is what
breaks it."""


@dataclass(frozen=True)
class Wanted:
    """What is made of each document."""

    options: ReadOptions
    selection: Selection
    overlays: bool = False
    retry_failed: bool = False


OF_ALL = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors in writing that no other document would be spared."""


class Run:
    """One run of the command over all its documents."""

    def __init__(
        self, server: Server, out: Path, wanted: Wanted, *, patience: float, lines: Lines, resumable: bool
    ) -> None:
        """Args:
        patience: seconds for which the server may be away.
        lines: told of what is done.
        resumable: whether `out` stays.
        """
        self._server = server
        self._out = out
        self._wanted = wanted
        self._lines = lines
        self._seconds = patience
        self._resumable = resumable
        self._begun = False
        self._interrupted = False

    async def read(self, sources: Sequence[Source], *, at_once: int) -> int:
        """Read all of `sources`; the exit code."""
        with RunProgress(len(sources)) as progress:
            self._progress = progress
            self._patience = Patience(self._seconds, progress.say)
            task = asyncio.create_task(self._read(sources, at_once))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._interrupt, task)
            code = await task
        if self._begun:
            self._sum_up(code)
        return code

    async def _read(self, sources: Sequence[Source], at_once: int) -> int:
        waiting = iter(sources)

        async def work() -> None:
            for source in waiting:
                await self._document(source)

        try:
            await self._server.greet()
            self._begun = True
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(sources))):
                    group.create_task(work())
        except asyncio.CancelledError:
            return INTERRUPTED
        except (Unreachable, KeyRefused) as error:
            return self._end(error)
        except BaseExceptionGroup as errors:
            for found in errors.exceptions:
                if isinstance(found, Unreachable | KeyRefused | OSError):
                    return self._end(found)
            raise
        return SOME_FAILED if self._progress.documents_failed else ALL_READ

    def _end(self, error: Unreachable | KeyRefused | OSError) -> int:
        """The exit code of a run that one error ends."""
        if isinstance(error, BrokenPipeError):
            return SOME_FAILED  # nobody reads standard output any more, as with head
        self._progress.say(f"error: {_words(error) if isinstance(error, OSError) else error}")
        if isinstance(error, OSError):
            return SOME_FAILED
        return UNREACHABLE if isinstance(error, Unreachable) else USAGE

    async def _document(self, source: Source) -> None:
        """Read one document; what goes wrong with it is said, and others go on."""
        error: str | None = None
        failed_pages: list[int] = []
        try:
            sha256 = await asyncio.to_thread(source.sha256)
            options = self._wanted.options
            store = Store(
                self._out / source.place, Record(source=source.name, sha256=sha256, options=options.identity())
            )
            indices = await self._pages(source, store)
            failed_pages = [index + 1 for index in indices if store.done[index] == "error"]
            if self._wanted.overlays:
                await self._overlay(source, store, [index for index in indices if store.done[index] != "error"])
        except Refused as refused:
            error = str(refused)
        except OSError as system:
            if system.errno in OF_ALL:
                raise
            error = _words(system)
        if failed_pages and error is None:
            error = f"page {ranges(failed_pages)} could not be read: {page_error(store.page(failed_pages[0] - 1))}"
        if error is not None:
            self._progress.say(f"failed: {source.name}: {error}")
        self._lines.document(source.name, output=self._output(source), failed_pages=failed_pages, error=error)
        self._progress.document(source.name, failed=error is not None)

    async def _pages(self, source: Source, store: Store) -> list[int]:
        """Have all selected pages in the store; their indices."""
        wanted = self._wanted
        if wanted.retry_failed:
            store.forget_failures()
        if store.record.error is not None:
            raise Refused(f"{store.record.error['message']} (as before; --retry-failed tries again)", status=400)
        indices = wanted.selection.indices(store.record.page_count)
        store.begin(indices)
        kept = [] if indices is None else [index for index in indices if index in store.done]
        self._progress.before(len(kept))
        for index in kept:
            self._lines.page(source.name, store.page(index), from_before=True)
        if indices is not None:
            self._progress.counted(source.name, len(indices) - len(kept))
        tries = _Tries(self._patience)
        while indices is None or store.missing(indices):
            progressed = False
            try:
                pages = wanted.selection.request() if indices is None else ranges(store.missing(indices))
                async with aclosing(self._server.pages(source, wanted.options, pages)) as events:
                    async for read in events:
                        if indices is None:
                            indices = self._counted(source, store, read.total)
                        if read.index in indices:
                            progressed = True
                            tries.rewarded()
                            self._keep(source, store, read)
                if not progressed:
                    raise Refused("The server left pages out.", status=200)
            except Trouble as trouble:
                await tries.after(trouble)
            except Refused as refused:
                if refused.code == "invalid_pages":  # the server's words count pages from 0
                    raise Refused(
                        "The document does not have all the pages that --pages names.", status=400
                    ) from refused
                if not _is_final(refused):
                    raise
                if indices is None or not store.done:
                    store.failed(refused)
                    raise
                for index in store.missing(indices):  # the document could be opened before, so it is these pages
                    error = {"message": str(refused), "code": refused.code}
                    page = {"markdown": "", "images": [], "finish_reason": "error", "error": error}
                    self._keep(source, store, PageRead(index, 0, page))
        store.finish(indices)
        return indices

    def _counted(self, source: Source, store: Store, selected: int) -> list[int]:
        """The document has been opened: the selected pages."""
        page_count = self._wanted.selection.page_count(selected)
        assert page_count is not None, "only selections with an open end wait for it"
        store.counted(page_count)
        indices = self._wanted.selection.indices(page_count) or []
        self._progress.counted(source.name, len(indices))
        return indices

    def _keep(self, source: Source, store: Store, read: PageRead) -> None:
        page = store.keep(read.index, read.page)
        self._progress.page(store.done[read.index])
        self._lines.page(source.name, page, from_before=False)

    async def _overlay(self, source: Source, store: Store, indices: list[int]) -> None:
        """The pages with their blocks drawn on them; the server reads them again for it."""
        tries = _Tries(self._patience)
        while indices and not store.has_overlay(indices):
            try:
                kind, data = await self._server.overlay(source, self._wanted.options, ranges(indices))
            except Trouble as trouble:
                await tries.after(trouble)
            else:
                tries.rewarded()
                store.keep_overlay(indices, kind, data)

    def _output(self, source: Source) -> str | None:
        return str(self._out / source.place) if self._resumable else None

    def _interrupt(self, task: asyncio.Task[int]) -> None:
        """The first time, end in good order; the second time, at once."""
        if self._interrupted:
            self._progress.stop()
            os._exit(INTERRUPTED)
        self._interrupted = True
        task.cancel()

    def _sum_up(self, code: int) -> None:
        done = self._progress
        rate = f" ({done.pages / done.seconds:.2f} pages/s)" if done.pages else ""
        before = f", {_count(done.pages_before, 'page')} from before" if done.pages_before else ""
        documents = f"{done.documents_done} of {_count(done.documents, 'document')}"
        done.say(f"{_count(done.pages, 'page')} read in {done.seconds:.1f} s{rate}{before}; {documents} done.")
        if done.pages_cut:
            done.say(f"{_count(done.pages_cut, 'page')} not whole: too long, or the model repeated itself.")
        if done.documents_failed:
            done.say(f"{_count(done.documents_failed, 'document')} failed; --retry-failed tries again what failed.")
        if code in (INTERRUPTED, UNREACHABLE) and self._resumable:
            done.say("What is done is kept: the same command goes on from there.")


class _Tries:
    """At one document."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._broken = 0

    def rewarded(self) -> None:
        self._broken = 0
        self._patience.rewarded()

    async def after(self, trouble: Trouble) -> None:
        """Pause before the next try.

        Raises:
            Refused: it is this document that the server breaks off at, time and again.
            Unreachable: patience is at its end.
        """
        self._broken += trouble.under_way
        if self._broken >= MOST_BROKEN:
            raise Refused(f"{trouble} So it was {MOST_BROKEN} times in a row.", status=500)
        await self._patience.wait(trouble)


def _is_final(refused: Refused) -> bool:
    """Whether it is the content of the document that can't be read, whatever else is asked."""
    code = refused.code or ""
    passing = (
        code in ("invalid_pages", "too_many_pages") or code.startswith("pdf_password") or code.endswith("_timeout")
    )
    return refused.status == 400 and (refused.param or "").startswith("document") and not passing


def _words(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
