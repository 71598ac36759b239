"""The threat model names code and tests that exist, for each of its claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config import ROOT

TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|") and not line.startswith(("| attack", "|---"))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_each_claim_names_its_code_and_its_tests(row: list[str]) -> None:
    assert len(row) == 4
    _, _, code, tests = row
    for cell, folders in ((code, ["ocr_server", "."]), (tests, ["tests", "tests/ocr_server"])):
        names = re.findall(r"`([^`]+)`", cell)
        assert names, f"no file is named: {cell}"
        for name in names:
            assert any(_exists(ROOT / folder, name) for folder in folders), f"{name} does not exist"


def _exists(folder: Path, name: str) -> bool:
    return any(folder.glob(name.rstrip("/")))
