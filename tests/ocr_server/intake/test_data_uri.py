"""Base64 data URIs in the forms that clients produce them."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import textwrap
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.intake.data_uri import decode_data_uri, decoded
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits

DATA = bytes(range(256)) + b"\xfb\xff\xfe?"  # has both + and / in its base64, and padding
TEXT = base64.b64encode(DATA).decode()


def refusal(uri: str, limits: IntakeLimits) -> SourceError:
    with pytest.raises(SourceError) as caught:
        decode_data_uri(uri, limits)
    assert caught.value.about == "file"
    return caught.value


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "data:;base64,",
        "DATA:image/PNG;BASE64,",
        "data:image/png;name=a.png;charset=utf-8;base64,",
        "data:image/png; base64,",
    ],
)
def test_media_types_and_parameters(head: str, limits: IntakeLimits) -> None:
    assert decode_data_uri(head + TEXT, limits) == DATA


def test_a_long_uri_without_a_comma_is_not_searched_for_parameters(limits: IntakeLimits) -> None:
    """Each of them would be a string of its own, of fifty bytes and more."""
    uri = "data:" + ";a" * 1_000_000
    tracemalloc.start()
    try:
        assert refusal(uri, limits).code == "invalid_image_url"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        "\n".join(textwrap.wrap(TEXT, 76)) + "\n",
        "\r\n\t" + TEXT.replace("A", " A"),
        TEXT.replace("+", "-").replace("/", "_"),
        quote(TEXT, safe=""),
        quote("\r\n".join(textwrap.wrap(TEXT, 64)), safe=""),
    ],
    ids=[
        "plain",
        "unpadded",
        "wrapped",
        "blanks",
        "URL-safe",
        "percent-encoded",
        "percent-encoded and wrapped",
    ],
)
def test_variants_of_base64(text: str, limits: IntakeLimits) -> None:
    assert decode_data_uri("data:image/png;base64," + text, limits) == DATA


@given(data=st.binary(min_size=1, max_size=400))
def test_any_bytes_survive(data: bytes, limits: IntakeLimits) -> None:
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert decode_data_uri(uri, limits) == data


@pytest.mark.parametrize(
    "uri",
    [
        "data:text/plain,hello",
        "data:,",
        "data:image/png;base64",
        "data:image/png;base64;",
        "data:image/png" + TEXT,
        "data:image/png;base64;foo," + TEXT,
        "data:" + "x" * 2000 + ";base64," + TEXT,
        "http://example.com/;base64," + TEXT,
    ],
)
def test_text_that_is_not_a_base64_data_uri(uri: str, limits: IntakeLimits) -> None:
    error = refusal(uri, limits)
    assert type(error) is SourceError
    assert "data:image/png;base64," in error.message


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "AA=A",
        "AA==AA==",
        "AA!A",
        "AAéA",
        "AA%zzA",
        "AAA%",
        "AAAA%4",
        "%%%%",
        "AA%\nAA",
        "AAA%%3D",
        "A\0AA",
        "AA,A",
    ],
)
def test_broken_base64(text: str, limits: IntakeLimits) -> None:
    error = refusal("data:image/png;base64," + text, limits)
    assert type(error) is SourceError
    assert "base64" in error.message


@pytest.mark.parametrize("text", ["", "=", "\n \n"])
def test_no_data(text: str, limits: IntakeLimits) -> None:
    assert type(refusal("data:image/png;base64," + text, limits)) is SourceError


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("size", [254, 255, 256])
def test_the_limit_applies_to_the_decoded_bytes(size: int, wrap: bool, limits: IntakeLimits) -> None:
    text = base64.b64encode(bytes(size)).decode()
    uri = "data:image/png;base64," + ("\n".join(textwrap.wrap(text, 8)) if wrap else text)
    assert decode_data_uri(uri, dataclasses.replace(limits, max_image_bytes=size)) == bytes(size)
    error = refusal(uri, dataclasses.replace(limits, max_image_bytes=size - 1))
    assert isinstance(error, SourceTooLarge)
    assert str(size) in error.message


def test_the_size_is_checked_before_decoding(limits: IntakeLimits) -> None:
    # Decoding it would find that the base64 is invalid.
    uri = "data:image/png;base64," + "!" * 1000
    assert isinstance(refusal(uri, dataclasses.replace(limits, max_image_bytes=100)), SourceTooLarge)


@pytest.mark.parametrize("shift", range(3))
def test_a_large_file_that_is_percent_encoded_throughout(shift: int, limits: IntakeLimits) -> None:
    """It is decoded in pieces, none of which ends within a sign. `%41` stands for A."""
    text = "A" * shift + "%41" * (1_200_000 - shift) + "%3D%0A"
    large = dataclasses.replace(limits, max_image_bytes=1_000_000)
    assert decode_data_uri("data:image/png;base64," + text, large) == bytes(900_000)


@pytest.mark.parametrize("text", ["%41" * 1000, "%" * 5000, "A%0A" * 1000])
def test_the_size_of_percent_encoded_text_is_checked(text: str, limits: IntakeLimits) -> None:
    small = dataclasses.replace(limits, max_image_bytes=400)
    assert isinstance(refusal("data:image/png;base64," + text, small), SourceError)


def test_the_size_is_known_before_the_percent_encoding_is_undone(limits: IntakeLimits) -> None:
    # Undoing it would find that it is invalid.
    uri = "data:image/png;base64," + "%zz" + "A" * 1000
    error = refusal(uri, dataclasses.replace(limits, max_image_bytes=100))
    assert isinstance(error, SourceTooLarge)
    assert "at least" in error.message


async def test_long_text_is_decoded_in_a_thread(limits: IntakeLimits) -> None:
    def thread(_: str, __: IntakeLimits) -> bytes:
        return threading.current_thread().name.encode()

    with ThreadPoolExecutor(1, "decoding") as threads:
        assert not (await decoded(thread, "A" * 1000, limits, threads)).startswith(b"decoding")
        assert (await decoded(thread, "A" * 100_000, limits, threads)).startswith(b"decoding")


@given(text=st.text(max_size=60))
def test_hostile_text_raises_nothing_but_source_errors(text: str, limits: IntakeLimits) -> None:
    for uri in (text, "data:" + text, "data:image/png;base64," + text):
        with contextlib.suppress(SourceError):
            assert isinstance(decode_data_uri(uri, limits), bytes)
