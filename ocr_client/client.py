"""HTTP client of the server: reads documents with `POST /v1/ocr`, and decides how long to retry."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from ocr_client import __version__
from ocr_client.selection import MAX_PAGES
from ocr_client.sources import SourceFile

DEFAULT_URL = "http://localhost:8000/v1"
CONNECT_TIMEOUT = 10.0
FIRST_REQUEST_TIMEOUT = 30.0
STREAM_TIMEOUT = 120.0
"""Seconds without any data after which a stream is considered lost. The server sends something every 15 seconds."""
OVERLAY_TIMEOUT = 3600.0
"""Seconds to wait for an overlay, which the server sends as a whole, with nothing before it."""
MAX_PAUSE = 30.0
"""Maximum number of seconds between two attempts, if the server sends no Retry-After header."""

RETRYABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
"""HTTP statuses after which the same request may succeed later."""


class DocumentRejected(Exception):
    """The server rejected a document, or the requested pages of it. Trying again would not help."""

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class TemporaryFailure(Exception):
    """A request failed, but may succeed if it is sent again."""

    def __init__(self, message: str, *, retry_after: float | None = None, started: bool = False) -> None:
        """Args:
        retry_after: seconds to wait before the next attempt, if the server sent them.
        started: whether the server had started to process the request, which may then be the cause of the failure.
        """
        super().__init__(message)
        self.retry_after = retry_after
        self.started = started


class ServerUnavailable(Exception):
    """There is no server at this address, or it has been unavailable for too long. This ends the run."""


class InvalidApiKey(Exception):
    """The server requires an API key, and the key is missing or invalid. This ends the run."""


class UnknownMode(Exception):
    """The server's model has no such resolution mode. This ends the run."""


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read. The server decides about options that are None."""

    prompt: str | None = None
    mode: str | None = None
    dpi: int | None = None
    password: str | None = None
    figures: bool = True
    """Whether the server sends the figures of the pages."""

    def form_fields(self) -> dict[str, str]:
        """Return the options as fields of the request's form."""
        given = {"prompt": self.prompt, "mode": self.mode, "dpi": self.dpi, "password": self.password}
        return {name: str(value) for name, value in given.items() if value is not None}

    def identity(self) -> dict[str, str | int | None]:
        """Return the options that affect the result. Saved pages are valid as long as these stay the same."""
        return {"prompt": self.prompt, "mode": self.mode, "dpi": self.dpi}


@dataclass(frozen=True)
class PageResult:
    """A page as returned by the API."""

    index: int
    total: int
    """Number of pages that the request selected."""
    page: dict[str, Any]


class RetryTimer:
    """Limits how long the server may be unavailable, counted over all requests since the last page that arrived."""

    def __init__(self, seconds: float, notify: Callable[[str], None]) -> None:
        """Args:
        seconds: how long to retry before giving up.
        notify: called with a message when the waiting begins and ends.
        """
        self._seconds = seconds
        self._notify = notify
        self._since: float | None = None
        self._notified = False

    def reset(self) -> None:
        """Start anew, because the server has returned something."""
        self._since = None
        if self._notified:
            self._notified = False
            self._notify("The server is responding again.")

    async def wait(self, failure: TemporaryFailure) -> None:
        """Pause before the next attempt.

        Raises:
            ServerUnavailable: if the server has been unavailable for too long.
        """
        now = time.monotonic()
        since = self._since = now if self._since is None else self._since
        waited = now - since
        left = self._seconds - waited
        if left <= 0:
            raise ServerUnavailable(f"{failure} Gave up after {waited:.0f} s.")
        if waited and not self._notified:  # a single pause is often enough, so the first one is not reported
            self._notified = True
            self._notify(f"{failure} Retrying for up to {self._seconds:g} s.")
        pause = failure.retry_after
        if pause is None:
            pause = min(MAX_PAUSE, max(1.0, waited / 2))
        await asyncio.sleep(min(pause * random.uniform(1.0, 1.2), left))


class OcrClient:
    """Client of one server, with a connection pool."""

    def __init__(self, url: str, api_key: str | None, *, connections: int) -> None:
        """Args:
        url: base URL of the API, such as DEFAULT_URL.
        api_key: sent as a bearer token; None sends none.
        connections: maximum number of connections.
        """
        self.url = url
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.AsyncClient(
            headers={"user-agent": f"deepseek-ocr/{__version__}"}
            | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(STREAM_TIMEOUT, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=connections),
            trust_env=not local,  # never use a proxy for a server on this machine
        )

    async def __aenter__(self) -> OcrClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def check_connection(self, mode: str | None) -> None:
        """Check that there is a server at the address, that it accepts the API key and that it has the mode.

        Raises:
            UnknownMode: if the server lists its modes and this one is not among them.
            ServerUnavailable: if nothing answers, or if something other than a DeepSeek-OCR server does.
            InvalidApiKey: if the key is missing or invalid.
        """
        try:
            response = await self._client.get(f"{self.url}/models", timeout=FIRST_REQUEST_TIMEOUT)
        except httpx.TransportError as error:
            advice = "Start a server with deepseek-ocr serve, or pass the address of another one with --base-url."
            raise ServerUnavailable(f"No server found at {self.url}: {_reason(error)}. {advice}") from error
        if response.status_code == 429 or response.status_code >= 500:
            return  # the server is full or not ready yet: the requests that follow wait for it
        await self._raise_for_status(response)
        modes = _modes(response)
        if mode is not None and modes and mode not in modes:
            raise UnknownMode(f"The server has no mode {mode!r}. It has {', '.join(modes)}.")

    async def read_pages(
        self, source: SourceFile, options: ReadOptions, pages: str | None
    ) -> AsyncGenerator[PageResult]:
        """Send one request for a document, and yield each page as it is finished.

        Args:
            source: the document.
            options: how to read it.
            pages: the pages in the form of the API, counted from 0; None for all pages.

        Raises:
            DocumentRejected: if this document, or these pages of it, cannot be read.
            TemporaryFailure: if another attempt may succeed. The pages yielded so far are complete.
            ServerUnavailable, InvalidApiKey: if this server cannot be used at all.
            OSError: if the file cannot be read.
        """
        fields = options.form_fields() | {"stream": "true", "include_image_base64": str(options.figures).lower()}
        if pages is not None:
            fields["pages"] = pages
        try:
            with source.open() as file:
                request = self._client.stream(
                    "POST", f"{self.url}/ocr", data=fields, files={"file": ("document", file)}
                )
                async with request as response:
                    await self._raise_for_status(response)
                    async for data in _events(response):
                        event = json.loads(data)
                        if "error" in event:
                            raise _stream_error(event["error"])
                        if event["object"] == "ocr.done":
                            return
                        yield _parse_page(event)
        except httpx.TransportError as error:
            raise _connection_failure(error) from error
        except (ValueError, TypeError, KeyError) as error:
            raise TemporaryFailure(
                "The server sent a response that this client does not understand.", started=True
            ) from error
        raise TemporaryFailure("The server's response ended too early.", started=True)

    async def read_overlay(
        self, source: SourceFile, options: ReadOptions, pages: str | None
    ) -> tuple[Literal["pdf", "png"], bytes]:
        """Return the file type and content of an image or PDF of the pages with their blocks drawn on them.

        The arguments and the errors are the same as those of `read_pages`.
        """
        fields = options.form_fields() | {"output": "overlay"} | ({} if pages is None else {"pages": pages})
        try:
            with source.open() as file:
                response = await self._client.post(
                    f"{self.url}/ocr",
                    data=fields,
                    files={"file": ("document", file)},
                    timeout=httpx.Timeout(STREAM_TIMEOUT, connect=CONNECT_TIMEOUT, read=OVERLAY_TIMEOUT),
                )
                await self._raise_for_status(response)
        except httpx.TransportError as error:
            raise _connection_failure(error) from error
        return "png" if response.content.startswith(b"\x89PNG") else "pdf", response.content

    async def _raise_for_status(self, response: httpx.Response) -> None:
        """Raise the exception that corresponds to the status of a response that is not successful."""
        status = response.status_code
        if status == 200:
            return
        error = _error_body(await response.aread())
        message = str(error.get("message") or f"HTTP {status} {response.reason_phrase}")
        if status in RETRYABLE_STATUSES:
            raise TemporaryFailure(message, retry_after=_retry_after(response.headers.get("retry-after")))
        if status >= 500:
            raise TemporaryFailure(message, started=True)
        if status in (401, 403):
            raise InvalidApiKey(message)
        if 300 <= status < 400:
            raise ServerUnavailable(
                f"{self.url} redirects to {response.headers.get('location')}. Pass that address with --base-url."
            )
        if status == 421:
            raise ServerUnavailable(message)  # it does not answer to this host name
        if status in (404, 405):
            raise ServerUnavailable(f"{self.url} is not a DeepSeek-OCR server (HTTP {status}).")
        raise DocumentRejected(message, status=status, code=error.get("code"), param=error.get("param"))


def _modes(response: httpx.Response) -> list[str]:
    """The names of resolution modes in the server's list of models."""
    try:
        models = response.json()["data"]
        return [model["mode"] for model in models if model.get("mode", "default") != "default"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event.

    Lines are split at newlines only. `httpx.Response.aiter_lines` would also split them at other line separators, which
    can occur in the text of a page.
    """
    data: list[bytes] = []
    rest = bytearray()
    async for chunk in response.aiter_bytes():
        rest += chunk
        if b"\n" not in chunk:
            continue
        *lines, rest = rest.split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(bytes(line[5:]))
            elif not line and data:
                yield b"\n".join(data)
                data.clear()


def _parse_page(event: dict[str, Any]) -> PageResult:
    """Parse a page event. Raises ValueError, TypeError or KeyError if it is malformed."""
    page, total = dict(event["page"]), int(event["total"])
    if not 0 < total <= MAX_PAGES:
        raise ValueError(f"invalid page count: {total}")
    return PageResult(int(page["index"]), total, page)


def _stream_error(error: dict[str, Any]) -> Exception:
    message = str(error.get("message"))
    if error.get("type") == "server_error":
        return TemporaryFailure(message, started=True)
    return DocumentRejected(message, status=400, code=error.get("code"), param=error.get("param"))


def _error_body(body: bytes) -> dict[str, Any]:
    """Return the error object of a response in OpenAI's format, or an empty dictionary if there is none."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError):
        return {}
    return error if isinstance(error, dict) else {}


def _retry_after(text: str | None) -> float | None:
    """Parse a Retry-After header. Returns None if it is missing or a date; the client then chooses the pause."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _connection_failure(error: httpx.TransportError) -> TemporaryFailure:
    refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return TemporaryFailure(f"The server is unreachable: {_reason(error)}.", started=not refused)


def _reason(error: httpx.TransportError) -> str:
    """Describe an error in a few words, without a period at the end."""
    text = str(error).strip().rstrip(".")
    if isinstance(error, httpx.TimeoutException):
        return "it did not respond in time"
    if "All connection attempts failed" in text or "Connection refused" in text:
        return "connection refused"
    return text[:1].lower() + text[1:] if text else type(error).__name__
