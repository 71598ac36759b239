"""Reads documents concurrently, saves each page as it is finished, and retries after temporary failures."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from ocr_client.client import (
    DocumentRejected,
    InvalidApiKey,
    OcrClient,
    PageResult,
    ReadOptions,
    RetryTimer,
    ServerUnavailable,
    TemporaryFailure,
    UnknownMode,
)
from ocr_client.output import Output
from ocr_client.progress import RunProgress
from ocr_client.results import Record, ResultStore, page_error
from ocr_client.selection import PageSelection, format_ranges
from ocr_client.sources import SourceFile

SUCCESS, SOME_FAILED, USAGE_ERROR, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""

MAX_ATTEMPTS = 5
"""Number of times in a row that the server may fail while processing a document, without returning a page of it. After
that, the document is assumed to be the cause."""


@dataclass(frozen=True)
class RunOptions:
    """What to do with each document."""

    options: ReadOptions
    selection: PageSelection
    overlays: bool = False
    retry_failed: bool = False


FATAL_ERRORS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors when writing that would affect every other document as well, so that the run ends."""


class Run:
    """One run of the command over all of its documents."""

    def __init__(
        self, client: OcrClient, out: Path, options: RunOptions, *, patience: float, output: Output, resumable: bool
    ) -> None:
        """Args:
        client: the server to use.
        out: folder for the results.
        options: what to do with each document.
        patience: seconds for which the server may be unavailable.
        output: receives pages and documents as they are finished.
        resumable: whether `out` still exists after the run, so that the run can be continued.
        """
        self._client = client
        self._out = out
        self._options = options
        self._output = output
        self._patience = patience
        self._resumable = resumable
        self._started = False
        self._interrupted = False

    async def read(self, sources: Sequence[SourceFile], *, concurrency: int) -> int:
        """Read all documents and return the exit code.

        Args:
            sources: the documents.
            concurrency: maximum number of documents that are read at the same time.
        """
        with RunProgress(len(sources)) as progress:
            self._progress = progress
            self._retry_timer = RetryTimer(self._patience, progress.print)
            task = asyncio.create_task(self._read(sources, concurrency))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._interrupt, task)
            code = await task
        if self._started:
            self._print_summary(code)
        return code

    async def _read(self, sources: Sequence[SourceFile], concurrency: int) -> int:
        waiting = iter(sources)

        async def work() -> None:
            for source in waiting:
                await self._read_document(source)

        try:
            await self._client.check_connection(self._options.options.mode)
            self._started = True
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(sources))):
                    group.create_task(work())
        except asyncio.CancelledError:
            return INTERRUPTED
        except (ServerUnavailable, InvalidApiKey, UnknownMode) as error:
            return self._report_fatal(error)
        except BaseExceptionGroup as errors:
            for fatal in errors.exceptions:
                if isinstance(fatal, ServerUnavailable | InvalidApiKey | OSError):
                    return self._report_fatal(fatal)
            raise
        return SOME_FAILED if self._progress.documents_failed else SUCCESS

    def _report_fatal(self, error: ServerUnavailable | InvalidApiKey | UnknownMode | OSError) -> int:
        """Print an error that ends the run, and return the exit code."""
        if isinstance(error, BrokenPipeError):
            return SOME_FAILED  # the reader of standard output has closed it, as `head` does
        self._progress.print(f"error: {_describe(error) if isinstance(error, OSError) else error}")
        if isinstance(error, OSError):
            return SOME_FAILED
        return UNAVAILABLE if isinstance(error, ServerUnavailable) else USAGE_ERROR

    async def _read_document(self, source: SourceFile) -> None:
        """Read one document. Errors that concern only this document are reported, not raised."""
        error: str | None = None
        failed_pages: list[int] = []
        try:
            sha256 = await asyncio.to_thread(source.sha256)
            options = self._options.options
            store = ResultStore(
                self._out / source.output_path, Record(source=source.name, sha256=sha256, options=options.identity())
            )
            indices = await self._read_pages(source, store)
            failed_pages = [index + 1 for index in indices if store.done[index] == "error"]
            if self._options.overlays:
                await self._read_overlay(source, store, [index for index in indices if store.done[index] != "error"])
        except DocumentRejected as rejected:
            error = str(rejected)
        except OSError as os_error:
            if os_error.errno in FATAL_ERRORS:
                raise
            error = _describe(os_error)
        if failed_pages and error is None:
            reason = page_error(store.load_page(failed_pages[0] - 1))
            error = f"page {format_ranges(failed_pages)} could not be read: {reason}"
        if error is not None:
            self._progress.print(f"failed: {source.name}: {error}")
        self._output.write_document(
            source.name, output=self._output_folder(source), failed_pages=failed_pages, error=error
        )
        self._progress.finish_document(source.name, failed=error is not None)

    async def _read_pages(self, source: SourceFile, store: ResultStore) -> list[int]:
        """Read the selected pages that are not in the store yet, and return the indices of all selected pages."""
        options = self._options
        if options.retry_failed:
            store.clear_failures()
        if store.record.error is not None:
            message = store.record.error["message"]
            raise DocumentRejected(f"{message} (from an earlier run; use --retry-failed to try again)", status=400)
        indices = options.selection.indices(store.record.page_count)
        store.prepare(indices)
        saved = [] if indices is None else [index for index in indices if index in store.done]
        self._progress.add_resumed_pages(len(saved))
        for index in saved:
            self._output.write_page(source.name, store.load_page(index), from_before=True)
        if indices is not None:
            self._progress.add_page_count(source.name, len(indices) - len(saved))
        attempts = _Attempts(self._retry_timer)
        while indices is None or store.missing(indices):
            progressed = False
            try:
                pages = options.selection.to_api() if indices is None else format_ranges(store.missing(indices))
                async with aclosing(self._client.read_pages(source, options.options, pages)) as results:
                    async for result in results:
                        if indices is None:
                            indices = self._set_page_count(source, store, result.total)
                        if result.index in indices:
                            progressed = True
                            attempts.reset()
                            self._save_page(source, store, result)
                if not progressed:
                    raise DocumentRejected("The server did not return all of the pages.", status=200)
            except TemporaryFailure as failure:
                await attempts.wait(failure)
            except DocumentRejected as rejected:
                if rejected.code == "invalid_pages":  # the server's message counts pages from 0
                    raise DocumentRejected(
                        "The document does not have all the pages given with --pages.", status=400
                    ) from rejected
                if not _is_permanent(rejected):
                    raise
                if indices is None or not store.done:
                    store.save_error(rejected)
                    raise
                # The document could be opened before, so the error is about the pages that are missing.
                for index in store.missing(indices):
                    error = {"message": str(rejected), "code": rejected.code}
                    page = {"markdown": "", "images": [], "finish_reason": "error", "error": error}
                    self._save_page(source, store, PageResult(index, 0, page))
        store.finish(indices)
        return indices

    def _set_page_count(self, source: SourceFile, store: ResultStore, selected: int) -> list[int]:
        """Record the page count of a document that the server has opened, and return the selected pages."""
        page_count = self._options.selection.page_count(selected)
        assert page_count is not None, "only an open range of pages depends on the page count"
        store.set_page_count(page_count)
        indices = self._options.selection.indices(page_count) or []
        self._progress.add_page_count(source.name, len(indices))
        return indices

    def _save_page(self, source: SourceFile, store: ResultStore, result: PageResult) -> None:
        page = store.save_page(result.index, result.page)
        self._progress.finish_page(store.done[result.index])
        self._output.write_page(source.name, page, from_before=False)

    async def _read_overlay(self, source: SourceFile, store: ResultStore, indices: list[int]) -> None:
        """Save the pages with their blocks drawn on them. The server reads the pages a second time for this."""
        attempts = _Attempts(self._retry_timer)
        while indices and not store.has_overlay(indices):
            try:
                kind, data = await self._client.read_overlay(source, self._options.options, format_ranges(indices))
            except TemporaryFailure as failure:
                await attempts.wait(failure)
            else:
                attempts.reset()
                store.save_overlay(indices, kind, data)

    def _output_folder(self, source: SourceFile) -> str | None:
        return str(self._out / source.output_path) if self._resumable else None

    def _interrupt(self, task: asyncio.Task[int]) -> None:
        """Handle a signal: the first one stops the run cleanly, the second one stops the process immediately."""
        if self._interrupted:
            self._progress.stop()
            os._exit(INTERRUPTED)
        self._interrupted = True
        task.cancel()

    def _print_summary(self, code: int) -> None:
        run = self._progress
        rate = f" ({run.pages / run.seconds:.2f} pages/s)" if run.pages else ""
        resumed = f", {_plural(run.pages_resumed, 'page')} from an earlier run" if run.pages_resumed else ""
        documents = f"{run.documents_done} of {_plural(run.documents, 'document')}"
        run.print(f"{_plural(run.pages, 'page')} read in {run.seconds:.1f} s{rate}{resumed}; {documents} done.")
        if run.pages_incomplete:
            run.print(f"{_plural(run.pages_incomplete, 'page')} incomplete: too long, or the model repeated itself.")
        if run.documents_failed:
            run.print(f"{_plural(run.documents_failed, 'document')} failed. Use --retry-failed to try again.")
        if code in (INTERRUPTED, UNAVAILABLE) and self._resumable:
            run.print("Finished pages are saved. Run the same command again to continue.")


class _Attempts:
    """Limits the number of failed attempts to read one document."""

    def __init__(self, timer: RetryTimer) -> None:
        self._timer = timer
        self._failed = 0

    def reset(self) -> None:
        """Start anew, because the server has returned something."""
        self._failed = 0
        self._timer.reset()

    async def wait(self, failure: TemporaryFailure) -> None:
        """Pause before the next attempt.

        Raises:
            DocumentRejected: if the server has failed too often in a row while processing this document.
            ServerUnavailable: if the server has been unavailable for too long.
        """
        self._failed += failure.started
        if self._failed >= MAX_ATTEMPTS:
            raise DocumentRejected(f"{failure} This happened {MAX_ATTEMPTS} times in a row.", status=500)
        await self._timer.wait(failure)


def _is_permanent(rejected: DocumentRejected) -> bool:
    """Return whether the content of the document cannot be read, regardless of pages, password and load."""
    code = rejected.code or ""
    depends_on_request = (
        code in ("invalid_pages", "too_many_pages") or code.startswith("pdf_password") or code.endswith("_timeout")
    )
    is_about_content = (rejected.param or "").startswith(("file", "document"))  # `file` is the field of the upload
    return rejected.status == 400 and is_about_content and not depends_on_request


def _describe(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
