"""Values for the examples in the API documentation. The server accepts them."""

from __future__ import annotations

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAEUlEQVR42mP8z4AKmBhGtAAAIBABH+35zCgAAAAASUVORK5C"
    "YII="
)
"""A small white picture."""
