"""Draws the blocks of a page on its picture, and combines such pictures into a PDF."""

from __future__ import annotations

import colorsys
import io
import math
import zlib
from collections.abc import Sequence
from typing import BinaryIO

from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.output.blocks import Block, PixelBox

Colour = tuple[int, int, int]

MAX_PIXELS = 16_000_000
"""Size in pixels up to which blocks are drawn on the page itself: a page in A4 at 400 dpi."""
_FILL_OPACITY = 40  # of 255
_JPEG_QUALITY = 85
_JPEG_MAX_SIDE = 65_500  # the format's limit is 65,535


def draw(image: Image.Image, blocks: Sequence[Block]) -> Image.Image:
    """Return a copy of the page, in RGB, on which the boxes of all blocks are outlined and tagged.

    A tag shows the number of the block in `blocks`, counted from 1, and its label. The colour depends on the label. Any
    box is accepted: an empty box is drawn as a line or a dot, and a box outside the page is drawn at the edge. A page
    of more than MAX_PIXELS pixels is reduced.
    """
    page = image.convert("RGB")
    factor = reduction(image.size)
    if factor > 1:
        page = page.reduce(factor)
    fills = Image.new("RGBA", page.size)
    fill = ImageDraw.Draw(fills)
    drawn = [
        (number, block.label, _pixels(_scaled(box, factor), page.size))
        for number, block in enumerate(blocks, 1)
        for box in block.boxes
    ]
    for _, label, corners in drawn:
        fill.rectangle(corners, fill=(*colour(label), _FILL_OPACITY))
    page.paste(fills, mask=fills)

    pen = ImageDraw.Draw(page)
    line = line_width(page.size)
    font = ImageFont.load_default(max(9, round(math.sqrt(page.width * page.height) / 75)))
    for _, label, corners in drawn:
        pen.rectangle(corners, outline=colour(label), width=line)
    for number, label, corners in drawn:
        _tag(pen, f"{number} {label}", corners, colour(label), font, page.size)
    return page


def reduction(size: tuple[int, int]) -> int:
    """Return by which factor a page of `size` pixels is reduced before its blocks are drawn; 1 for most pages."""
    return math.ceil(max(math.sqrt(size[0] * size[1] / MAX_PIXELS), max(size) / _JPEG_MAX_SIDE))


def drawing_bytes(size: tuple[int, int]) -> int:
    """Return how much memory drawing on a page of `size` pixels takes: 4 bytes per pixel for each copy in Pillow."""
    pixels, factor = size[0] * size[1], reduction(size)
    return 8 * pixels + 12 * pixels // factor**2


def _scaled(box: PixelBox, factor: int) -> PixelBox:
    left, top, right, bottom = box
    return left // factor, top // factor, -(-right // factor), -(-bottom // factor)


def colour(label: str) -> Colour:
    """Return the colour of a label. It is always the same, and dark enough for white text."""
    known = DEEPSEEK_OCR.labels
    number = known.index(label) if label in known else len(known) + zlib.crc32(label.encode())
    # Steps of the golden ratio around the colour circle keep any number of hues apart, above all the first few.
    red, green, blue = colorsys.hls_to_rgb(number * 0.618034 % 1, 0.28, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def line_width(size: tuple[int, int]) -> int:
    """Return the width of the outlines on a page of this size, in pixels."""
    return max(1, round(math.sqrt(size[0] * size[1]) / 500))


def _pixels(box: PixelBox, size: tuple[int, int]) -> PixelBox:
    """Return the first and last pixels of a box in each direction, at least one pixel, clipped to the page."""
    left, top = (min(max(start, 0), side - 1) for start, side in zip(box[:2], size, strict=True))
    right, bottom = (min(end, side) - 1 for end, side in zip(box[2:], size, strict=True))
    return left, top, max(left, right), max(top, bottom)


def _tag(
    pen: ImageDraw.ImageDraw,
    text: str,
    corners: PixelBox,
    fill: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Write `text` above the box if there is space, otherwise inside its corner, and moved left if it would not fit."""
    width = math.ceil(pen.textbbox((0, 0), text, font=font)[2])
    height = math.ceil(pen.textbbox((0, 0), "1g", font=font)[3])  # the same height for every text
    pad = max(1, height // 6)
    left = max(0, min(corners[0], size[0] - width - 2 * pad))
    top = corners[1] - height - 2 * pad
    if top < 0:
        top = corners[1]
    pen.rectangle((left, top, left + width + 2 * pad - 1, top + height + 2 * pad - 1), fill=fill)
    pen.text((left + pad, top + pad), text, fill="white", font=font)


class PdfOfPictures:
    """Writes a PDF with one JPEG on each page to a file. The JPEGs are embedded unchanged.

    The file structure (ISO 32000-1, 7.5) is written here because PDFium can be used by only one thread at a time.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets = {1: 0, 2: 0}  # the catalog and the page tree are written last
        self._pages: list[int] = []
        file.write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")

    def add(self, jpeg: bytes, *, width: float, height: float) -> None:
        """Add a page.

        Args:
            jpeg: A JPEG file.
            width, height: Size of the page in points (1/72 inch).

        Raises:
            ValueError: The page has no area.
        """
        if not (width > 0 and height > 0):
            raise ValueError(f"a page needs an area, not {width} x {height}")
        columns, rows = Image.open(io.BytesIO(jpeg), formats=["JPEG"]).size
        page, content, picture = (len(self._offsets) + place for place in (1, 2, 3))
        self._pages.append(page)
        self._write(
            page,
            f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {width:.4f} {height:.4f}] "
            f"/Resources << /XObject << /Picture {picture} 0 R >> >> /Contents {content} 0 R",
        )
        self._write(content, "", f"{width:.4f} 0 0 {height:.4f} 0 0 cm /Picture Do".encode("ascii"))
        self._write(
            picture,
            f"/Type /XObject /Subtype /Image /Width {columns} /Height {rows} "
            "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /DCTDecode",
            jpeg,
        )

    def end(self) -> None:
        """Write the end of the file. Raises ValueError if there are no pages."""
        if not self._pages:
            raise ValueError("a PDF needs at least one page")
        self._write(1, "/Type /Catalog /Pages 2 0 R")
        kids = " ".join(f"{page} 0 R" for page in self._pages)
        self._write(2, f"/Type /Pages /Count {len(self._pages)} /Kids [{kids}]")
        table = self._file.tell()
        entries = "".join(f"{self._offsets[number]:010d} 00000 n \n" for number in sorted(self._offsets))
        size = len(self._offsets) + 1
        self._file.write(
            f"xref\n0 {size}\n0000000000 65535 f \n{entries}"
            f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode("ascii")
        )

    def _write(self, number: int, head: str, stream: bytes | None = None) -> None:
        self._offsets[number] = self._file.tell()
        length = "" if stream is None else f" /Length {len(stream)}"
        self._file.write(f"{number} 0 obj\n<< {head}{length} >>\n".encode("ascii"))
        if stream is not None:
            self._file.write(b"stream\n" + stream + b"\nendstream\n")
        self._file.write(b"endobj\n")


def to_jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture as a JPEG. It is scaled down only if a side exceeds the maximum of the format."""
    longest = max(picture.size)
    if longest > _JPEG_MAX_SIDE:
        picture = picture.reduce(math.ceil(longest / _JPEG_MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
