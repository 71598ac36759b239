"""Fits the tokens of an answer to its text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ocr_server.reading.page import LogprobStep


class TokenTexts:
    """The tokens of one choice, whose texts together are the text of the choice.

    The engine reports tokens that are not part of the text, such as eos and stop strings, and tokens before their text
    if that could still become a stop string.
    """

    def __init__(self) -> None:
        self._text = ""
        """Text whose tokens have not been returned."""
        self._steps = deque[LogprobStep]()
        """Tokens whose text has not arrived."""

    def add(self, text: str, steps: Iterable[LogprobStep], *, is_last: bool) -> list[LogprobStep]:
        """Add a piece of the text and the tokens that came with it, and return the tokens whose text is known."""
        self._text += text
        self._steps.extend(steps)
        found, at = [], 0
        while self._steps and at + len(self._steps[0].chosen.token) <= len(self._text):
            step = self._steps.popleft()
            end = at + len(step.chosen.token)
            found.append(_with_text(step, self._text[at:end]))
            at = end
        self._text = self._text[at:]
        if is_last:
            if self._steps and self._text:
                found.append(_with_text(self._steps[0], self._text))  # a stop string begins within the token
            self._text = ""
            self._steps.clear()
        return found


def _with_text(step: LogprobStep, text: str) -> LogprobStep:
    if step.chosen.token == text:
        return step
    return step._replace(chosen=step.chosen._replace(token=text))
