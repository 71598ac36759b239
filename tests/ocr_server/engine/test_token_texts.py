"""The tokens of an answer fit its text, however the engine delivers both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.engine.token_texts import TokenTexts
from ocr_server.reading.page import LogprobStep, ScoredToken
from tests.ocr_server.conftest import examples


def step(token: str) -> LogprobStep:
    return LogprobStep(ScoredToken(token, -1.0, len(token)), [])


def texts(steps: list[LogprobStep]) -> list[str]:
    return [each.chosen.token for each in steps]


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("Hello", ["Hel", "lo", "<eos>"], ["Hel", "lo"]),
        ("Hello", ["Hel", "lo STOP", "<eos>"], ["Hel", "lo"]),
        ("", ["STOP"], []),
        ("a\u00e9", ["a", "", "\u00e9"], ["a", "", "\u00e9"]),
        ("a\u00e9", ["a", "\ufffd"], ["a", "\u00e9"]),
    ],
)
def test_what_is_no_part_of_the_text_is_left_out(text: str, tokens: list[str], expected: list[str]) -> None:
    assert texts(TokenTexts().add(text, map(step, tokens), is_last=True)) == expected


def test_tokens_wait_for_their_text() -> None:
    fitted = TokenTexts()
    assert texts(fitted.add("", [step("ab"), step("cd")], is_last=False)) == []
    assert texts(fitted.add("abc", [], is_last=False)) == ["ab"]
    assert texts(fitted.add("d", [step("STOP")], is_last=False)) == ["cd"]
    assert texts(fitted.add("", [], is_last=True)) == []


@given(
    tokens=st.lists(st.text(max_size=4), max_size=12),
    kept=st.integers(0, 48),
    delay=st.integers(0, 5),
)
@examples(200)
def test_the_tokens_join_to_the_text(tokens: list[str], kept: int, delay: int) -> None:
    """Whatever the end of the text is cut from the tokens, and however late the text comes."""
    text = "".join(tokens)[:kept]
    fitted, found, sent = TokenTexts(), [], 0
    for number, token in enumerate(tokens):
        ready = len("".join(tokens[: max(0, number + 1 - delay)])[:kept])
        found += fitted.add(text[sent:ready], [step(token)], is_last=False)
        sent = ready
    found += fitted.add(text[sent:], [], is_last=True)
    assert "".join(texts(found)) == text
