"""The figures of the evaluation mean what they say."""

from __future__ import annotations

import pytest

from nano.evaluate import ROWS, Row, matched, measure, page_of


def located(name: str, *box: int) -> str:
    return f"<|ref|>{name}<|/ref|><|det|>[[{', '.join(map(str, box))}]]<|/det|>"


def test_boxes_are_matched_by_place_each_taken_once() -> None:
    truth = located("title", 0, 0, 100, 100) + located("text", 0, 200, 100, 300) + located("text", 0, 400, 100, 500)
    said = located("text", 0, 0, 100, 50) + located("text", 0, 200, 100, 300)
    assert matched(truth, said) == [(0.5, False), (1.0, True), (0.0, False)]


@pytest.mark.parametrize("row", [ROWS[0], ROWS[2], ROWS[4], ROWS[5]], ids=lambda row: row.name)
def test_the_truth_itself_has_no_error(row: Row) -> None:
    truths = (page_of(row, number)[2] for number in range(3))
    figures = measure(row, lambda *_: (next(truths), True), 3)
    assert figures.pop("character error") == figures.pop("word error") == 0
    assert set(figures.values()) == {1.0}


def test_what_is_missing_counts() -> None:
    figures = measure(ROWS[4], lambda *_: ("", False), 3)
    assert figures == {
        "character error": 1,
        "word error": 1,
        "box overlap": 0,
        "boxes over 0.5": 0,
        "labels right": 0,
        "ended": 0,
    }
