"""What a picture file is and where its pages are: told from its bytes in plain Python, none decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits

FileType = Literal["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "HEIF"]

_SUPPORTED = "PDF, JPEG, PNG, BMP, GIF, WebP, TIFF, HEIC/HEIF and AVIF"

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SUBFILE_TYPE, _WIDTH, _HEIGHT = 254, 256, 257
"""TIFF tags (TIFF 6.0, section 8)."""
_NOT_A_PAGE = 0b101
"""Bits of the subfile type: a smaller version of another page, or a transparency mask for one."""
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4, 16: 8}
"""TIFF's types of those, and their bytes."""
_MOST_TIFF_PAGES = 10_000
_MOST_TIFF_TAGS = 500
"""In one directory; a page has a few dozen."""


class PicturePage(NamedTuple):
    """Where a page of a picture file is."""

    at: int
    """The byte at which its directory begins in a TIFF; 0 in other files, which have one page."""
    width: int
    height: int
    """In pixels, before it is turned upright; 0 where only decoding tells."""


def is_pdf(data: bytes) -> bool:
    """Whether `data` is a PDF: those may begin with up to 1,024 bytes of something else, save a picture."""
    return b"%PDF-" in data[:1029] and _file_type(data) is None


def find_pages(data: bytes) -> list[PicturePage]:
    """The pages of a picture file: at least one. Quick, for none is decoded.

    What the file is, its content decides: JPEG, PNG, BMP, GIF, WebP, TIFF, HEIC/HEIF or AVIF. A TIFF has as
    many pages as it says, less the thumbnails and masks it marks as such; where it is cut short, the first page
    that is missing still counts. Any other file has one page, the first frame of an animation or the main
    picture of a collection.

    Raises SourceError if the data is of another type, has no pages, or has more than 10,000.
    """
    if supported_type(data) != "TIFF":
        return [PicturePage(0, 0, 0)]
    pages: list[PicturePage] = []
    others: list[PicturePage] = []
    for at, tags in _tiff_directories(data):
        page = PicturePage(at, tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0))
        (others if tags.get(_SUBFILE_TYPE, 0) & _NOT_A_PAGE else pages).append(page)
        # Every page may come with a thumbnail or two; a longer chain of those isn't followed to its end.
        if len(pages) > _MOST_TIFF_PAGES or len(others) > 2 * _MOST_TIFF_PAGES:
            raise SourceError(f"The TIFF has more than {_MOST_TIFF_PAGES:,} pages.")
    if not pages and not others:
        raise damaged()
    return pages or others[:1]  # nothing but thumbnails: better the first than none


def check_pixels(width: int, height: int, limits: IntakeLimits) -> None:
    """Refuses a page by the size that the file says it has, in pixels. Raises SourceTooLarge."""
    if width * height > limits.max_image_pixels:
        raise SourceTooLarge(
            f"The picture has {width} x {height} = {width * height:,} pixels; "
            f"the limit is {limits.max_image_pixels:,} pixels.",
        )


def supported_type(data: bytes) -> FileType:
    """Raises SourceError if it isn't one of `FileType`."""
    file_type = _file_type(data)
    if file_type is None:
        raise SourceError(
            f"This is neither a picture nor a document of a supported type. Supported are {_SUPPORTED}.",
            code="invalid_image_format",
        )
    return file_type


def _file_type(data: bytes) -> FileType | None:
    """The type of picture that `data` begins like."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(_TIFF_STARTS):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[4:8] == b"ftyp":
        brands = _iso_media_brands(data)
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
    return None


def _iso_media_brands(data: bytes) -> set[bytes]:
    """Main and compatible brands in the `ftyp` box that `data` begins with (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), 1024)
    return {data[8:12]} | {data[start : start + 4] for start in range(16, end, 4)}


class _TiffFormat(NamedTuple):
    """How a TIFF (TIFF 6.0, section 2) or BigTIFF writes what leads from page to page, for `struct`."""

    first: int
    """The byte at which the place of the first directory stands."""
    pointer: str
    length: str
    entry: str
    """Tag, type, how many values, and the values where they fit in."""


def tiff_format(data: bytes) -> _TiffFormat:
    order = "<" if data.startswith(b"II") else ">"
    if b"+" in data[2:4]:
        return _TiffFormat(8, order + "Q", order + "Q", order + "HHQ8s")
    return _TiffFormat(4, order + "I", order + "H", order + "HHI4s")


def _tiff_directories(data: bytes) -> Iterator[tuple[int, dict[int, int]]]:
    """Where each directory of a TIFF begins, with those of its tags that are a whole number.

    One that can't be read is the last, and has no tags.
    """
    form = tiff_format(data)
    byte_order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    at = number_at(form.pointer, data, form.first)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        count = number_at(form.length, data, at) or 0
        start = at + struct.calcsize(form.length)
        end = start + count * struct.calcsize(form.entry)
        following = number_at(form.pointer, data, end)
        if following is None or count > _MOST_TIFF_TAGS:
            yield at, {}
            return
        yield (
            at,
            {
                tag: int.from_bytes(value[: _WHOLE_NUMBERS[type_]], byte_order)
                for tag, type_, values, value in struct.iter_unpack(form.entry, data[start:end])
                if values == 1 and type_ in _WHOLE_NUMBERS
            },
        )
        at = following


def number_at(form: str, data: bytes, at: int) -> int | None:
    """The number at byte `at`; None if the data ends before it does."""
    if at + struct.calcsize(form) > len(data):
        return None
    number: int = struct.unpack_from(form, data, at)[0]
    return number


def damaged() -> SourceError:
    """The error for a picture that is broken."""
    return SourceError(
        "The picture can't be decoded: the file is damaged, incomplete or of an unsupported variant.",
        code="image_parse_error",
    )
