"""Opens and renders PDFs. Runs in the worker processes (see `workers`).

A process works on one document at a time and keeps it open between calls, so that the file is not parsed again for
every page.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.worker import Pixels

MAX_POINTS = 14_400.0
"""Longest side of a page according to the PDF standard (ISO 32000-1, annex C): 200 inches. Larger pages exist."""
LEAST_DPI = 20.0
"""Resolution at which a page larger than `MAX_POINTS` must fit the limits; text is illegible below it."""
MAX_SIDE = 65_535
"""Maximum of a page's longer side in pixels: that of a JPEG, and a little more than 200 inches at 300 dpi."""


_file: mmap.mmap | None = None
"""The file that this process works on; None if there is none or it is empty."""
_document: tuple[str | None, pdfium.PdfDocument] | None = None
"""The password with which this process has the file open, and the document."""


def take(descriptor: int) -> None:
    """Take a file for the following calls. It must not shrink; the descriptor may be closed."""
    global _file
    forget()
    if os.fstat(descriptor).st_size:  # an empty file cannot be mapped
        _file = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)  # writable for ctypes only


def count_pages(password: str | None) -> int:
    """Return the number of pages that the PDF declares, at least 1.

    Raises:
        PdfError: `password_required`, `password_wrong`, `damaged` or `empty`.
    """
    return len(_open(password))


def measure(password: str | None, index: int, dpi: float, max_pixels: int) -> list[int]:
    """Return the width and height that `render` gives a page, in pixels, without loading its content.

    Raises as `render`.
    """
    document = _open(password)
    try:
        width_pt, height_pt = document.get_page_size(index)
    except pdfium.PdfiumError as error:
        raise PdfError("page_failed") from error
    width, height, _ = size_in_pixels(width_pt, height_pt, dpi, max_pixels)
    return [width, height]


def render(password: str | None, index: int, dpi: float, max_pixels: int) -> tuple[float, Pixels]:
    """Render one page on white, as a viewer shows it: cropped, rotated, with annotations and form fields.

    Args:
        index: Index of the page, from 0.
        dpi: Resolution in pixels per inch. A page too large for it is rendered at the highest resolution that fits.
        max_pixels: Maximum of width times height.

    Returns:
        The resolution in dpi, and the pixels.

    Raises:
        PdfError: As in `count_pages`; also `giant_page` and `page_failed`.
    """
    document = _open(password)
    try:
        with contextlib.closing(document[index]) as page:
            width, height, dpi = size_in_pixels(page.get_width(), page.get_height(), dpi, max_pixels)
            rows = _draw(page, width, height)
    except (pdfium.PdfiumError, MemoryError) as error:
        raise PdfError("page_failed") from error
    return dpi, Pixels(width, height, rows)


def forget() -> None:
    """Close the document and its file."""
    global _file
    _close()
    _file = None


def size_in_pixels(width_pt: float, height_pt: float, dpi: float, max_pixels: int) -> tuple[int, int, float]:
    """Return the size at which a page is rendered: width and height in pixels, rounded down, and the resolution in dpi.

    The resolution is `dpi`, or the highest at which the page has at most `max_pixels` pixels and `MAX_SIDE` pixels on
    a side.

    Args:
        width_pt, height_pt: Size of the page in points (1/72 inch).

    Raises:
        PdfError: `giant_page` if the resolution would be below `LEAST_DPI`; `page_failed` if the page has no area.
    """
    if not (math.isfinite(width_pt) and math.isfinite(height_pt) and min(width_pt, height_pt) > 0):
        raise PdfError("page_failed")
    longer = max(width_pt, height_pt)
    fitting = 72 * min(math.sqrt(max_pixels / width_pt / height_pt), MAX_SIDE / longer)
    if longer > MAX_POINTS and fitting < LEAST_DPI:
        raise PdfError("giant_page")
    dpi = min(dpi, fitting)
    width, height = int(width_pt * dpi / 72), int(height_pt * dpi / 72)
    if min(width, height) < 1:
        raise PdfError("page_failed")
    return width, height, dpi


def _close() -> None:
    global _document
    if _document is not None:
        _document[1].close()
        _document = None


def _open(password: str | None) -> pdfium.PdfDocument:
    """Return the document, opened with `password`."""
    global _document
    if _document is not None:
        if _document[0] == password:
            return _document[1]
        _close()
    if _file is None:
        raise PdfError("damaged")
    # Not PdfDocument(…): for a file without pages it reports the error of an earlier call.
    secret = None if password is None else password.encode("utf-8", "replace")
    content = (ctypes.c_char * len(_file)).from_buffer(_file)
    handle = pdfium_c.FPDF_LoadMemDocument64(content, len(_file), secret)
    if not handle:
        if pdfium_c.FPDF_GetLastError() != pdfium_c.FPDF_ERR_PASSWORD:
            raise PdfError("damaged")
        raise PdfError("password_wrong" if password else "password_required")
    document = pdfium.PdfDocument(handle)
    if len(document) < 1:
        document.close()
        raise PdfError("empty")
    with contextlib.suppress(pdfium.PdfiumError):  # a form can be read without its fields
        document.init_forms()
    _document = password, document
    return document


def _draw(page: pdfium.PdfPage, width: int, height: int) -> bytes:
    """Return the page on white, scaled to `width` by `height` pixels: RGB, 3 bytes per pixel."""
    with contextlib.closing(
        pdfium.PdfBitmap.new_native(width, height, pdfium_c.FPDFBitmap_BGR, rev_byteorder=True)
    ) as bitmap:
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
        flags = pdfium_c.FPDF_ANNOT | pdfium_c.FPDF_REVERSE_BYTE_ORDER
        place = (0, 0, width, height, 0)
        pdfium_c.FPDF_RenderPageBitmap(bitmap, page, *place, flags)
        if page.formenv is not None:
            pdfium_c.FPDF_FFLDraw(page.formenv, bitmap, page, *place, flags)
        return bytes(bitmap.buffer)
