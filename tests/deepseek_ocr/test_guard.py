"""The settings of the n-gram guard, and the `extra_args` that carry them."""

from __future__ import annotations

from typing import Any

import pytest

from deepseek_ocr.guard import Guard


def test_the_published_settings_are_the_default() -> None:
    assert Guard.from_args({}) == Guard() == Guard(ngram_size=30, window_size=90, whitelist_token_ids=None)


def test_every_setting_is_read() -> None:
    args = {"ngram_size": 20, "window_size": 50, "whitelist_token_ids": [3, 4], "another": "ignored"}
    assert Guard.from_args(args) == Guard(20, 50, (3, 4))


def test_an_empty_whitelist_is_not_an_unset_one() -> None:
    assert Guard.from_args({"whitelist_token_ids": []}).whitelist_token_ids == ()


@pytest.mark.parametrize("guard", [Guard(), Guard(0), Guard(20, 50, (3, 4)), Guard(whitelist_token_ids=())])
def test_what_is_written_is_read_back(guard: Guard) -> None:
    assert Guard.from_args(guard.to_args()) == guard


def test_an_unset_whitelist_is_not_sent() -> None:
    assert Guard().to_args() == {"ngram_size": 30, "window_size": 90}


@pytest.mark.parametrize(
    ("field", "args"),
    [
        ("ngram_size", {"ngram_size": -1}),
        ("ngram_size", {"ngram_size": 2.5}),
        ("ngram_size", {"ngram_size": True}),
        ("ngram_size", {"ngram_size": 91}),
        ("window_size", {"window_size": 0}),
        ("window_size", {"window_size": None}),
        ("whitelist_token_ids", {"whitelist_token_ids": 5}),
        ("whitelist_token_ids", {"whitelist_token_ids": [-1]}),
        ("whitelist_token_ids", {"whitelist_token_ids": [True]}),
        ("whitelist_token_ids", {"whitelist_token_ids": list(range(33))}),
    ],
)
def test_an_error_begins_with_the_name_of_the_setting(field: str, args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{field} must "):
        Guard.from_args(args)
