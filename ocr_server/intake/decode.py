"""Determines the type of a picture file and where its pages are, from its bytes alone and without decoding it."""

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
"""Bits of the subfile type: a reduced version of another page, or a transparency mask for one."""
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4, 16: 8}
"""Field types of TIFF that are unsigned integers, and their sizes in bytes."""
_MOST_TIFF_PAGES = 10_000
_MOST_TIFF_TAGS = 500
"""Maximum number of tags in one directory; a page has a few dozen."""


class PicturePage(NamedTuple):
    """The location of a page in a picture file."""

    at: int
    """Byte offset of its directory in a TIFF; 0 in other files, which have one page."""
    width: int
    height: int
    """Size in pixels before the orientation is applied; 0 where it is known only after decoding."""


def is_pdf(data: bytes) -> bool:
    """Return whether `data` is a PDF. Up to 1,024 other bytes may come first, unless they begin a picture file."""
    return b"%PDF-" in data[:1029] and _file_type(data) is None


def find_pages(data: bytes) -> list[PicturePage]:
    """Return the pages of a picture file, at least one. Fast, since nothing is decoded.

    The type of the file is determined from its content: JPEG, PNG, BMP, GIF, WebP, TIFF, HEIC/HEIF or AVIF. A TIFF has
    the pages that its directories describe, except those marked as thumbnails or masks; if the file is truncated, the
    first missing page is included. Any other file has one page: the first frame of an animation or the primary picture
    of a collection.

    Raises:
        SourceError: The data is of another type, has no pages, or has more than 10,000.
    """
    if supported_type(data) != "TIFF":
        return [PicturePage(0, 0, 0)]
    pages: list[PicturePage] = []
    others: list[PicturePage] = []
    for at, tags in _tiff_directories(data):
        page = PicturePage(at, tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0))
        (others if tags.get(_SUBFILE_TYPE, 0) & _NOT_A_PAGE else pages).append(page)
        # A page may have a thumbnail or two; a longer chain of thumbnails is not followed to its end.
        if len(pages) > _MOST_TIFF_PAGES or len(others) > 2 * _MOST_TIFF_PAGES:
            raise SourceError(f"The TIFF has more than {_MOST_TIFF_PAGES:,} pages.")
    if not pages and not others:
        raise damaged()
    return pages or others[:1]  # only thumbnails: the first is better than none


def check_pixels(width: int, height: int, limits: IntakeLimits) -> None:
    """Raise SourceTooLarge if a page of `width` by `height` pixels exceeds `limits.max_image_pixels`."""
    if width * height > limits.max_image_pixels:
        raise SourceTooLarge(
            f"The picture has {width} x {height} = {width * height:,} pixels; "
            f"the limit is {limits.max_image_pixels:,} pixels.",
        )


def supported_type(data: bytes) -> FileType:
    """Return the type of a picture file. Raises SourceError if it is not a supported one."""
    file_type = _file_type(data)
    if file_type is None:
        raise SourceError(
            f"Unsupported file type. Supported types are {_SUPPORTED}.",
            code="invalid_image_format",
        )
    return file_type


def _file_type(data: bytes) -> FileType | None:
    """Return the type that the first bytes of `data` identify, None if it is not a supported picture."""
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
    """Return the major and compatible brands of the `ftyp` box at the beginning (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), 1024)
    return {data[8:12]} | {data[start : start + 4] for start in range(16, end, 4)}


class _TiffFormat(NamedTuple):
    """Layout of the directories of a TIFF (TIFF 6.0, section 2) or BigTIFF, as format strings of `struct`."""

    first: int
    """Byte offset of the pointer to the first directory."""
    pointer: str
    length: str
    entry: str
    """Tag, type, number of values, and the values if they fit into the field."""


def tiff_format(data: bytes) -> _TiffFormat:
    """Return the layout of a TIFF: its byte order, and the field widths of TIFF or BigTIFF."""
    order = "<" if data.startswith(b"II") else ">"
    if b"+" in data[2:4]:
        return _TiffFormat(8, order + "Q", order + "Q", order + "HHQ8s")
    return _TiffFormat(4, order + "I", order + "H", order + "HHI4s")


def _tiff_directories(data: bytes) -> Iterator[tuple[int, dict[int, int]]]:
    """Yield the byte offset of each directory of a TIFF, with those of its tags whose value is one unsigned integer.

    A directory that cannot be read is the last one, and has no tags. So is the one with which the directories would
    take more bytes than the file has: they overlap, and reading them would take time without bound.
    """
    form = tiff_format(data)
    byte_order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    at = number_at(form.pointer, data, form.first)
    bytes_left = len(data)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        count = number_at(form.length, data, at) or 0
        start = at + struct.calcsize(form.length)
        end = start + count * struct.calcsize(form.entry)
        following = number_at(form.pointer, data, end)
        bytes_left -= end - at
        if following is None or count > _MOST_TIFF_TAGS or bytes_left < 0:
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
    """Return the number at byte offset `at`, in the `struct` format `form`; None if the data ends before it."""
    if at + struct.calcsize(form) > len(data):
        return None
    number: int = struct.unpack_from(form, data, at)[0]
    return number


def damaged() -> SourceError:
    """Return the error for a damaged picture."""
    return SourceError(
        "The picture can't be decoded: the file is damaged, incomplete or of an unsupported variant.",
        code="image_parse_error",
    )
