"""Pages on which the model repeats itself, its best-known failure.

The engine ends a page that has produced the same text several times. The page is then read again with a stricter
guard and, if it still repeats itself, in another resolution mode with that guard.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from deepseek_ocr.families import Family
from ocr_server.reading.page import Attempt, Job

LoopPolicy = Literal["off", "end", "retry"]
"""Let a page that repeats itself run on to its limit; end it early; or end it and read it again."""

REPETITION = "repetition"
"""Finish reason of a page that was ended because it repeated itself."""

STRICT_NGRAM_SIZE = 20
STRICT_WINDOW_SIZE = 1024


def next_attempt(job: Job, past: list[Attempt], family: Family) -> Job | None:
    """How to read a page that has repeated itself in all `past` attempts; None if nothing is left to try."""
    if len(past) > 2:
        return None
    guard = job.decoding.guard
    stricter = replace(
        guard,
        ngram_size=min(guard.ngram_size or STRICT_NGRAM_SIZE, STRICT_NGRAM_SIZE),
        window_size=max(guard.window_size, STRICT_WINDOW_SIZE),
    )
    mode = job.mode
    if len(past) == 2:
        first, second = (family.modes[name] for name in family.retry_modes)
        mode = second if job.mode == first else first
    return replace(job, decoding=replace(job.decoding, guard=stricter), mode=mode)


def attempt(job: Job, finish_reason: str | None) -> Attempt:
    """A record of how a page was read."""
    guard = job.decoding.guard
    return Attempt(job.mode, guard.ngram_size, guard.window_size, finish_reason)
