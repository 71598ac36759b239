"""Loads the file of a source: behind a URL, in base64, or stored."""

from __future__ import annotations

import re
from concurrent.futures import Executor

from ocr_server.intake.data_uri import decode_base64, decode_data_uri, decoded
from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.source import Base64, StoredFile, Url
from ocr_server.intake.stored import StoredFiles
from ocr_server.memory import Reservation
from ocr_server.observability.metrics import fetch_failed

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31}):", re.IGNORECASE)
_SUPPORTED = "Use an http or https URL or a base64 data URI"


class Loader:
    """Loads the files of one request."""

    def __init__(
        self, fetcher: Fetcher, files: StoredFiles | None, limits: IntakeLimits, threads: Executor | None = None
    ) -> None:
        """Args:
        fetcher: Fetches URLs.
        files: The stored files that the client may use; None if there are none.
        limits: What is accepted.
        threads: Threads that decode long data URIs; None for those of the event loop.
        """
        self._fetcher = fetcher
        self._files = files
        self._limits = limits
        self._threads = threads

    async def load(self, content: Url | Base64 | StoredFile, memory: Reservation) -> bytes:
        """Return the file that `content` refers to. A signed URL of this server is not fetched.

        Args:
            memory: Grows with what is fetched or read.

        Raises:
            SourceError: This server stores no files, or the signed URL has expired; or as in `load`.
            SourceNotFound: The client has no such file.
            SourceTooLarge: The file has more than `limits.max_image_bytes` bytes.
            TooMany: There is no memory for it at present.
            Unavailable: The stored files are unavailable.
        """
        most, files = self._limits.max_image_bytes, self._files
        if isinstance(content, Base64):
            return await decoded(decode_base64, content.text, self._limits, self._threads)
        if isinstance(content, Url):
            if files is not None and (data := await files.read_signed(content.address, memory, most)) is not None:
                return data
            return await load(content.address, self._fetcher, self._limits, memory, self._threads)
        if files is None:
            raise SourceError(
                "This server stores no files, so that there are none to refer to. Send the file itself.",
                code="files_not_stored",
            )
        return await files.read(content.file_id, memory, most)


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
