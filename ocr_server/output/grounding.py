"""Parses the model's location markers: `<|ref|>TEXT<|/ref|><|det|>[[x1, y1, x2, y2], …]<|/det|>`.

The content of a marker comes from the picture and is untrusted. Coordinates are parsed by a finite automaton, one
character at a time, and are never evaluated. Anything that is not exactly a marker is text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in the model's coordinates: nominally 0 at the left or top edge of the page and 999 at the other."""

LONGEST = 10_000
"""Maximum number of characters of the text in a marker, of its white space and of its coordinates, each.
A longer marker is treated as text."""

_REF, _REF_END, _DET, _DET_END = TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>")
_TOKEN = re.compile("|".join(map(re.escape, TOKENS)))
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_MAX_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Located:
    """A marker: a text and its boxes. `raw` is the complete marker as it occurs in the answer."""

    ref: str
    boxes: tuple[Box, ...]
    raw: str


def parse(answer: str) -> list[str | Located]:
    """Return the markers of a complete answer and the texts between them, in order. No text is empty, and no two texts
    are adjacent."""
    parser = GroundingParser()
    return _merged(parser.feed(answer) + parser.close())


def held_back(text: str, tokens: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of one of `tokens`."""
    for length in range(min(len(text), max(map(len, tokens)) - 1), 0, -1):
        if any(token.startswith(text[-length:]) and length < len(token) for token in tokens):
            return length
    return 0


class GroundingParser:
    """Finds the markers in an answer that arrives in pieces.

    Any input is accepted. The texts and the `raw` of the markers, concatenated, are the answer again. How the answer is
    split into pieces affects only where texts are split. Text is held back only while it may still become a marker. The
    time is linear in the length of the answer.
    """

    def __init__(self) -> None:
        self._events: list[str | Located] = []
        self._tail = ""
        self._begin_text()

    def feed(self, piece: str) -> list[str | Located]:
        """Add a piece of the answer, and return the markers and texts that are final."""
        data = self._tail + piece
        at = 0
        while at < len(data):
            step = self._step
            start, at = at, step(data, at)
            if at == start and self._step == step:
                break
        self._tail = data[at:]
        events, self._events = _merged(self._events), []
        return events

    def close(self) -> list[str | Located]:
        """End the answer, and return what was held back. It is text, since its marker is incomplete."""
        self._hold(self._tail)
        self._tail = ""
        self._give_up()
        events, self._events = _merged(self._events), []
        return events

    # Each step consumes data from index `at` on and returns the index that it reached. If the index and the step stay
    # the same, more data is needed.

    def _text(self, data: str, at: int) -> int:
        found = data.find(_REF, at)
        if found < 0:
            end = len(data) - held_back(data[max(at, len(data) - len(_REF)) :], (_REF,))
            self._events.append(data[at:end])
            return end
        self._events.append(data[at:found])
        self._hold(_REF)
        self._go(self._in_ref)
        return found + len(_REF)

    def _in_ref(self, data: str, at: int) -> int:
        token = _TOKEN.search(data, at)
        tail = data[max(at, len(data) - len(_REF_END)) :]
        end = token.start() if token else len(data) - held_back(tail, TOKENS)
        self._hold(data[at:end])
        if self._size > LONGEST:
            self._give_up()
        elif token and token.group() == _REF_END:
            self._hold(_REF_END)
            self._go(self._before_det)
            return token.end()
        elif token:
            self._give_up()
        return end

    def _before_det(self, data: str, at: int) -> int:
        end = at
        while end < len(data) and data[end] in string.whitespace:
            end += 1
        self._hold(data[at:end])
        if self._size > LONGEST:
            self._give_up()
        elif data.startswith(_DET, end):
            self._hold(_DET)
            self._go(self._in_det)
            self._state = _START
            return end + len(_DET)
        elif not _DET.startswith(data[end : end + len(_DET)]):
            self._give_up()
        return end

    def _in_det(self, data: str, at: int) -> int:
        end = at
        while end < len(data) and (state := _NEXT.get((self._state, _kind(data[end])))):
            self._state = state
            end += 1
        self._hold(data[at:end])
        rest = data[end : end + len(_DET_END)]
        if self._size > LONGEST:
            self._give_up()
        elif self._state == _END and rest == _DET_END:
            self._hold(_DET_END)
            self._events.append(_located("".join(self._held)))
            self._begin_text()
            return end + len(_DET_END)
        elif rest and not (self._state == _END and _DET_END.startswith(rest)):
            self._give_up()
        return end

    def _go(self, step: Callable[[str, int], int]) -> None:
        self._step = step
        self._size = 0

    def _hold(self, text: str) -> None:
        self._held.append(text)
        self._size += len(text)

    def _give_up(self) -> None:
        """Treat the text that is held back as text, since it is not a marker."""
        self._events.append("".join(self._held))
        self._begin_text()

    def _begin_text(self) -> None:
        self._held: list[str] = []
        self._go(self._text)


def _merged(events: list[str | Located]) -> list[str | Located]:
    """Merge adjacent texts, and drop empty ones."""
    merged: list[str | Located] = []
    texts: list[str] = []
    for event in [*events, None]:
        if isinstance(event, str):
            texts.append(event)
            continue
        if text := "".join(texts):
            merged.append(text)
        texts = []
        if event:
            merged.append(event)
    return merged


_START, _BOXES, _BOX, _END = "start", "boxes", "box", "end"


def _kind(char: str) -> str:
    """Return the class of a character for the automaton: "0" for every digit, " " for all white space."""
    if char in string.digits:
        return "0"
    return " " if char in string.whitespace else char


def _automaton() -> dict[tuple[str, str], str]:
    """Build the transition table: (state, class of character) → next state. It accepts lists of one or more boxes.

    A box consists of four numbers. A number has up to 5 digits, optionally a minus sign and a fraction. White space is
    allowed between numbers, commas and brackets.
    """
    table = {(_START, "["): _BOXES, (_BOXES, "["): "before 0", (_BOX, ","): _BOXES, (_BOX, "]"): _END}
    table |= {(state, " "): state for state in (_START, _BOXES, _BOX, _END)}
    for number in range(4):
        before, minus, point, fraction, after = (
            f"{part} {number}" for part in ("before", "minus", "point", "fraction", "after")
        )
        digits = [f"digit {digit} of {number}" for digit in range(_MAX_DIGITS)]
        table |= {(before, " "): before, (before, "-"): minus, (minus, "0"): digits[0]}
        table |= {(state, "0"): digit for state, digit in zip([before, *digits], digits, strict=False)}
        table |= {(digit, "."): point for digit in digits}
        table |= {(point, "0"): fraction, (fraction, "0"): fraction}
        for state in (*digits, fraction, after):
            table[state, " "] = after
            if number < 3:
                table[state, ","] = f"before {number + 1}"
            else:
                table[state, "]"] = _BOX
    return table


_NEXT = _automaton()


def _located(raw: str) -> Located:
    """Parse a marker that the automaton has accepted. Fractions are rounded to integers, halves away from zero."""
    ref, _, rest = raw.removeprefix(_REF).partition(_REF_END)
    numbers = [int(Decimal(number).to_integral_value(ROUND_HALF_UP)) for number in _NUMBER.findall(rest)]
    x1, y1, x2, y2 = (numbers[place::4] for place in range(4))
    return Located(ref, tuple(zip(x1, y1, x2, y2, strict=True)), raw)
