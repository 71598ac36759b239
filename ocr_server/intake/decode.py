"""Bytes of a picture file → the pages a person would see in it, upright, in 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from pi_heif import HeifImageFile
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ocr_server.errors import ApiError, InvalidRequest, TooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.rgb import to_rgb

_SUPPORTED = "JPEG, PNG, BMP, GIF, WebP, TIFF, HEIC/HEIF and AVIF"

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what undoes it (TIFF 6.0, tag 274)."""

_TIFF_SUBFILE_TYPE = 254
_NOT_A_PAGE = 0b101
"""Bits of that tag: a smaller version of another page, or a transparency mask for one."""


def decode_image(data: bytes, limits: IntakeLimits, *, param: str) -> list[Image.Image]:
    """All pages of `decode_pages` at once: at least one, at most `limits.max_pages`. Raises as it does."""
    return list(decode_pages(data, limits, param=param))


def decode_pages(data: bytes, limits: IntakeLimits, *, param: str) -> Iterator[Image.Image]:
    """The pages of a picture file, one at a time: 8-bit RGB, upright, at least 1 by 1 pixel each.

    What the file is, its content decides: JPEG, PNG, BMP, GIF, WebP, TIFF, HEIC/HEIF or AVIF. A TIFF has as
    many pages as it says, less the thumbnails and masks it marks as such; any other file has one, the first
    frame of an animation or the main picture of a collection. Transparency shows white. 16-bit grey keeps its
    range, CMYK goes through the ICC profile it brings; colour profiles of RGB pictures aren't applied.

    The size of every page is checked before the first is decoded. Each page takes 3 bytes a pixel, and a
    small file can hold many large ones: take them one by one where memory matters. Damage within a page shows
    when its turn comes.

    Raises InvalidRequest if the data is empty, of another type, damaged, or has more than `limits.max_pages`
    pages; TooLarge over `limits.max_image_bytes` bytes or `limits.max_image_pixels` pixels a page. Nothing
    else, whatever the bytes are.
    """
    if not data:
        raise InvalidRequest("The picture is empty (0 bytes).", param=param, code="empty_image_file")
    if len(data) > limits.max_image_bytes:
        raise TooLarge(
            f"The picture has {len(data):,} bytes; the limit is {limits.max_image_bytes:,} bytes.",
            param=param,
        )
    file_type = _file_type(data, param)
    with _decoder_errors_as_api_errors(param):
        # The class itself, not Image.open: that one would also hold the picture against Pillow's own pixel
        # limit, which is process-wide. It also keeps HEIF out of Pillow's process-wide registry.
        image = file_type(io.BytesIO(data))
        if not isinstance(image, TiffImageFile):
            _check_pixels(image, limits, param)
            yield to_rgb(_upright(image))
            return
        for frame in _page_frames(image, limits, param):
            image.seek(frame)
            yield to_rgb(image)  # Pillow applies a TIFF's orientation while loading it


def _file_type(data: bytes, param: str) -> type[ImageFile.ImageFile]:
    """Pillow's class for the type of file that `data` begins like."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith(_TIFF_STARTS):
        return TiffImageFile
    if data.startswith(b"BM"):
        return BmpImageFile
    if data[4:8] == b"ftyp":
        brands = _iso_media_brands(data)
        if brands & _AVIF_BRANDS:
            return AvifImageFile
        if brands & _HEIF_BRANDS:
            heif: type[ImageFile.ImageFile] = HeifImageFile
            return heif
    if b"%PDF-" in data[:1024]:
        message = f"This is a PDF; PDFs aren't supported here. Supported pictures are {_SUPPORTED}."
    else:
        message = f"This isn't a picture of a supported type. Supported are {_SUPPORTED}."
    raise InvalidRequest(message, param=param, code="invalid_image_format")


def _iso_media_brands(data: bytes) -> set[bytes]:
    """Main and compatible brands in the `ftyp` box that `data` begins with (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), 1024)
    return {data[8:12]} | {data[start : start + 4] for start in range(16, end, 4)}


def _page_frames(image: TiffImageFile, limits: IntakeLimits, param: str) -> list[int]:
    """The frames of a TIFF that are pages of their own, each within the limits: at least one."""
    pages: list[int] = []
    # Every page may come with a thumbnail or two; without a bound, walking a long chain of those would take
    # hours.
    for frame in range(2 * limits.max_pages + 16):
        try:
            image.seek(frame)
        except EOFError:
            break
        subfile_type = image.tag_v2.get(_TIFF_SUBFILE_TYPE, 0)
        if isinstance(subfile_type, int) and subfile_type & _NOT_A_PAGE:
            continue
        _check_pixels(image, limits, param)
        pages.append(frame)
        if len(pages) > limits.max_pages:
            break
    else:
        pages = list(range(limits.max_pages + 1))
    if len(pages) > limits.max_pages:
        raise InvalidRequest(f"The TIFF has more than {limits.max_pages} pages, the limit.", param=param)
    if pages:
        return pages
    image.seek(0)  # nothing but thumbnails: better the first than none
    _check_pixels(image, limits, param)
    return [0]


def _check_pixels(image: Image.Image, limits: IntakeLimits, param: str) -> None:
    """Refuses a picture by the size in its header."""
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise TooLarge(
            f"The picture has {width} x {height} = {width * height:,} pixels; "
            f"the limit is {limits.max_image_pixels:,} pixels.",
            param=param,
        )


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned the way its EXIF data says; as it is where there is none or it is broken."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # hostile metadata raises anything; the picture itself is fine
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


@contextlib.contextmanager
def _decoder_errors_as_api_errors(param: str) -> Iterator[None]:
    """Damaged files make decoders raise nearly every exception there is; clients get one of ours.

    The original stays attached as the cause, for the log: its text can name memory addresses and file
    objects.
    """
    try:
        yield
    except ApiError:
        raise
    except MemoryError as error:
        raise TooLarge("The picture takes more memory than can be had.", param=param) from error
    except Image.DecompressionBombError as error:
        raise TooLarge("The picture has too many pixels.", param=param) from error
    except Exception as error:
        raise InvalidRequest(
            "The picture can't be decoded: the file is damaged, incomplete or of an unsupported variant.",
            param=param,
            code="image_parse_error",
        ) from error
