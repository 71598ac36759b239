"""Confidence scores: probabilities of the tokens, aggregated over parts of the answer."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ocr_server.reading.page import LogprobStep


class TokenSpan(NamedTuple):
    """One token of an answer."""

    start: int
    end: int
    """`start` and `end` are indices of characters in the answer."""
    logprob: float


class Confidence(NamedTuple):
    """Aggregated probabilities of several tokens."""

    average: float
    """Geometric mean of the probabilities, 0 to 1."""
    minimum: float
    """Smallest probability, 0 to 1."""


def token_spans(answer: str, steps: Iterable[LogprobStep]) -> list[TokenSpan]:
    """Return the position of each token in `answer`. Tokens beyond its end (eos, a stop string) are omitted."""
    spans = []
    start = 0
    for step in steps:
        end = min(start + len(step.chosen.token), len(answer))
        if start == len(answer):
            break
        spans.append(TokenSpan(start, end, step.chosen.logprob))
        start = end
    return spans


def confidence(spans: Sequence[TokenSpan], start: int = 0, end: int | None = None) -> Confidence | None:
    """Return the confidence of the tokens that begin in the range [start, end), or None if there are none.

    Args:
        spans: The tokens of the answer, in order.
        start: Index of the first character of the range.
        end: Index of the first character after the range. None means the end of the answer.
    """
    first = bisect_left(spans, start, key=_start)
    last = len(spans) if end is None else bisect_left(spans, end, key=_start)
    logprobs = [span.logprob for span in spans[first:last]]
    if not logprobs:
        return None
    return Confidence(math.exp(sum(logprobs) / len(logprobs)), math.exp(min(logprobs)))


def _start(span: TokenSpan) -> int:
    return span.start


class WordConfidence(NamedTuple):
    """A word of the markdown."""

    text: str
    start: int
    """Index of its first character in the markdown."""
    confidence: float
    """Geometric mean of the probabilities of its tokens, 0 to 1."""


def words(markdown: str, answer: str, spans: Sequence[TokenSpan]) -> list[WordConfidence]:
    """Return the words of the markdown that also occur in the model's answer, in order, with their confidence."""
    found = []
    here = there = first = 0
    for text in markdown.split():
        here = markdown.index(text, here)
        place = answer.find(text, there)
        if place >= 0:
            there = place + len(text)
            while first < len(spans) and spans[first].end <= place:
                first += 1
            logprobs = []
            last = first
            while last < len(spans) and spans[last].start < there:
                logprobs.append(spans[last].logprob)
                last += 1
            if logprobs:
                found.append(WordConfidence(text, here, math.exp(sum(logprobs) / len(logprobs))))
        here += len(text)
    return found
