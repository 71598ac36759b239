"""Decodes pictures to upright 8-bit RGB. Runs in the worker processes (see `workers`)."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ocr_server.intake.decode import (
    FileType,
    PicturePage,
    check_pixels,
    damaged,
    number_at,
    supported_type,
    tiff_format,
)
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.rgb import to_rgb
from ocr_server.intake.worker import Pixels

_DECODERS: dict[FileType, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "GIF": GifImageFile,
    "WEBP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (TIFF 6.0, tag 274) → the operation that undoes it."""

_file = b""
"""The picture file whose pages this process decodes."""


def take(data: bytes) -> None:
    """Store a picture file for the following calls."""
    global _file
    _file = data


def measure(page: list[int], limits: dict[str, Any]) -> list[int]:
    """Return the width and height of a page of the stored file, before its orientation is applied.

    Raises as `decode_page`.
    """
    return list(open_page(_file, PicturePage(*page), IntakeLimits(**limits)).size)


def decode(page: list[int], limits: dict[str, Any]) -> tuple[None, Pixels]:
    """Decode a page of the stored file. Raises as `decode_page`."""
    image = decode_page(_file, PicturePage(*page), IntakeLimits(**limits))
    return None, Pixels(*image.size, image.tobytes())


def forget() -> None:
    """Release the stored file."""
    take(b"")


def decode_page(data: bytes, page: PicturePage, limits: IntakeLimits) -> Image.Image:
    """Decode one page of a picture file to 8-bit RGB, upright, at least 1 by 1 pixel.

    Transparent areas become white. 16-bit grey is scaled to 8 bits. CMYK is converted with the embedded ICC profile;
    colour profiles of RGB pictures are not applied. Pages of a file can be decoded in any order and concurrently, and
    the time that a page takes does not depend on its position.

    Raises:
        SourceError: The page is damaged.
        SourceTooLarge: It has more than `limits.max_image_pixels` pixels, or takes too much memory.
    """
    image = open_page(data, page, limits)
    with _decoder_errors_as_source_errors():
        # Pillow itself applies the orientation of a TIFF.
        return to_rgb(image if isinstance(image, TiffImageFile) else _upright(image))


def open_page(data: bytes, page: PicturePage, limits: IntakeLimits) -> ImageFile.ImageFile:
    """Open one page of a picture file without decoding it. Raises as `decode_page`."""
    check_pixels(page.width, page.height, limits)
    decoder = _decoder(supported_type(data))
    with _decoder_errors_as_source_errors():
        # The plugin class itself instead of Image.open, which also applies Pillow's own pixel limit, a process-wide
        # setting. HEIF need not be registered with Pillow then either, which is process-wide, too.
        image = decoder(_file_at(data, page))
        check_pixels(*image.size, limits)
        return image


def _decoder(file_type: FileType) -> type[ImageFile.ImageFile]:
    """Return Pillow's plugin class for a type of file.

    The rarely used ones are imported when they are needed, since importing them takes a while. Their decoders run
    without threads of their own, which would take address space.
    """
    if file_type == "AVIF":
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        return AvifImagePlugin.AvifImageFile
    if file_type == "HEIF":
        import pi_heif

        pi_heif.options.DECODE_THREADS = 1
        heif: type[ImageFile.ImageFile] = pi_heif.HeifImageFile
        return heif
    return _DECODERS[file_type]


def _file_at(data: bytes, page: PicturePage) -> io.BytesIO:
    """Return the file, for a TIFF with `page` as its first page.

    Pillow reads the directories one after the other, which takes long for the last of many pages.
    """
    file = io.BytesIO(data)
    if page.at:
        form = tiff_format(data)
        if number_at(form.pointer, data, form.first) != page.at:  # only if needed, since writing copies the data
            file.seek(form.first)
            file.write(struct.pack(form.pointer, page.at))
            file.seek(0)
    return file


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Missing or damaged EXIF data leaves the picture as it is."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata can raise any exception; the picture itself is fine
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


@contextlib.contextmanager
def _decoder_errors_as_source_errors() -> Iterator[None]:
    """Turn whatever a decoder raises for a damaged file, which can be nearly any exception, into a SourceError.

    The original exception stays attached as the cause. It is for the log only: its text can contain memory addresses
    and file objects.
    """
    try:
        yield
    except SourceError:
        raise
    except MemoryError as error:
        raise SourceTooLarge("Decoding the picture takes more memory than is available.") from error
    except Image.DecompressionBombError as error:
        raise SourceTooLarge("The picture has too many pixels.") from error
    except Exception as error:
        raise damaged() from error
