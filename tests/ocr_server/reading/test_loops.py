"""How a page on which the model repeats itself is read again."""

from __future__ import annotations

import pytest

from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.guard import Guard
from deepseek_ocr.modes import MODES
from ocr_server.intake.source_page import SourcePage
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.loops import REPETITION, attempt, next_attempt
from ocr_server.reading.page import Job


async def load() -> SourcePage:
    raise AssertionError("the page is not loaded here")


def job(mode: str = "gundam", guard: Guard | None = None) -> Job:
    return Job(load, MODES[mode], "Free OCR.", Decoding(seed=7, guard=guard or Guard()))


def attempts(first: Job) -> list[Job]:
    """All attempts to read a page that always repeats itself."""
    jobs, past = [first], [attempt(first, REPETITION)]
    while (following := next_attempt(first, past, DEEPSEEK_OCR)) is not None:
        jobs.append(following)
        past.append(attempt(following, REPETITION))
    return jobs


@pytest.mark.parametrize(("mode", "other"), [("gundam", "base"), ("base", "gundam"), ("tiny", "base")])
def test_the_second_attempt_keeps_the_mode_and_the_third_changes_it(mode: str, other: str) -> None:
    assert [each.mode for each in attempts(job(mode))] == [MODES[mode], MODES[mode], MODES[other]]


@pytest.mark.parametrize(
    ("guard", "stricter"),
    [
        (Guard(), Guard(20, 1024)),
        (Guard(ngram_size=0), Guard(20, 1024)),
        (Guard(10, 4096), Guard(10, 4096)),
        (Guard(40, 90, (3, 4)), Guard(20, 1024, (3, 4))),
    ],
)
def test_further_attempts_have_a_guard_at_least_as_strict(guard: Guard, stricter: Guard) -> None:
    assert [each.decoding.guard for each in attempts(job(guard=guard))] == [guard, stricter, stricter]


def test_everything_else_stays_as_it_was() -> None:
    assert {(each.prompt, each.decoding.seed, each.load) for each in attempts(job())} == {("Free OCR.", 7, load)}
