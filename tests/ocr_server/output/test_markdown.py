"""Answers converted to markdown, complete and in pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.output.blocks import blocks
from ocr_server.output.figures import figure_boxes
from ocr_server.output.markdown import MarkdownStream, TableFormat, to_markdown
from tests.ocr_server.conftest import examples
from tests.ocr_server.output.answers import PAGE, WORDS, in_pieces, marker

LABELS = ["title", "sub_title", "text", "table", "image", "image_caption", "equation"]


def numbered(number: int) -> str:
    return f"{number}.jpeg"


def as_upstream(answer: str) -> str:
    """Convert a well-formed answer as DeepSeek-OCR's scripts do, with regular expressions."""
    figures = 0

    def link(_: re.Match[str]) -> str:
        nonlocal figures
        figures += 1
        return f"![]({numbered(figures)})\n"

    answer = re.sub(r"<\|ref\|>image<\|/ref\|><\|det\|>.*?<\|/det\|>", link, answer)
    answer = re.sub(r"<\|ref\|>.*?<\|/ref\|><\|det\|>.*?<\|/det\|>", "", answer)
    answer = answer.replace("\\coloneqq", ":=").replace("\\eqqcolon", "=:")
    return re.sub(r"\n{3,}", "\n\n", answer).strip()


class TestDocuments:
    def test_a_page(self) -> None:
        assert to_markdown(PAGE, figures=["one.jpeg"]) == (
            "# A heading \n\nTwo lines\nof $a := b$. \n\n![](one.jpeg)\n\n<center>Figure 1: a thing</center>\n\n"
            "<table><tr><td>a</td><td>b</td></tr></table>"
        )

    def test_its_tables_as_markdown(self) -> None:
        assert to_markdown(PAGE, table_format="markdown").endswith("a thing</center>\n\n| a | b |\n| --- | --- |")

    @given(
        parts=st.lists(
            st.tuples(
                st.sampled_from(LABELS),
                st.text("ab \n|<\\", max_size=9) | st.sampled_from(["a\\coloneqq b", "\n\n\n\n", "\\eqqcolon"]),
            )
        )
    )
    @examples(300)
    def test_as_upstream(self, parts: list[tuple[str, str]]) -> None:
        answer = "".join(f"{marker(label)}\n{text}\n\n" for label, text in parts)
        names = [numbered(number) for number in range(1, len(parts) + 1)]
        assert to_markdown(answer, figures=names) == as_upstream(answer)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("", ""),
            (" \n a\n\n\n\nb\n\nc \n", "a\n\nb\n\nc"),
            ("a\n \n\n \nb", "a\n \n\n \nb"),
            (f"{marker('chart')}\nbars", "bars"),
            (f"a\n\n{marker('text')}\n\nb", "a\n\nb"),
            (f"{marker('text')}\n<|ref|>torn", "<|ref|>torn"),
            ("\\coloneqqq \\coloneq \\eqqcolon", ":=q \\coloneq =:"),
            ("\\colon", "\\colon"),
        ],
    )
    def test_clean_up(self, answer: str, expected: str) -> None:
        assert to_markdown(answer) == expected


class TestLocatedTexts:
    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (WORDS, "Grand total\n12,50 €"),
            (marker("Grand total") + marker("total"), "Grand total\ntotal"),
            (f"{marker('total')} \n{marker('sum')} ", "total \nsum"),
            (f"{marker('Total')}5", "Total\n5"),
            (f"{marker('Total')} 5", "Total 5"),
            (f"{marker('Total')}{marker('image')}", "Total\n![](1.jpeg)"),
            (f"{marker('Total')}{marker('text')}\nx", "Total\nx"),
            (f"{marker('total')}\n<|ref|>cut o", "total\n<|ref|>cut o"),
            (marker("<table><tr><td>a</table>"), "<table><tr><td>a</table>"),
        ],
    )
    def test_their_text_stays(self, answer: str, expected: str) -> None:
        assert to_markdown(answer, figures=["1.jpeg"]) == expected


class TestFigures:
    def test_one_for_each_box_until_names_run_out(self) -> None:
        answer = marker("image", (0, 0, 5, 5), (6, 6, 9, 9)) + marker("image") + marker("image")
        assert to_markdown(answer, figures=["a", "b", "c"]) == "![](a)\n![](b)\n![](c)"

    def test_without_names_there_are_none(self) -> None:
        assert to_markdown(f"a\n{marker('image')}\nb") == "a\n\nb"

    def test_an_empty_name_leaves_its_figure_out(self) -> None:
        assert to_markdown(marker("image") * 3, figures=["a", "", "c"]) == "![](a)\n![](c)"

    def test_text_behind_the_marker_stays(self) -> None:
        assert to_markdown(f"{marker('image')}an axis", figures=["a"]) == "![](a)\nan axis"

    @given(pieces=in_pieces())
    @examples(200)
    def test_names_go_with_boxes(self, pieces: list[str]) -> None:
        answer = "".join(pieces)
        boxes = figure_boxes(blocks(answer, 100, 100))
        stream = MarkdownStream(name=numbered)
        links = re.findall(r"!\[\]\((\d+)\.jpeg\)", stream.feed(answer) + stream.close())
        assert list(map(int, links)) == list(range(1, len(boxes) + 1))


class TestPieces:
    @given(pieces=in_pieces(), table_format=st.sampled_from(["html", "markdown"]))
    @examples(500)
    def test_pieces_make_no_difference(self, pieces: list[str], table_format: TableFormat) -> None:
        stream = MarkdownStream(name=lambda number: f"{number}" if number < 3 else "", table_format=table_format)
        streamed = "".join([stream.feed(piece) for piece in pieces] + [stream.close()])
        assert streamed == to_markdown("".join(pieces), figures=["1", "2"], table_format=table_format)
        assert streamed == streamed.strip()
        assert "\n\n\n" not in streamed

    @given(pieces=in_pieces())
    @examples(200)
    def test_nothing_visible_is_lost(self, pieces: list[str]) -> None:
        answer = "".join(pieces)
        shown = "".join(block.text for block in blocks(answer, 100, 100))
        for command, symbol in (("\\coloneqq", ":="), ("\\eqqcolon", "=:")):
            shown = shown.replace(command, symbol)
        assert "".join(to_markdown(answer).split()) == "".join(shown.split())

    def test_final_text_is_returned_at_once(self) -> None:
        stream = MarkdownStream(name=numbered)
        steps = [
            (f"{marker('title')}\n# A", "# A"),
            (" heading \n", " heading"),
            ("\n\n", ""),
            ("<", ""),
            ("b", " \n\n<b"),
            (" \\co", ""),
            ("s", " \\cos"),
            ("\\coloneq", ""),
            ("q<|re", ":="),
            ("f|>image<|/ref|><|det|>[[1, 2, 3, 4]]", ""),
            ("<|/det|>", "![](1.jpeg)"),
            (marker("chart"), ""),
            (" ", ""),
            ("bars", "\n bars"),
            (marker("word"), ""),
            (marker("Two words"), "word\nTwo words"),
        ]
        for piece, expected in steps:
            assert stream.feed(piece) == expected, piece
        assert stream.close() == ""

    def test_a_table_is_held_back_only_for_markdown(self) -> None:
        html, markdown = (MarkdownStream(name=numbered, table_format=form) for form in ("html", "markdown"))
        assert html.feed("x <table><tr><td>a") == "x <table><tr><td>a"
        assert markdown.feed("x <table><tr><td>a") == "x"
        assert markdown.feed("</table>") == " \n\n| a |\n| --- |"
