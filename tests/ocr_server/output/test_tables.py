"""HTML tables converted to markdown."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.output.tables import MAX_CELLS, TableConverter, html_tables, html_tables_to_markdown
from tests.ocr_server.conftest import examples
from tests.ocr_server.output.answers import answers, in_pieces, takes_linear_time

SIMPLE = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>"
SIMPLE_MARKDOWN = "| a | b |\n| --- | --- |\n| c | d |"


def rows(html: str) -> list[list[str]]:
    """The cells of a single table, without its separator line."""
    lines = html_tables_to_markdown(html).split("\n")
    assert set(lines.pop(1)) <= set("|- ")
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


class TestCells:
    def test_a_table(self) -> None:
        assert html_tables_to_markdown(SIMPLE) == SIMPLE_MARKDOWN

    def test_a_header_alone(self) -> None:
        assert html_tables_to_markdown("<table><tr><th>a</th></tr></table>") == "| a |\n| --- |"

    @pytest.mark.parametrize(
        "html",
        [
            "<table><tr><td>a<td>b<tr><td>c<td>d</table>",
            "<table><td>a<td>b</tr><td>c<td>d</tr></table>",
            "<TABLE class='x'>\n<thead><TR>\n<TH>a</TH> <TH>b</TH></thead><tbody><tr >\n<td/>c<td\n>d</tbody></TABLE >",
            "<table><colgroup><col><col></colgroup><tr><td> a\n<td>\tb <tr><td>c<td>d</tr></table>",
        ],
    )  # fmt: skip
    def test_tables_with_missing_or_unusual_tags(self, html: str) -> None:
        assert html_tables_to_markdown(html) == SIMPLE_MARKDOWN

    def test_ragged_rows_are_padded(self) -> None:
        assert rows("<table><tr><td>a<tr><td>b<td>c<td>d<tr><td>e<td>f</table>") == [
            ["a", "", ""],
            ["b", "c", "d"],
            ["e", "f", ""],
        ]

    def test_spans(self) -> None:
        html = (
            '<table><tr><td rowspan="2">a</td><td colspan="2">b</td></tr><tr><td>c</td><td>d</td></tr>'
            "<tr><td>e</td><td rowspan=2 colspan='2'>f</td></tr><tr><td>g</td></tr></table>"
        )
        assert rows(html) == [["a", "b", ""], ["", "c", "d"], ["e", "f", ""], ["g", "", ""]]

    def test_a_span_in_the_middle(self) -> None:
        assert rows("<table><tr><td>a<td rowspan=3>b<td>c<tr><td>d<td>e<tr><td>f<td>g</table>") == [
            ["a", "b", "c"],
            ["d", "", "e"],
            ["f", "", "g"],
        ]

    def test_a_row_span_below_the_last_row(self) -> None:
        assert rows("<table><tr><td rowspan=9>a<td>b</table>") == [["a", "b"]]

    @pytest.mark.parametrize("span", ["0", "1001", "99999999999", "9" * 400, "-3", "x", "", "1"])
    def test_odd_spans_count_as_one(self, span: str) -> None:
        assert rows(f"<table><tr><td colspan='{span}' rowspan={span}>a<td>b<tr><td>c</table>") == [
            ["a", "b"],
            ["c", ""],
        ]

    def test_the_largest_span(self) -> None:
        assert len(rows("<table><tr><td colspan=1000>a</table>")[0]) == 1000

    def test_text_in_cells_stays_as_it_is(self) -> None:
        cell = "p<0.05 a<b &lt;i&gt; <b>x</b><br/><tdx> $\\frac{1}{2}$ *"
        assert rows(f"<table><tr><td>{cell}</table>") == [[cell]]

    def test_bars_and_newlines(self) -> None:
        assert html_tables_to_markdown("<table><tr><td>\n|x|\r\n\n \\|y\u2028z\n</table>") == (
            "| \\|x\\| \\\\|y z |\n| --- |"
        )

    def test_text_outside_the_cells_comes_first(self) -> None:
        html = "<table><caption>Table 1:\nsizes</caption>odd<tr><td>a</td>ends</tr></table>"
        assert html_tables_to_markdown(html) == "Table 1: sizes odd ends\n\n| a |\n| --- |"

    @given(grid=st.lists(st.lists(st.text("ab<&|\n 字"), min_size=1, max_size=4), min_size=1, max_size=4))
    @examples(200)
    def test_any_cells(self, grid: list[list[str]]) -> None:
        html = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in grid)
        width = max(map(len, grid))
        expected = [
            [re.sub(r" *\n[ \n]*", " ", cell.strip()).replace("|", "\\|") for cell in [*row, *[""] * width][:width]]
            for row in grid
        ]
        assert rows(f"<table>{html}</table>") == expected


class TestTextAround:
    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ("", "", "{}"),
            ("x", "y", "x\n\n{}\n\ny"),
            ("x\n", "\ny", "x\n\n{}\n\ny"),
            ("x\n\n", "\n\n\ny", "x\n\n{}\n\n\ny"),
            ("\n", "\n", "\n{}\n"),
            ("x ", " y", "x \n\n{}\n\n y"),
        ],
    )
    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_empty_lines_separate_table_and_text(self, before: str, after: str, expected: str, size: int) -> None:
        text = before + SIMPLE + after
        converter = TableConverter()
        pieces = [converter.feed(text[at : at + size]) for at in range(0, len(text), size)] + [converter.close()]
        assert "".join(pieces) == expected.format(SIMPLE_MARKDOWN)

    def test_two_tables(self) -> None:
        assert html_tables_to_markdown(SIMPLE + SIMPLE) == f"{SIMPLE_MARKDOWN}\n\n{SIMPLE_MARKDOWN}"

    @pytest.mark.parametrize(
        "text",
        [
            "", "no table", "<table", "<table>", SIMPLE[:-1], "</table>", "<table></table>", "<table>only text</table>",
            "<tablet><tr><td>a</table>", "x < y <t <table-x> </table>", "<tr><td>a</td></tr>",
            f"<table><tr><td>{SIMPLE}</td></tr></table>", f"<table>{SIMPLE}{SIMPLE}</table>", f"<table>{SIMPLE} rest",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("size", [1, 1000])
    def test_text_that_stays_unchanged(self, text: str, size: int) -> None:
        converter = TableConverter()
        pieces = [converter.feed(text[at : at + size]) for at in range(0, len(text), size)] + [converter.close()]
        assert "".join(pieces) == text

    def test_a_table_after_nested_ones(self) -> None:
        nested = f"<table><tr><td>{SIMPLE}</td></tr></table>"
        assert html_tables_to_markdown(f"{nested}\n\n{SIMPLE}") == f"{nested}\n\n{SIMPLE_MARKDOWN}"

    def test_final_text_is_returned_at_once(self) -> None:
        converter = TableConverter()
        assert converter.feed("a < b <ta") == "a < b "
        assert converter.feed("ll> <table><tr><td>x") == "<tall> "
        assert converter.feed("<table>") == "<table><tr><td>x<table>"
        assert converter.feed("y</table>z") == "y</table>z"


class TestLimits:
    def test_the_maximum_number_of_cells(self) -> None:
        rows_of_1000 = "<tr><td colspan=1000>a" * (MAX_CELLS // 1000)
        assert html_tables_to_markdown(f"<table>{rows_of_1000}</table>").startswith("| a |")
        larger = f"<table>{rows_of_1000}<tr><td>b</table>"
        assert html_tables_to_markdown(larger) == larger

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "html",
        [
            lambda size: "<tr><td colspan=1000 rowspan=1000>" * (size // 30),
            lambda size: "<td colspan=1000 rowspan=1000>" * (size // 30),
            lambda size: "<tr>" + "<td>" * size + "<tr>" * size,
            lambda size: "<tr><td>" * size + "<td colspan=1000>",
            lambda size: "<td " * size,
            lambda size: ("<td colspan" + " " * 900 + ">") * (size // 100),
            lambda size: "<" * size,
            lambda size: " " * 3 * size,
        ],
    )
    def test_malicious_tables_take_linear_time(self, html: Callable[[int], str]) -> None:
        def work(size: int) -> None:
            html_tables_to_markdown(f"<table>{html(size)}</table>")
            html_tables_to_markdown(f"<table>{html(size)}")
            html_tables_to_markdown(html(size))

        assert takes_linear_time(work, 90_000)

    def test_a_row_of_many_spans_takes_little_memory(self) -> None:
        html = f"<table>{'<td colspan=1000>' * 10_000}</table>"
        tracemalloc.start()
        try:
            assert html_tables_to_markdown(html) == html
            assert tracemalloc.get_traced_memory()[1] < 30_000_000
        finally:
            tracemalloc.stop()


@given(pieces=in_pieces())
@examples(400)
def test_pieces_make_no_difference(pieces: list[str]) -> None:
    converter = TableConverter()
    given_out = [converter.feed(piece) for piece in pieces] + [converter.close()]
    assert "".join(given_out) == html_tables_to_markdown("".join(pieces))


@given(text=st.one_of(st.text(), answers))
@examples(400)
def test_text_without_a_whole_table_stays(text: str) -> None:
    text = text.replace("</table>", "")
    assert html_tables_to_markdown(text) == text


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        (f"a{SIMPLE}b{SIMPLE}", [SIMPLE, SIMPLE]),
        (f"a<table><tr><td>{SIMPLE}</td></tr></table>b", [f"<table><tr><td>{SIMPLE}</td></tr></table>"]),
        ("</table><TABLE border=1>x</Table>", ["<TABLE border=1>x</Table>"]),
        ("<table><tr><td>a", []),
    ],
)
def test_where_tables_are(text: str, tables: list[str]) -> None:
    assert [text[place] for place in html_tables(text)] == tables
