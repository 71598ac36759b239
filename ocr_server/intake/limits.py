"""What the server is willing to take in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntakeLimits:
    """The bounds for one picture or document; those for all of a request together are the caller's."""

    max_image_bytes: int
    """Size of a picture or document as it was sent or fetched, base64 and compression undone: bytes."""
    max_image_pixels: int
    """Width times height of each page: pixels. A PDF's page is rendered at a resolution that keeps to it."""
    max_pages: int
    """Pages of one document that are read; it may have more, of which some are selected."""
    fetch_timeout_s: float
    """Fetching a URL from the first look-up to the last byte, redirects included: seconds."""
    max_redirects: int
    """How many redirects a fetch follows; 0 means none."""
    allow_private_urls: bool
    """Whether a URL may lead to a private, loopback or otherwise non-public address."""
    allowed_hosts: tuple[str, ...]
    """The only hosts that URLs may name, in lower case; `*.example.com` stands for all below it; any if empty."""
    allow_urls: bool
    """Whether http(s) URLs are fetched at all; data URIs work regardless."""
