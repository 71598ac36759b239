"""What can be wrong with a PDF, on both sides of the boundary between processes."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "password_required", "password_wrong", "damaged", "empty", "giant_page", "page_failed", "timeout", "failed"
]
"""The last two are about the process that reads it: it took too long, or it died."""


class PdfError(Exception):
    """A PDF, or a page of it, can't be read."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kind = kind
