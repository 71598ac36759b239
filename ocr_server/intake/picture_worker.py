"""Pictures, as the processes decode them (`workers`): upright, in 8-bit RGB."""

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
"""EXIF orientation → what undoes it (TIFF 6.0, tag 274)."""

_file = b""
"""The picture file whose pages are decoded."""


def take(data: bytes) -> None:
    """Keep a picture file for the calls that follow."""
    global _file
    _file = data


def decode(page: list[int], limits: dict[str, Any]) -> tuple[None, Pixels]:
    """A page of the file that was taken. Raises as `decode_page`."""
    image = decode_page(_file, PicturePage(*page), IntakeLimits(**limits))
    return None, Pixels(*image.size, image.tobytes())


def forget() -> None:
    """Let go of the file."""
    take(b"")


def decode_page(data: bytes, page: PicturePage, limits: IntakeLimits) -> Image.Image:
    """One page of a picture file: 8-bit RGB, upright, at least 1 by 1 pixel.

    Transparency shows white. 16-bit grey keeps its range, CMYK goes through the ICC profile it brings; colour
    profiles of RGB pictures aren't applied. The pages of a file can be decoded side by side, each in the same
    time wherever it stands.

    Raises SourceError if the page is damaged, SourceTooLarge over `limits.max_image_pixels` pixels. Nothing else,
    whatever the bytes are.
    """
    check_pixels(page.width, page.height, limits)
    decoder = _decoder(supported_type(data))
    with _decoder_errors_as_source_errors():
        # The class itself, not Image.open: that one would also hold the picture against Pillow's own pixel
        # limit, which is process-wide. It also keeps HEIF out of Pillow's process-wide registry.
        image = decoder(_file_at(data, page))
        check_pixels(*image.size, limits)
        # A TIFF's orientation Pillow applies itself.
        return to_rgb(image if isinstance(image, TiffImageFile) else _upright(image))


def _decoder(file_type: FileType) -> type[ImageFile.ImageFile]:
    """Pillow's class for a type of file.

    The rare ones are imported late, which takes a while; their decoders get no threads, which take address space.
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
    """The file; in a TIFF, `page` comes first: Pillow reads directories one after the other, and this spares it."""
    file = io.BytesIO(data)
    if page.at:
        form = tiff_format(data)
        if number_at(form.pointer, data, form.first) != page.at:  # writing copies the data
            file.seek(form.first)
            file.write(struct.pack(form.pointer, page.at))
            file.seek(0)
    return file


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
def _decoder_errors_as_source_errors() -> Iterator[None]:
    """Damaged files make decoders raise nearly every exception there is; clients get one of ours.

    The original stays attached as the cause, for the log: its text can name memory addresses and file
    objects.
    """
    try:
        yield
    except SourceError:
        raise
    except MemoryError as error:
        raise SourceTooLarge("The picture takes more memory than can be had.") from error
    except Image.DecompressionBombError as error:
        raise SourceTooLarge("The picture has too many pixels.") from error
    except Exception as error:
        raise damaged() from error
