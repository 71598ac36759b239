"""Draws the blocks of a page on its picture, and combines such pictures into a PDF."""

from __future__ import annotations

import colorsys
import io
import math
import zlib
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.output.blocks import Block, PixelBox

Colour = tuple[int, int, int]

_FILL_OPACITY = 40  # of 255
_JPEG_QUALITY = 85
_JPEG_MAX_SIDE = 65_500  # the format's limit is 65,535


def draw(image: Image.Image, blocks: Sequence[Block]) -> Image.Image:
    """Return a copy of the page, in RGB, on which the boxes of all blocks are outlined and tagged.

    A tag shows the number of the block in `blocks`, counted from 1, and its label. The colour depends on the label. Any
    box is accepted: an empty box is drawn as a line or a dot, and a box outside the page is drawn at the edge.
    """
    page = image.convert("RGB")
    fills = Image.new("RGBA", page.size)
    fill = ImageDraw.Draw(fills)
    drawn = [
        (number, block.label, _pixels(box, page.size)) for number, block in enumerate(blocks, 1) for box in block.boxes
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


def to_pdf(pages: Iterable[bytes], dpi: float) -> bytes:
    """Return a PDF with one JPEG on each page. The JPEGs are embedded unchanged.

    The file structure (ISO 32000-1, 7.5) is written here because PDFium can be used by only one thread at a time.

    Args:
        pages: JPEG files.
        dpi: Resolution in pixels per inch. A page measures pixels / dpi * 72 points.

    Raises:
        ValueError: There are no pages, or `dpi` is not greater than 0.
    """
    if not dpi > 0:
        raise ValueError(f"dpi must be greater than 0, not {dpi}")
    file = io.BytesIO()
    file.write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = {1: 0, 2: 0}  # the catalog and the page tree are written last

    def write(number: int, head: str, stream: bytes | None = None) -> None:
        offsets[number] = file.tell()
        length = "" if stream is None else f" /Length {len(stream)}"
        file.write(f"{number} 0 obj\n<< {head}{length} >>\n".encode("ascii"))
        if stream is not None:
            file.write(b"stream\n" + stream + b"\nendstream\n")
        file.write(b"endobj\n")

    kids: list[int] = []
    for picture in pages:
        columns, rows = Image.open(io.BytesIO(picture), formats=["JPEG"]).size
        width, height = (f"{side / dpi * 72:.4f}" for side in (columns, rows))
        page, content, jpeg = (len(offsets) + place for place in (1, 2, 3))
        kids.append(page)
        write(
            page,
            f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] "
            f"/Resources << /XObject << /Picture {jpeg} 0 R >> >> /Contents {content} 0 R",
        )
        write(content, "", f"{width} 0 0 {height} 0 0 cm /Picture Do".encode("ascii"))
        write(
            jpeg,
            f"/Type /XObject /Subtype /Image /Width {columns} /Height {rows} "
            "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /DCTDecode",
            picture,
        )
    if not kids:
        raise ValueError("a PDF needs at least one page")
    write(1, "/Type /Catalog /Pages 2 0 R")
    write(2, f"/Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}]")
    table = file.tell()
    entries = "".join(f"{offsets[number]:010d} 00000 n \n" for number in sorted(offsets))
    size = len(offsets) + 1
    file.write(
        f"xref\n0 {size}\n0000000000 65535 f \n{entries}"
        f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode("ascii")
    )
    return file.getvalue()


def to_jpeg(picture: Image.Image) -> bytes:
    """Encode an RGB picture as a JPEG. It is scaled down only if a side exceeds the maximum of the format."""
    longest = max(picture.size)
    if longest > _JPEG_MAX_SIDE:
        picture = picture.reduce(math.ceil(longest / _JPEG_MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
