"""Selections such as `1-3,7`: which pages they select, and the messages of those that are refused."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.intake.page_selection import MAX_LENGTH, TooManyPages, parse_pages


def chosen(selection: str | Sequence[int], first: int = 1, page_count: int = 10, most: int = 100) -> list[int]:
    return parse_pages(selection, first=first).resolve(page_count, most=most)


def refusal(selection: str | Sequence[int], first: int = 1, page_count: int = 10, most: int = 100) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is what the tests look at
        chosen(selection, first, page_count, most)
    return str(caught.value)


class TestSelected:
    @pytest.mark.parametrize(
        ("selection", "first", "indices"),
        [
            ("1", 1, [0]),
            ("1-3,7", 1, [0, 1, 2, 6]),
            ("8-", 1, [7, 8, 9]),
            ("10-", 1, [9]),
            ("7,1-3", 1, [6, 0, 1, 2]),
            ("3,1-5,2,3", 1, [2, 0, 1, 3, 4]),
            ("5-5", 1, [4]),
            (" 1 - 2 ,\t4 ", 1, [0, 1, 3]),
            ("010", 1, [9]),
            ([3, 1, 3], 1, [2, 0]),
            ((1, 10), 1, [0, 9]),
            ("0", 0, [0]),
            ("0,2-4", 0, [0, 2, 3, 4]),
            ("8-", 0, [8, 9]),
            ([0, 9], 0, [0, 9]),
        ],
    )
    def test_pages(self, selection: str | Sequence[int], first: int, indices: list[int]) -> None:
        assert chosen(selection, first) == indices

    @given(
        st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), min_size=1, max_size=20), st.sampled_from([0, 1])
    )
    def test_a_text_and_a_list_select_the_same(self, ranges: list[tuple[int, int]], first: int) -> None:
        ranges = [(min(pair), max(pair)) for pair in ranges]
        text = ",".join(f"{start + first}-{end + first}" for start, end in ranges)
        pages = [page for start, end in ranges for page in range(start, end + 1)]
        expected = sorted(set(pages), key=pages.index)
        assert chosen(text, first, 30) == expected
        assert chosen([page + first for page in pages], first, 30) == expected

    @given(st.text(alphabet="0123456789-, x", max_size=30), st.integers(1, 50), st.sampled_from([0, 1]))
    def test_any_text_selects_pages_that_exist_or_is_refused(self, text: str, page_count: int, first: int) -> None:
        pages = None
        try:
            pages = chosen(text, first, page_count, most=20)
        except ValueError as error:
            message = str(error)
        if pages is None:
            assert message[0].isupper() or message[0] == "'"
            assert message.endswith(".")
        else:
            assert 1 <= len(pages) == len(set(pages)) <= 20
            assert set(pages) <= set(range(page_count))


class TestRefused:
    @pytest.mark.parametrize(
        "selection",
        [",", "1,", ",1", "-3", "-", "1--3", "1-2-3", "a", "1;2", "1.5", "+1", "1e3", "٣", "²", "1–3", "0x1"],
    )
    def test_text_that_is_not_a_selection(self, selection: str) -> None:
        assert "is not a page number or a range of pages. An example of a selection is 1-3,7" in refusal(selection)

    def test_numbers_below_the_first_page(self) -> None:
        for selection in ("0", "0-3", "1-3,0", [0], [1, -1]):
            assert "numbered from 1" in refusal(selection)
        assert refusal([-1], first=0) == "There is no page -1: pages are numbered from 0."

    def test_a_reversed_range(self) -> None:
        assert refusal("3-1") == "The range 3-1 is reversed: write 1-3."

    def test_a_page_beyond_the_last(self) -> None:
        assert (
            refusal("12")
            == refusal("1-12")
            == refusal([12])
            == refusal("12-")
            == ("Page 12 does not exist: the document has 10 pages.")
        )
        assert refusal("10", first=0) == "Page 10 does not exist: the document has 10 pages, numbered from 0."
        assert refusal("2", page_count=1) == "Page 2 does not exist: the document has 1 page."

    def test_empty_selections_and_numbers_that_are_not_whole(self) -> None:
        assert refusal([]) == refusal("") == refusal(" ") == "No pages are selected."
        for odd in ([True], [1.0], ["1"], [None]):
            assert refusal(odd) == "Page numbers must be whole numbers."  # type: ignore[arg-type]

    def test_more_pages_than_the_limit(self) -> None:
        assert chosen("1-5", most=5) == [0, 1, 2, 3, 4]
        for selection in ("1-6", "1-5,6", "1-", [1, 2, 3, 4, 5, 6]):
            with pytest.raises(TooManyPages, match="the limit is 5"):
                chosen(selection, most=5)

    def test_selections_that_are_too_long(self) -> None:
        assert "10,000 characters" in refusal("1," * (MAX_LENGTH // 2) + "1")
        assert "10,000 numbers" in refusal([1] * (MAX_LENGTH + 1))
        assert "is not a page number" in refusal("9" * 5000)
        assert len(refusal("x" * 5000)) < 200


class TestCost:
    """Hostile selections take little time and memory."""

    @pytest.mark.parametrize("page_count", [10, 10**9])
    @pytest.mark.parametrize(
        "selection", ["1-999999999", "1-", ",".join(["1-"] * 3000), ",".join(f"{n}-{n + 1000}" for n in range(1, 1000))]
    )
    def test_large_numbers(self, selection: str, page_count: int) -> None:
        start = time.process_time()
        try:
            pages = chosen(selection, page_count=page_count, most=2000)
        except ValueError:
            pages = []
        assert len(pages) <= 2000
        assert time.process_time() - start < 1
