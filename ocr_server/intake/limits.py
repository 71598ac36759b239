"""Limits on what the server accepts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntakeLimits:
    """Limits for a picture or document, and for fetching it."""

    max_image_bytes: int
    """Size of a file in bytes, after base64 and the compression of the transfer have been undone."""
    max_image_pixels: int
    """Width times height of a page in pixels. Pages of PDFs are rendered at a resolution that respects it."""
    max_pages: int
    """Number of pages of a request. A document may have more if only some of them are selected."""
    fetch_timeout_s: float
    """Time to fetch a URL in seconds, from the name resolution to the last byte, including redirects."""
    max_redirects: int
    """Number of redirects that are followed; 0 means none."""
    allow_private_urls: bool
    """Whether URLs may lead to private, loopback and other non-public addresses."""
    allowed_hosts: tuple[str, ...]
    """Hosts that URLs may name, in lower case; `*.example.com` stands for all subdomains. Empty: any host."""
    allow_urls: bool
    """Whether http(s) URLs are fetched at all. Data URIs are always accepted."""
