"""The metrics of the evaluation are computed correctly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nano.evaluate import ROWS, Row, character_error, evaluation_page, local_reader, match_boxes, measure

CHECKPOINT = Path(__file__).parents[2] / "nano" / "checkpoint"


def located(name: str, *box: int) -> str:
    return f"<|ref|>{name}<|/ref|><|det|>[[{', '.join(map(str, box))}]]<|/det|>"


def test_boxes_are_matched_by_overlap_and_at_most_once() -> None:
    truth = located("title", 0, 0, 100, 100) + located("text", 0, 200, 100, 300) + located("text", 0, 400, 100, 500)
    answer = located("text", 0, 0, 100, 50) + located("text", 0, 200, 100, 300)
    assert match_boxes(truth, answer) == [(0.5, False), (1.0, True), (0.0, False)]


@pytest.mark.parametrize("row", [ROWS[0], ROWS[2], ROWS[4], ROWS[5]], ids=lambda row: row.name)
def test_ground_truth_as_answer_has_no_error(row: Row) -> None:
    truths = [evaluation_page(row, number)[2] for number in range(3)]
    figures = measure(row, lambda *_: [(truth, True) for truth in truths], 3)
    assert figures.pop("character error") == figures.pop("word error") == 0
    assert set(figures.values()) == {1.0}


def test_empty_answers_have_the_worst_metrics() -> None:
    figures = measure(ROWS[4], lambda questions, _: [("", False)] * len(questions), 3)
    assert figures == {
        "character error": 1,
        "word error": 1,
        "box overlap": 0,
        "boxes over 0.5": 0,
        "labels right": 0,
        "ended": 0,
    }


def test_answers_of_a_batch_are_in_the_order_of_the_pages() -> None:
    """A page with a prompt of its own is between two pages that are read in one batch."""
    short = replace(ROWS[0].sheet, max_lines=2)
    rows = (Row("short", short), Row("short", short, "locate"), Row("short", short))
    pages = [evaluation_page(row, number) for number, row in enumerate(rows)]
    answers = local_reader(CHECKPOINT)([(page, prompt) for page, prompt, _ in pages], "gundam")
    for (_, _, truth), (answer, has_ended) in zip(pages, answers, strict=True):
        assert has_ended
        assert character_error(answer, truth) < 0.3
