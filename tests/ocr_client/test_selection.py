"""The pages that `--pages` names, and what is asked of the server for them."""

from __future__ import annotations

import pytest

from ocr_client.selection import Selection, parse, ranges


@pytest.mark.parametrize(
    ("text", "request_", "of_six"),
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
def test_selections(text: str, request_: str | None, of_six: list[int]) -> None:
    selection = parse(text)
    assert selection.request() == request_
    assert selection.indices(6) == of_six
    if selection.start is None:
        assert selection.indices(None) == of_six
        assert selection.page_count(len(of_six)) is None
    else:
        assert selection.indices(None) is None
        assert selection.page_count(len(of_six)) == 6, "as the server's count of selected pages says"


def test_all_pages() -> None:
    assert (Selection().request(), Selection().indices(3), Selection().page_count(3)) == (None, [0, 1, 2], 3)


@pytest.mark.parametrize("text", ["", "a", "0", "1-2-3", "3-1", "1,,2", "-3", "1-999999999", "²"])
def test_what_is_no_selection(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


def test_ranges() -> None:
    assert ranges([4, 2, 3, 0, 3]) == "0,2-4"
    assert ranges([]) == ""
