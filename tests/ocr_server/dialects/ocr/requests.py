"""Requests and documents for the tests of `/v1/ocr`."""

from __future__ import annotations

import base64
import io
from typing import Any

import pypdfium2

from tests.ocr_server.conftest import png

OCR = "/v1/ocr"
WIDTH, HEIGHT = 400, 200
PICTURE = png(WIDTH, HEIGHT)


def body(url: str = PICTURE, **more: Any) -> dict[str, Any]:
    return {"model": "deepseek-ocr", "document": {"type": "image_url", "image_url": url}, **more}


def pdf(pages: int, size: tuple[int, int] = (200, 100)) -> bytes:
    """Blank pages, `size` in points."""
    document, file = pypdfium2.PdfDocument.new(), io.BytesIO()
    for _ in range(pages):
        document.new_page(*size)
    document.save(file)
    return file.getvalue()


def uri(data: bytes) -> str:
    return f"data:application/pdf;base64,{base64.b64encode(data).decode()}"
