"""Answers of the model for tests: well formed, incomplete and malicious. And a check for linear time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import pairwise

from hypothesis import strategies as st


def marker(ref: str, *boxes: tuple[int, int, int, int]) -> str:
    """A marker in the form in which the model writes it."""
    return f"<|ref|>{ref}<|/ref|><|det|>{[list(box) for box in boxes or ((100, 200, 300, 400),)]}<|/det|>"


PAGE = (
    f"{marker('title', (80, 50, 900, 100))}\n# A heading \n\n"
    f"{marker('text', (80, 120, 900, 300))}\nTwo lines\nof $a \\coloneqq b$. \n\n\n"
    f"{marker('image', (80, 320, 480, 600))}\n"
    f"{marker('image_caption', (80, 610, 480, 640))}\n<center>Figure 1: a thing</center>\n\n"
    f"{marker('table', (500, 320, 900, 600))}\n<table><tr><td>a</td><td>b</td></tr></table>\n"
)
"""An answer to `<|grounding|>Convert the document to markdown.`"""

WORDS = f"{marker('Grand total', (1, 2, 300, 40))}\n{marker('12,50 €', (310, 2, 400, 40))}\n"
"""An answer to `<|grounding|>OCR this image.`"""

_PIECES = (
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|",
    "<|/re",
    "title",
    "image",
    "odd_one",
    "Hello",
    "text",
    " ",
    "\n",
    "\n\n\n",
    "[[1, 2, 3, 4]]",
    "[[",
    "]]",
    "], [",
    ", ",
    "-",
    "12",
    "12345",
    ".5",
    "\\colon",
    "eqq",
    "\\eqqcolon",
    "<table>",
    "</table>",
    "<tr>",
    "<td>",
    "</td>",
    "<TD colspan=2 rowspan='3'>",
    "<",
    "|",
    "é字",
)
_MARKERS = (
    marker("title"),
    marker("image"),
    marker("image", (0, 0, 5, 5), (9, 9, 1, 1)),
    marker("odd_one"),
    marker("Hello there"),
    marker("text", (-5, 0, 99999, 999)),
    "<|ref|>a<|/ref|> \n<|det|> [ [ 1.5 ,2,\n3 , 4 ] ] <|/det|>",
    "<table><tr><td>a|b<td>c<tr><td colspan=2>d</table>",
)

answers = st.lists(
    st.one_of(st.sampled_from(_MARKERS), st.sampled_from(_PIECES), st.text(max_size=3)), max_size=15
).map("".join)
"""Any output of the model, above all markers."""


@st.composite
def in_pieces(draw: st.DrawFn) -> list[str]:
    """An answer in pieces of any length, some of which may be empty."""
    answer = draw(answers)
    cuts = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    return [answer[start:end] for start, end in pairwise([0, *cuts, len(answer)])]


def takes_linear_time(work: Callable[[int], object], size: int) -> bool:
    """Whether `work` of four times the size takes about four times the CPU time. Quadratic time would be 16 times.

    Measured up to three times, since a busy machine can only make it seem slower.

    Args:
        work: Does work of a given size.
        size: The larger of the two sizes.
    """
    return any(_cpu_seconds(work, size) < 9 * _cpu_seconds(work, size // 4) + 0.2 for _ in range(3))


def _cpu_seconds(work: Callable[[int], object], size: int) -> float:
    gc.disable()  # its full collections take as long as the heap of all tests is large
    try:
        began = time.process_time()
        work(size)
        return time.process_time() - began
    finally:
        gc.enable()
