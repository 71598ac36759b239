"""What the command writes to its standard output."""

from __future__ import annotations

import json

import pytest

from ocr_client.output import JsonLinesOutput


def test_a_line_of_json_is_one_line_whatever_splits_it(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = "a\u2028b\u2029c\x85d 中"
    JsonLinesOutput().write_document(text)
    (line,) = capfdbinary.readouterr().out.decode().splitlines()
    assert json.loads(line)["source"] == text
    assert "中" in line
