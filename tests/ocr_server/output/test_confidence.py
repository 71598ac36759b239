"""Confidence scores of the answer, of parts of it, and of words."""

from __future__ import annotations

import math

import pytest

from ocr_server.output.confidence import TokenSpan, WordConfidence, confidence, token_spans, words
from ocr_server.reading.page import LogprobStep, ScoredToken

ANSWER = "Total: 12 EUR"
TOKENS = [("Total", 0.5), (":", 0.25), (" 1", 1.0), ("2", 0.25), (" EUR", 0.8)]


def steps(*tokens: tuple[str, float]) -> list[LogprobStep]:
    return [LogprobStep(ScoredToken(token, math.log(probability)), []) for token, probability in tokens]


SPANS = token_spans(ANSWER, steps(*TOKENS))


def test_tokens_have_their_place_in_the_answer() -> None:
    assert [ANSWER[span.start : span.end] for span in SPANS] == [token for token, _ in TOKENS]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("ab", [(0, 1), (1, 2)]), ("abc", [(0, 1), (1, 2), (2, 3)]), ("", [])],
)
def test_tokens_beyond_the_end_of_the_answer_are_left_out(answer: str, expected: list[tuple[int, int]]) -> None:
    """A stop string can cut the answer within a token; eos is never part of it."""
    spans = token_spans(answer, steps(("a", 1.0), ("b", 1.0), ("cd", 1.0), ("</s>", 1.0)))
    assert [(span.start, span.end) for span in spans] == expected


@pytest.mark.parametrize(
    ("start", "end", "average", "minimum"),
    [
        (0, None, (0.5 * 0.25 * 1.0 * 0.25 * 0.8) ** (1 / 5), 0.25),
        (0, 6, (0.5 * 0.25) ** (1 / 2), 0.25),
        (1, 6, 0.25, 0.25),
        (6, 9, (1.0 * 0.25) ** (1 / 2), 0.25),
        (9, None, 0.8, 0.8),
    ],
)
def test_the_average_is_the_geometric_mean(start: int, end: int | None, average: float, minimum: float) -> None:
    found = confidence(SPANS, start, end)
    assert found is not None
    assert found == pytest.approx((average, minimum))


@pytest.mark.parametrize(("start", "end"), [(3, 5), (100, None), (6, 6)])
def test_a_range_without_tokens_has_no_confidence(start: int, end: int | None) -> None:
    assert confidence(SPANS, start, end) is None
    assert confidence([]) is None


def test_words() -> None:
    assert words(f"# {ANSWER}", ANSWER, SPANS) == [
        WordConfidence("Total:", 2, pytest.approx((0.5 * 0.25) ** 0.5)),
        WordConfidence("12", 9, pytest.approx((1.0 * 0.25) ** 0.5)),
        WordConfidence("EUR", 12, pytest.approx(0.8)),
    ]


def test_words_that_are_not_in_the_answer_are_left_out() -> None:
    spans = token_spans("a := b", steps(("a", 0.5), (" := ", 0.5), ("b", 0.25)))
    assert [word.text for word in words("a | := new b", "a := b", spans)] == ["a", ":=", "b"]


def test_repeated_words_are_matched_in_order() -> None:
    spans = token_spans("a a", steps(("a", 0.5), (" a", 0.25)))
    assert [word.confidence for word in words("a\n\na", "a a", spans)] == pytest.approx([0.5, 0.25])


def test_without_log_probabilities_there_are_no_words() -> None:
    assert words(ANSWER, ANSWER, list[TokenSpan]()) == []
