"""Errors of PDFs, used by the server and by the worker processes."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "password_required", "password_wrong", "damaged", "empty", "giant_page", "page_failed", "timeout", "failed"
]
"""`timeout` and `failed` mean that the worker process took too long or died."""


class PdfError(Exception):
    """A PDF, or a page of it, cannot be read."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kind = kind
