"""Answers of the model parsed into blocks of the page."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.output.blocks import Block, blocks, pixel_box
from ocr_server.output.grounding import parse
from tests.ocr_server.conftest import examples
from tests.ocr_server.output.answers import PAGE, WORDS, answers, marker


def said(answer: str) -> list[tuple[str, str]]:
    return [(block.label, block.text) for block in blocks(answer, 1000, 1000)]


def visible(text: str) -> str:
    return "".join(text.split())


class TestKinds:
    def test_a_document(self) -> None:
        assert said(PAGE) == [
            ("title", "# A heading"),
            ("text", "Two lines\nof $a \\coloneqq b$."),
            ("image", ""),
            ("image_caption", "<center>Figure 1: a thing</center>"),
            ("table", "<table><tr><td>a</td><td>b</td></tr></table>"),
        ]

    def test_located_texts(self) -> None:
        assert said(WORDS) == [("text", "Grand total"), ("text", "12,50 €")]

    def test_text_without_markers(self) -> None:
        assert blocks(" Hello,\n\nworld\n", 10, 10) == [Block("text", "Hello,\n\nworld", (), (), 0, 15)]

    def test_text_before_the_first_marker(self) -> None:
        assert said(f"before {marker('title')} after") == [("text", "before"), ("title", "after")]

    @pytest.mark.parametrize("answer", ["", " \n"])
    def test_an_empty_answer(self, answer: str) -> None:
        assert blocks(answer, 10, 10) == []

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (f"{marker('table')} \n", [("table", "")]),
            (f"{marker('chart')} \n", [("text", "chart")]),
            (f"{marker('chart')} \nbars", [("chart", "bars")]),
            (f"{marker('chart')} \n{marker('text')}", [("text", "chart"), ("text", "")]),
            (f"{marker('Chart')} \nbars", [("text", "Chart"), ("text", "bars")]),
            (f"{marker('a' * 32)}b", [("a" * 32, "b")]),
            (f"{marker('a' * 33)}b", [("text", "a" * 33), ("text", "b")]),
            (f"{marker('')}b", [("text", ""), ("text", "b")]),
            (f"{marker(' Text ')}", [("text", "Text")]),
            (f"{marker('text')}<|ref|>a", [("text", "<|ref|>a")]),
            (f"{marker('word')}\n<|ref|>a", [("text", "word"), ("text", "<|ref|>a")]),
            (f"{marker('word')}\n<|det|>a", [("word", "<|det|>a")]),
        ],
    )
    def test_label_or_text(self, answer: str, expected: list[tuple[str, str]]) -> None:
        assert said(answer) == expected


class TestPlaces:
    def test_boxes(self) -> None:
        [block] = blocks(marker("image", (0, 0, 999, 999), (500, 250, 501, 251)), 1240, 1754)
        assert block.boxes == ((0, 0, 1240, 1754), (620, 438, 621, 440))
        assert block.model_boxes == ((0, 0, 999, 999), (500, 250, 501, 251))

    @pytest.mark.parametrize(
        ("box", "expected"),
        [
            ((900, 800, 100, 200), (100, 400, 900, 1600)),
            ((-20, -1, 2000, 99999), (0, 0, 999, 1998)),
            ((2000, 5, 3000, 5), (999, 10, 999, 10)),
        ],
    )
    def test_boxes_are_clipped_to_the_page(self, box: tuple[int, int, int, int], expected: object) -> None:
        assert pixel_box(box, 999, 1998) == expected

    @given(box=st.tuples(*[st.integers(-99999, 99999)] * 4), width=st.integers(1, 5000), height=st.integers(1, 5000))
    @examples(200)
    def test_any_box_is_within_any_page(self, box: tuple[int, int, int, int], width: int, height: int) -> None:
        left, top, right, bottom = pixel_box(box, width, height)
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height

    def test_each_block_is_a_range_of_the_answer(self) -> None:
        first, second = marker("Total", (1, 1, 2, 2)), marker("title")
        answer = f" before {first} {second} after \n"
        assert [answer[block.start : block.end] for block in blocks(answer, 10, 10)] == [
            " before ",
            f"{first} ",
            f"{second} after \n",
        ]

    def test_a_located_text_ends_with_its_marker_where_text_follows(self) -> None:
        answer = f"{marker('Total:')} 5"
        located, rest = blocks(answer, 10, 10)
        assert (answer[located.start : located.end], answer[rest.start : rest.end]) == (marker("Total:"), " 5")
        assert rest.boxes == ()


@given(answer=answers)
@examples(500)
def test_nothing_visible_is_lost(answer: str) -> None:
    found = blocks(answer, 100, 100)
    labels = {(block.start, block.label) for block in found}
    shown, at = "", 0
    for event in parse(answer):
        if isinstance(event, str):
            shown += event
            at += len(event)
        else:
            shown += event.ref if (at, event.ref) not in labels else ""
            at += len(event.raw)
    assert visible("".join(block.text for block in found)) == visible(shown)


@given(answer=answers)
@examples(300)
def test_blocks_follow_each_other(answer: str) -> None:
    found = blocks(answer, 100, 100)
    assert all(before.end == after.start < after.end for before, after in pairwise(found))
    assert not found or (answer[: found[0].start].strip() == "" and found[-1].end == len(answer))
