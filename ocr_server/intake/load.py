"""Where a picture named by a URL comes from."""

from __future__ import annotations

import re

from ocr_server.intake.data_uri import decode_data_uri
from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.observability.metrics import fetch_failed

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31}):", re.IGNORECASE)
_SUPPORTED = "Supported are http and https URLs and base64 data URIs"


async def load(url: str, fetcher: Fetcher, limits: IntakeLimits) -> bytes:
    """The bytes of the picture at `url`, which is a `data:` URI or an `http(s):` URL.

    Raises SourceError for any other scheme, for text without one (a path, bare base64), and as
    `decode_data_uri` and `Fetcher.fetch` do; SourceTooLarge over `limits.max_image_bytes`.
    """
    url = url.strip()
    match = _SCHEME.match(url)
    if match is None:
        raise SourceError(
            f"This isn't a URL. {_SUPPORTED}; send bare base64 as data:image/png;base64,DATA.",
            code="invalid_image_url",
        )
    scheme = match.group(1).lower()
    if scheme == "data":
        return decode_data_uri(url, limits)
    if scheme in ("http", "https"):
        try:
            return await fetcher.fetch(url)
        except SourceError as error:
            fetch_failed(error.code)
            raise
    raise SourceError(
        f"URLs with the scheme '{scheme}' aren't supported. {_SUPPORTED}.",
        code="invalid_image_url",
    )
