"""The harness notices what a client got wrong, and says why a client can't be run."""

from __future__ import annotations

import sys

import pytest

from tests.clients import harness
from tests.clients.harness import CannotInstall, Reading, answers, clients, complaint

RECEIPT, LETTER, SIGN = (
    (harness.ROOT / "examples" / f"{name}.txt").read_text(encoding="utf-8") for name in harness.PAGES
)


@pytest.mark.parametrize(
    "reading",
    [
        Reading("picture", "chat", "Free OCR.", SIGN),
        Reading("picture", "markdown around it", "Free OCR.", "# " + SIGN.replace("\n", "\n\n")),
        Reading("picture", "no prompt", "", SIGN.replace("Friday", "Fniday")),
        Reading("pdf", "chat", "Free OCR.", RECEIPT + LETTER + SIGN),
        Reading("fields", "typed", "Free OCR.", "Office hours"),
    ],
    ids=lambda reading: reading.how,
)
def test_right_answers(reading: Reading) -> None:
    assert complaint(reading) is None


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (Reading("picture", "a letter", "Free OCR.", SIGN.replace("Friday", "Fniday")), "Monday to Friday"),
        (Reading("picture", "no text", "Free OCR.", ""), "Office hours"),
        (Reading("picture", "another page", "", LETTER), "like the page"),
        (Reading("picture", "markers", "", f"<|ref|>text<|/ref|>{SIGN}"), "markers"),
        (Reading("pdf", "a page is missing", "Free OCR.", RECEIPT + LETTER), "Office hours"),
        (Reading("pdf", "the order of pages", "Free OCR.", SIGN + LETTER + RECEIPT), "Dear reader"),
        (Reading("fields", "no value", "Free OCR.", ""), "no value"),
    ],
    ids=lambda value: value.how if isinstance(value, Reading) else "",
)
def test_wrong_answers(reading: Reading, why: str) -> None:
    assert why in (complaint(reading) or "")


def test_every_client_has_a_version_and_a_lock() -> None:
    found = clients()
    assert len(found) > 15
    assert len({client.name for client in found}) == len(found)
    assert all(client.packages for client in found)
    assert harness.SLOW.issubset(client.name for client in found)


def test_answers_are_lines_of_json_between_other_output() -> None:
    code = 'import os; print("hello"); print(\'["picture", "chat", "", "\' + os.environ["OCR_BASE_URL"] + \'"]\')'
    assert answers([sys.executable, "-c", code], "http://x/v1") == [Reading("picture", "chat", "", "http://x/v1")]


def test_a_failure_shows_what_the_client_said() -> None:
    with pytest.raises(AssertionError, match="it was refused"):
        answers([sys.executable, "-c", 'raise SystemExit("it was refused")'], "http://x/v1")


@pytest.mark.parametrize(
    ("output", "error"),
    [("error: dns error: failed to lookup address", CannotInstall), ("error: no such version", AssertionError)],
)
def test_only_an_unreachable_registry_is_a_reason_to_skip(output: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="error: "):
        harness._install([sys.executable, "-c", f"raise SystemExit({output!r})"])
