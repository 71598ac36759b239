"""Fixtures of the server's tests, for requests that are replayed."""

from __future__ import annotations

from tests.ocr_server.batches.conftest import serve, served
from tests.ocr_server.conftest import settings

__all__ = ["serve", "served", "settings"]
