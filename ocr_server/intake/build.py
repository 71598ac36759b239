"""The intake that the settings ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ocr_server.intake.intake import Intake
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.workers import Workers

if TYPE_CHECKING:
    from config import Settings

MEGA = 1_000_000
MAX_REDIRECTS = 5
MOST_WORKERS = 8


def intake_for(settings: Settings) -> Intake:
    """Within an event loop, and closed in it."""
    return Intake(
        IntakeLimits(
            max_image_bytes=settings.MAX_IMAGE_MB * MEGA,
            max_image_pixels=settings.MAX_IMAGE_MEGAPIXELS * MEGA,
            max_pages=settings.MAX_PAGES,
            fetch_timeout_s=settings.FETCH_TIMEOUT,
            max_redirects=MAX_REDIRECTS,
            allow_private_urls=settings.ALLOW_PRIVATE_URLS,
            allowed_hosts=settings.allowed_image_hosts,
            allow_urls=settings.ALLOW_URLS,
        ),
        workers=Workers(
            count=settings.DECODE_WORKERS or min(os.cpu_count() or 1, MOST_WORKERS),
            timeout_s=settings.DECODE_TIMEOUT,
            memory_bytes=settings.DECODE_MEMORY_MB * MEGA,
        ),
        threads=settings.PREPARE_THREADS,
    )
