"""What a run shows of itself on standard error: a bar where it is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
import unicodedata
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY = 30.0
"""Seconds, where there is no terminal."""


def plain(text: str) -> str:
    """What may be shown in a terminal: names, messages and pages could hold its control sequences."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign)[0] == "C" and sign not in "\n\t" else sign
        for sign in text
    )


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("– pages/s" if task.speed is None else f"{task.speed:.2f} pages/s")


class RunProgress:
    """Counts pages and documents, and shows them. Pages from an earlier run count for themselves: they took no time."""

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.documents_done = 0
        self.documents_failed = 0
        self.pages = 0
        """Read in this run."""
        self.pages_failed = 0
        self.pages_cut = 0
        """Not whole: too long, or the model repeated itself."""
        self.pages_before = 0
        """Taken from an earlier run."""
        self._expected = 0
        """Pages to read of the documents whose pages have been counted."""
        self._counted: set[str] = set()
        """Those documents."""
        self._settled: set[str] = set()
        """Those, and the ones that failed before their pages were counted."""
        self._started = self._last_line = time.monotonic()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            _Speed(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, state="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back as it was."""
        self._bar.stop()

    def counted(self, source: str, pages: int) -> None:
        """A document turns out to have so many pages to read."""
        self._expected += pages
        self._counted.add(source)
        self._settled.add(source)
        self._show()

    def before(self, pages: int) -> None:
        self.pages_before += pages

    def page(self, finish_reason: str) -> None:
        self.pages += 1
        self.pages_failed += finish_reason == "error"
        self.pages_cut += finish_reason in ("length", "repetition")
        self._bar.advance(self._task)
        self._show()

    def document(self, source: str, *, failed: bool) -> None:
        self._settled.add(source)
        self.documents_done += 1
        self.documents_failed += failed
        self._show()

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._console.print(Text(plain(message)))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def _show(self) -> None:
        total = self._estimate()
        about = "~" if len(self._settled) < self.documents else ""
        state = f"{self.pages}/{about}{total} pages, {self.documents_done}/{self.documents} documents"
        if self.pages_before:
            state += f", {self.pages_before} from before"
        if failures := self.pages_failed + self.documents_failed:
            state += f", {failures} failed"
        self._bar.update(self._task, total=total or None, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            left = (total - self.pages) * self.seconds / self.pages if self.pages else 0
            self.say(f"{state}, {self.pages / self.seconds:.2f} pages/s, about {left / 60:.0f} min left")

    def _estimate(self) -> int:
        """Pages of this run: those of documents not yet opened are taken for as many as the others have."""
        unknown = self.documents - len(self._settled)
        return self._expected + round(unknown * (self._expected / len(self._counted) if self._counted else 1))


def error(message: str) -> None:
    """One line on standard error."""
    print(f"error: {plain(message)}", file=sys.stderr)
