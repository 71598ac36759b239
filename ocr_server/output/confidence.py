"""How sure the model was: probabilities of its tokens, over spans of its answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ocr_server.reading.page import LogprobStep


class TokenSpan(NamedTuple):
    """One token of an answer."""

    start: int
    end: int
    """Characters of the answer."""
    logprob: float


class Confidence(NamedTuple):
    average: float
    """Geometric mean of the tokens' probabilities, 0 to 1."""
    minimum: float
    """The least of them."""


def token_spans(answer: str, steps: Iterable[LogprobStep]) -> list[TokenSpan]:
    """Where each token stands in `answer`; tokens past its end (eos, a stop text) are left out."""
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
    """Of the tokens that begin in [start, end); None if there is none."""
    logprobs = [span.logprob for span in spans if start <= span.start and (end is None or span.start < end)]
    if not logprobs:
        return None
    return Confidence(math.exp(sum(logprobs) / len(logprobs)), math.exp(min(logprobs)))


class Word(NamedTuple):
    text: str
    start: int
    """In the markdown."""
    confidence: float


def words(markdown: str, answer: str, spans: Sequence[TokenSpan]) -> list[Word]:
    """The words of a page's markdown that stand in the model's answer too, with their confidence."""
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
                found.append(Word(text, here, math.exp(sum(logprobs) / len(logprobs))))
        here += len(text)
    return found
