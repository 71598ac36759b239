"""Page selections: parsing `--pages`, and the `pages` parameter of the request."""

from __future__ import annotations

import pytest

from ocr_client.selection import PageSelection, format_ranges, parse_selection


@pytest.mark.parametrize(
    ("text", "parameter", "indices"),
    [
        ("1", "0", [0]),
        ("1-3,6", "0-2,5", [0, 1, 2, 5]),
        ("6,1-3, 2", "0-2,5", [0, 1, 2, 5]),
        ("1-", None, [0, 1, 2, 3, 4, 5]),
        ("4-", "3-", [3, 4, 5]),
        ("2,4-", "1,3-", [1, 3, 4, 5]),
        ("5,3-,4-", "2-", [2, 3, 4, 5]),
    ],
)
def test_parse_pages(text: str, parameter: str | None, indices: list[int]) -> None:
    selection = parse_selection(text)
    assert selection.to_api() == parameter
    assert selection.indices(6) == indices
    if selection.open_from is None:
        assert selection.indices(None) == indices
        assert selection.page_count(len(indices)) is None
    else:
        assert selection.indices(None) is None
        assert selection.page_count(len(indices)) == 6, "the page count follows from the number of selected pages"


def test_all_pages() -> None:
    selection = PageSelection()
    assert (selection.to_api(), selection.indices(3), selection.page_count(3)) == (None, [0, 1, 2], 3)


@pytest.mark.parametrize("text", ["", "a", "0", "1-2-3", "3-1", "1,,2", "-3", "1-999999999", "²"])
def test_invalid_selections(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_selection(text)


def test_format_ranges() -> None:
    assert format_ranges([4, 2, 3, 0, 3]) == "0,2-4"
    assert format_ranges([]) == ""
