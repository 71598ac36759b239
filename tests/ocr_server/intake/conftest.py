from __future__ import annotations

import pytest

from ocr_server.intake.limits import IntakeLimits


@pytest.fixture(scope="session")
def limits() -> IntakeLimits:
    """Generous limits, with URLs to any address allowed; tests lower them with `dataclasses.replace`."""
    return IntakeLimits(
        max_image_bytes=20_000_000,
        max_image_pixels=1_000_000,
        max_pages=5,
        fetch_timeout_s=5.0,
        max_redirects=3,
        allow_private_urls=True,
        allowed_hosts=(),
        allow_urls=True,
    )
