"""Progress of a run on standard error: a progress bar on a terminal, and otherwise a line every 30 seconds."""

from __future__ import annotations

import sys
import time
import unicodedata
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_INTERVAL = 30.0
"""Seconds between progress lines if standard error is not a terminal."""


def replace_control_characters(text: str) -> str:
    """Return `text` with control characters replaced, except for newlines and tabs.

    File names, messages and pages can contain control sequences of terminals, so they must pass through this function
    before they are printed.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char)[0] == "C" and char not in "\n\t" else char
        for char in text
    )


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("– pages/s" if task.speed is None else f"{task.speed:.2f} pages/s")


class RunProgress:
    """Counts and displays the pages and documents of a run.

    Pages from an earlier run are counted separately, so that they do not distort the speed and the remaining time.
    """

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.documents_done = 0
        self.documents_failed = 0
        self.pages = 0
        """Pages that were read in this run."""
        self.pages_failed = 0
        self.pages_incomplete = 0
        """Pages that are cut off, because they were too long or the model repeated itself."""
        self.pages_resumed = 0
        """Pages that were already there from an earlier run."""
        self._expected = 0
        """Pages to read in the documents whose page count is known."""
        self._counted: set[str] = set()
        """Documents whose page count is known."""
        self._settled: set[str] = set()
        """Those documents, and the ones that failed before their page count was known."""
        self._started = self._last_line = time.monotonic()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            _SpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, state="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        self._update()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the progress bar and restore the terminal."""
        self._bar.stop()

    def add_page_count(self, source: str, pages: int) -> None:
        """Record how many pages of a document have to be read, once this is known."""
        self._expected += pages
        self._counted.add(source)
        self._settled.add(source)
        self._update()

    def add_resumed_pages(self, pages: int) -> None:
        """Count pages that were already there from an earlier run."""
        self.pages_resumed += pages

    def finish_page(self, finish_reason: str) -> None:
        """Count a page that was read in this run."""
        self.pages += 1
        self.pages_failed += finish_reason == "error"
        self.pages_incomplete += finish_reason in ("length", "repetition")
        self._bar.advance(self._task)
        self._update()

    def finish_document(self, source: str, *, failed: bool) -> None:
        """Count a document that is done or has failed."""
        self._settled.add(source)
        self.documents_done += 1
        self.documents_failed += failed
        self._update()

    def print(self, message: str) -> None:
        """Print a line above the progress bar."""
        self._console.print(Text(replace_control_characters(message)))

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._started

    def _update(self) -> None:
        total = self._estimate()
        about = "~" if len(self._settled) < self.documents else ""
        state = f"{self.pages}/{about}{total} pages, {self.documents_done}/{self.documents} documents"
        if self.pages_resumed:
            state += f", {self.pages_resumed} from an earlier run"
        if failures := self.pages_failed + self.documents_failed:
            state += f", {failures} failed"
        self._bar.update(self._task, total=total or None, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_INTERVAL:
            self._last_line = now
            left = (total - self.pages) * self.seconds / self.pages if self.pages else 0
            self.print(f"{state}, {self.pages / self.seconds:.2f} pages/s, about {left / 60:.0f} min left")

    def _estimate(self) -> int:
        """Return the expected number of pages of this run.

        A document whose page count is not known yet is assumed to have the average page count of the others.
        """
        unknown = self.documents - len(self._settled)
        return self._expected + round(unknown * (self._expected / len(self._counted) if self._counted else 1))


def print_error(message: str) -> None:
    """Print an error message as one line on standard error."""
    print(f"error: {replace_control_characters(message)}", file=sys.stderr)
