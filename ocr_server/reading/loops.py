"""Pages on which the model begins to repeat itself, its best-known failure.

The engine ends a page that has said the same thing several times over. It is then read again with a guard
that forbids more, and, if it loops still, in another resolution mode with that guard.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from vllm.sampling_params import RepetitionDetectionParams, SamplingParams

from deepseek_ocr.modes import MODES
from deepseek_ocr.no_repeat_ngram import Guard
from ocr_server.reading.page import Attempt, Job

LoopPolicy = Literal["off", "end", "retry"]
"""Let a looping page run on to its limit; end it early; or end it and read it again."""

REPETITION = "repetition"
"""The finish reason of a page that was ended for looping."""

# The engine looks at every pattern length in this range after each token. A loop of a shorter period is one of
# some multiple in the range too, so that all periods up to 96 are found.
SHORTEST, LONGEST = 48, 96
TIMES = 4

STRICT_NGRAM_SIZE = 20
STRICT_WINDOW_SIZE = 1024


def with_detection(params: SamplingParams) -> SamplingParams:
    """The same parameters, with the engine watching for loops."""
    watched = params.clone()
    watched.repetition_detection = RepetitionDetectionParams(
        min_pattern_size=SHORTEST, max_pattern_size=LONGEST, min_count=TIMES
    )
    return watched


def next_attempt(job: Job, past: list[Attempt]) -> Job | None:
    """How to read a page that has looped in all `past` attempts; None if there is nothing left to try."""
    if len(past) > 2:
        return None
    guard = Guard.of(job.params)
    size = min(guard.ngram_size or STRICT_NGRAM_SIZE, STRICT_NGRAM_SIZE)
    stricter = replace(guard, ngram_size=size, window_size=max(guard.window_size, STRICT_WINDOW_SIZE))
    params = job.params.clone()
    params.extra_args = {**(params.extra_args or {}), **stricter.to_args()}
    mode = job.mode
    if len(past) == 2:
        mode = MODES["gundam"] if job.mode == MODES["base"] else MODES["base"]
    return replace(job, params=params, mode=mode)


def attempt(job: Job, finish_reason: str | None) -> Attempt:
    guard = Guard.of(job.params)
    return Attempt(job.mode, guard.ngram_size, guard.window_size, finish_reason)
