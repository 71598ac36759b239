"""Retries pages on which the model repeats itself, which is its best-known failure.

The engine ends a page when it has generated the same text several times. The page is then read again with a stricter
n-gram guard and, if it still repeats itself, with that guard in another resolution mode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from deepseek_ocr.families import Family
from ocr_server.reading.page import Attempt, Job

LoopPolicy = Literal["off", "end", "retry"]
"""What happens to a page that repeats itself: it runs on to its limit, is ended early, or is ended and read again."""

REPETITION = "repetition"
"""Finish reason of a page that was ended because the model repeated itself."""

STRICT_NGRAM_SIZE = 20
STRICT_WINDOW_SIZE = 1024
"""The guard of further attempts, unless the request's own is stricter."""


def next_attempt(job: Job, past: list[Attempt], family: Family) -> Job | None:
    """Return how to read a page again on which the model repeated itself, or None if nothing is left to try.

    Args:
        job: The page as it was read first.
        past: All attempts so far.
        family: Gives the other resolution modes to try.
    """
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
    """Return the record of an attempt to read a page."""
    guard = job.decoding.guard
    return Attempt(job.mode, guard.ngram_size, guard.window_size, finish_reason)
