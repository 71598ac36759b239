"""Image formats, colour modes, orientations, and the ways to send an image."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import Any, Protocol

import httpx
import numpy as np
import pillow_heif
import pytest
from live_requests import MODEL, PICTURES, RECEIPT, SEPARATOR, SIGN, ask, call, data_uri, saved, text_of, truth
from openai import OpenAI
from PIL import Image
from rapidfuzz.distance import Levenshtein

pytestmark = pytest.mark.live


class Files(Protocol):
    """The web server for images in conftest.py."""

    url: str
    paths: dict[str, bytes]
    seen: list[str]


@pytest.fixture
def read(client: OpenAI) -> Callable[..., str]:
    def read(*pictures: str | bytes, **options: Any) -> str:
        return text_of(client.chat.completions.create(**call(*pictures, **options)))

    return read


@pytest.fixture
def page() -> Image.Image:
    """The sign: black on white, RGB."""
    return Image.open(SIGN).convert("RGB")


def assert_reads(text: str, *, error: float = 0.0) -> None:
    """Check that the sign was read. `error` is the share of characters that lossy compression may make wrong."""
    expected = truth(SIGN)
    assert Levenshtein.distance(text, expected) <= error * len(expected), text


def heic(page: Image.Image) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(page).save(file, quality=95)
    return file.getvalue()


# Files


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_lossless_files_are_read_exactly(read: Callable[..., str], page: Image.Image, kind: str) -> None:
    assert_reads(read(saved(page, kind)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 85, "progressive": True}),
        ("WEBP", {"quality": 90}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 90}),
        ("TIFF", {"compression": "jpeg"}),
    ],
    ids=str,
)
def test_lossy_files_are_read_nearly_exactly(
    read: Callable[..., str], page: Image.Image, kind: str, options: dict[str, Any]
) -> None:
    assert_reads(read(saved(page, kind, **options)), error=0.1)


def test_heic(read: Callable[..., str], page: Image.Image) -> None:
    data = heic(page)
    assert data[4:8] == b"ftyp"
    assert_reads(read(data_uri(data, "image/heic")), error=0.1)


def test_the_format_is_detected_from_the_content(read: Callable[..., str], page: Image.Image) -> None:
    assert_reads(read(data_uri(saved(page, "BMP"), "image/jpeg")))
    assert_reads(read(data_uri(saved(page), "application/octet-stream")))


def test_the_first_frame_of_an_animation_is_read(read: Callable[..., str], page: Image.Image) -> None:
    other = Image.new("RGB", page.size, "white")
    assert_reads(read(saved(page, "GIF", save_all=True, append_images=[other, other])))


@pytest.mark.parametrize("compression", [None, "group4"], ids=str)
def test_every_page_of_a_tiff_is_read(read: Callable[..., str], compression: str | None) -> None:
    pages = [Image.open(path).convert("1" if compression else "RGB") for path in (SIGN, RECEIPT, SIGN)]
    options = {"compression": compression} if compression else {}
    text = read(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options))
    expected = [truth(SIGN), truth(RECEIPT), truth(SIGN)]
    found = text.split(SEPARATOR)
    assert len(found) == 3
    for each, true in zip(found, expected, strict=True):
        assert Levenshtein.distance(each, true) <= (0.1 * len(true) if compression else 0), each


def test_pages_of_a_tiff_keep_their_place_among_other_images(read: Callable[..., str]) -> None:
    sign, receipt = (Image.open(path).convert("RGB") for path in (SIGN, RECEIPT))
    text = read(saved(receipt), saved(sign, "TIFF", save_all=True, append_images=[receipt]), saved(sign))
    assert text == SEPARATOR.join(map(truth, (RECEIPT, SIGN, RECEIPT, SIGN)))


# Colours


def sixteen_bit(page: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(page.convert("L")).astype(np.uint16) * 257)


def transparent(page: Image.Image) -> Image.Image:
    """Black letters on a transparent background: only the alpha channel contains the text."""
    image = Image.new("RGBA", page.size, (0, 0, 0, 0))
    image.putalpha(page.convert("L").point(lambda value: 255 - value))
    return image


@pytest.mark.parametrize(
    "convert",
    [
        sixteen_bit,
        transparent,
        lambda page: page.convert("L"),
        lambda page: page.convert("LA"),
        lambda page: page.convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
    ],
    ids=["16 bit grey", "transparent", "grey", "grey with alpha", "palette"],
)
def test_colour_modes(
    read: Callable[..., str], page: Image.Image, convert: Callable[[Image.Image], Image.Image]
) -> None:
    assert_reads(read(saved(convert(page))), error=0.03)


def test_one_bit(read: Callable[..., str], page: Image.Image) -> None:
    assert_reads(read(saved(page.convert("1", dither=Image.Dither.NONE))), error=0.1)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(read: Callable[..., str], page: Image.Image, kind: str) -> None:
    assert_reads(read(saved(page.convert("CMYK"), kind)), error=0.1)


def test_a_transparent_palette(read: Callable[..., str], page: Image.Image) -> None:
    """Black text on a transparent palette colour, which would be lost on a black background."""
    palette = page.convert("L").point(lambda value: 1 if value > 127 else 0).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    assert_reads(read(saved(palette, transparency=1)), error=0.1)


# Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "turn"), [(6, Image.Transpose.ROTATE_90), (3, Image.Transpose.ROTATE_180)])
def test_the_exif_orientation_is_applied(
    read: Callable[..., str], page: Image.Image, kind: str, orientation: int, turn: Image.Transpose
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_reads(read(saved(page.transpose(turn), kind, exif=exif)), error=0.1)


# Ways to send an image


def test_base64_with_line_breaks(read: Callable[..., str]) -> None:
    lines = base64.encodebytes(SIGN.read_bytes()).decode()
    assert "\n" in lines.rstrip()
    assert_reads(read(f"data:image/png;base64,{lines}"))
    assert_reads(read(f"data:image/png;base64,{lines}".replace("\n", "\r\n")))


def test_base64_without_padding_in_the_url_safe_alphabet(read: Callable[..., str]) -> None:
    text = base64.urlsafe_b64encode(SIGN.read_bytes() + b"\0\0").decode()
    assert re.search("[-_]", text)
    assert_reads(read(f"data:image/png;base64,{text.rstrip('=')}"))


def test_an_image_from_a_web_server(read: Callable[..., str], files: Files) -> None:
    files.paths["/a%20sign.png?page=1"] = SIGN.read_bytes()
    assert_reads(read(f"{files.url}/a%20sign.png?page=1"))
    assert_reads(read(f"{files.url}/redirect-to/a%20sign.png?page=1"))
    assert files.seen == ["/a%20sign.png?page=1", "/redirect-to/a%20sign.png?page=1", "/a%20sign.png?page=1"]


def test_images_from_a_data_uri_and_a_web_server(read: Callable[..., str], files: Files) -> None:
    files.paths["/sign"] = SIGN.read_bytes()
    assert read(data_uri(RECEIPT), f"{files.url}/sign") == SEPARATOR.join((truth(RECEIPT), truth(SIGN)))


def test_a_request_without_the_sdk(http: httpx.Client) -> None:
    """With null fields, which the SDK would not send."""
    body = {"model": MODEL, "messages": ask(SIGN), "temperature": None, "stream": None, "n": None, "ocr": None}
    body["stream"] = False
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == truth(SIGN)


def test_the_examples_include_png_and_jpeg() -> None:
    assert {path.suffix for path in PICTURES} >= {".png", ".jpg"}
