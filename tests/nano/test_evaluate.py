"""The figures of the evaluation mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nano.evaluate import ROWS, Row, character_error, matched, measure, page_of, through_the_code

CHECKPOINT = Path(__file__).parents[2] / "nano" / "checkpoint"


def located(name: str, *box: int) -> str:
    return f"<|ref|>{name}<|/ref|><|det|>[[{', '.join(map(str, box))}]]<|/det|>"


def test_boxes_are_matched_by_place_each_taken_once() -> None:
    truth = located("title", 0, 0, 100, 100) + located("text", 0, 200, 100, 300) + located("text", 0, 400, 100, 500)
    said = located("text", 0, 0, 100, 50) + located("text", 0, 200, 100, 300)
    assert matched(truth, said) == [(0.5, False), (1.0, True), (0.0, False)]


@pytest.mark.parametrize("row", [ROWS[0], ROWS[2], ROWS[4], ROWS[5]], ids=lambda row: row.name)
def test_the_truth_itself_has_no_error(row: Row) -> None:
    truths = [page_of(row, number)[2] for number in range(3)]
    figures = measure(row, lambda *_: [(truth, True) for truth in truths], 3)
    assert figures.pop("character error") == figures.pop("word error") == 0
    assert set(figures.values()) == {1.0}


def test_what_is_missing_counts() -> None:
    figures = measure(ROWS[4], lambda asked, _: [("", False)] * len(asked), 3)
    assert figures == {
        "character error": 1,
        "word error": 1,
        "box overlap": 0,
        "boxes over 0.5": 0,
        "labels right": 0,
        "ended": 0,
    }


def test_pages_read_together_have_each_its_own_answer() -> None:
    """A locating page's prompt is its own; it stands between two that are read together."""
    short = replace(ROWS[0].sheet, max_lines=2)
    rows = (Row("short", short), Row("short", short, "locate"), Row("short", short))
    pages = [page_of(row, number) for number, row in enumerate(rows)]
    answers = through_the_code(CHECKPOINT)([(page, prompt) for page, prompt, _ in pages], "gundam")
    for (_, _, truth), (said, whole) in zip(pages, answers, strict=True):
        assert whole
        assert character_error(said, truth) < 0.3
