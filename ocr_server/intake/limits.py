"""What the server is willing to take in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntakeLimits:
    """The bounds for one picture; those for all pictures of a request together are the caller's."""

    max_image_bytes: int
    """Size of a picture as it was sent or fetched, base64 and compression undone: bytes."""
    max_image_pixels: int
    """Width times height of each page of a picture: pixels."""
    max_pages: int
    """Pages in one picture; only a TIFF has more than one."""
    fetch_timeout_s: float
    """Fetching a URL from the first look-up to the last byte, redirects included: seconds."""
    max_redirects: int
    """How many redirects a fetch follows; 0 means none."""
    allow_private_urls: bool
    """Whether a URL may lead to a private, loopback or otherwise non-public address."""
    allow_urls: bool
    """Whether http(s) URLs are fetched at all; data URIs work regardless."""
