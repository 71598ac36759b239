"""Loads the file that a URL refers to."""

from __future__ import annotations

import re
from concurrent.futures import Executor

from ocr_server.intake.data_uri import decode_data_uri, decoded
from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.memory import Reservation
from ocr_server.observability.metrics import fetch_failed

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31}):", re.IGNORECASE)
_SUPPORTED = "Use an http or https URL or a base64 data URI"


async def load(
    url: str, fetcher: Fetcher, limits: IntakeLimits, memory: Reservation, threads: Executor | None = None
) -> bytes:
    """Return the content of `url`, which is a `data:` URI or an http(s) URL.

    Args:
        memory: Grows with what is fetched. Data URIs belong to the body of the request.
        threads: Threads that decode long data URIs; None for those of the event loop.

    Raises:
        SourceError: The URL has another scheme or none, as a path or bare base64 has; or as in `decode_data_uri` and
            `Fetcher.fetch`.
        SourceTooLarge: The file has more than `limits.max_image_bytes` bytes.
        TooMany: There is no memory for it at present.
    """
    url = url.strip()
    match = _SCHEME.match(url)
    if match is None:
        raise SourceError(
            f"Not a valid URL. {_SUPPORTED}; send bare base64 as data:image/png;base64,DATA.",
            code="invalid_image_url",
        )
    scheme = match.group(1).lower()
    if scheme == "data":
        return await decoded(decode_data_uri, url, limits, threads)
    if scheme in ("http", "https"):
        try:
            return await fetcher.fetch(url, memory)
        except SourceError as error:
            fetch_failed(error.code)
            raise
    raise SourceError(
        f"URLs with the scheme '{scheme}' are not supported. {_SUPPORTED}.",
        code="invalid_image_url",
    )
