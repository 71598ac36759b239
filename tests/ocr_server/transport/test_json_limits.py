"""The limits on a JSON text count what a parser would meet, however the text is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.errors import InvalidRequest
from ocr_server.transport import json_limits
from ocr_server.transport.json_limits import CHUNK_BYTES, MAX_ESCAPES, MAX_NON_ASCII_BYTES, MAX_VALUES, check_json
from tests.ocr_server.conftest import examples

TEXT = st.text('\\",[{}]:a\n/é', max_size=8)
JSON = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, min_size=1, max_size=4) | st.dictionaries(TEXT, inner, min_size=1, max_size=4),
    max_leaves=40,
)


def size_of(value: object) -> int:
    """Return the number of values of a JSON value."""
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return 1 + sum(map(size_of, inner))


def refused(text: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_json(text)
    assert caught.value.code == "json_too_large"
    return caught.value.message


class TestValues:
    @given(JSON, st.booleans())
    @examples(500)
    def test_the_count_is_exact(self, value: object, ascii_only: bool) -> None:
        text = json.dumps(value, ensure_ascii=ascii_only).encode()
        size = size_of(value)
        assert not json_limits._values_exceed(text, size)
        if size > 1:
            assert json_limits._values_exceed(text, size - 1)

    @pytest.mark.parametrize("sign", [b"[", b"{", b",", b"1,", b'{"a":', b'"",'])
    def test_too_many_are_refused(self, sign: bytes) -> None:
        check_json(sign * (MAX_VALUES - 1))
        assert f"{MAX_VALUES:,} values" in refused(sign * (MAX_VALUES + 1))

    @pytest.mark.parametrize("text", [b",[{" * MAX_VALUES, b'\\",' * MAX_VALUES, b"\\\\," * MAX_VALUES])
    @pytest.mark.parametrize("shift", range(4))
    def test_signs_in_a_long_string_do_not_count(self, text: bytes, shift: int) -> None:
        """Over several chunks, whose ends fall at every place of an escape."""
        string = b'{"a":"' + b"x" * shift + text * (2 * CHUNK_BYTES // len(text) + 1)
        assert len(string) > 2 * CHUNK_BYTES
        check_json(string + b'"}')
        refused(string + b'",' + b"1," * MAX_VALUES + b"1}")

    def test_quotation_marks_without_end_are_refused(self) -> None:
        refused(b'[,"",' + b'"' * 10 * CHUNK_BYTES + b"," * MAX_VALUES)


class TestEscapes:
    def test_a_wrapped_and_escaped_picture_of_50_mb(self) -> None:
        check_json(b'"' + (b"A" * 37 + b"\\/" + b"A" * 38 + b"\\r\\n") * (67_000_000 // 76) + b'"')

    @pytest.mark.parametrize("escape", [b"\\n", b"\\\\", b"a\\n", b"\\u00e9"])
    def test_too_many_are_refused(self, escape: bytes) -> None:
        check_json(b'"' + escape * (MAX_ESCAPES - 10) + b'"')
        assert f"{MAX_ESCAPES:,} escapes" in refused(b'"' + escape * (MAX_ESCAPES + 10) + b'"')


class TestCharacters:
    @pytest.mark.parametrize("character", ["é", "页", "\U0001f600"])
    def test_too_many_beyond_ascii_are_refused(self, character: str) -> None:
        count = MAX_NON_ASCII_BYTES // len(character.encode())
        check_json(b'"' + ("a" + character).encode() * count + b'"')
        assert f"{MAX_NON_ASCII_BYTES:,} bytes" in refused(b'"' + character.encode() * (count + 1) + b'"')

    def test_a_picture_with_a_name_in_any_script(self) -> None:
        check_json('{"filename":"发票.pdf","file_data":"'.encode() + b"A" * 20_000_000 + b'"}')
