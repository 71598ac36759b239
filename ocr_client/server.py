"""The server, by HTTP: `POST /v1/ocr` as a stream of pages, and how long its troubles are borne."""

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
from ocr_client.selection import MOST_PAGES
from ocr_client.sources import Source

DEFAULT_URL = "http://localhost:8000/v1"
CONNECT_SECONDS = 10.0
GREETING_SECONDS = 30.0
SILENCE_SECONDS = 120.0
"""A stream without a sign of life for that long is lost: the server sends one every 15 seconds."""
OVERLAY_SECONDS = 3600.0
"""An overlay is made as a whole, without signs of life."""
LONGEST_PAUSE = 30.0
"""Between two tries, seconds, if the server doesn't say."""

AWAY = frozenset({408, 429, 502, 503, 504})
"""Statuses after which the same request may succeed later."""


class Refused(Exception):
    """The server won't read this document, or these pages of it."""

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class Trouble(Exception):
    """Trying again may help."""

    def __init__(self, message: str, *, retry_after: float | None = None, under_way: bool = False) -> None:
        """Args:
        under_way: the request had been taken up, so that it may itself be what breaks the server.
        """
        super().__init__(message)
        self.retry_after = retry_after
        self.under_way = under_way


class Unreachable(Exception):
    """There is no such server, or it has been away for longer than was to be borne: the end of the run."""


class KeyRefused(Exception):
    """The server wants an API key, and this is none: the end of the run."""


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read; what isn't given, the server decides."""

    prompt: str | None = None
    mode: str | None = None
    dpi: int | None = None
    password: str | None = None
    figures: bool = True
    """Whether figures are sent."""

    def fields(self) -> dict[str, str]:
        """As the form's fields."""
        given = {"prompt": self.prompt, "mode": self.mode, "dpi": self.dpi, "password": self.password}
        return {name: str(value) for name, value in given.items() if value is not None}

    def identity(self) -> dict[str, str | int | None]:
        """What makes one result differ from another."""
        return {"prompt": self.prompt, "mode": self.mode, "dpi": self.dpi}


@dataclass(frozen=True)
class PageRead:
    """A page as the API gives it."""

    index: int
    total: int
    """Pages that the request asked for."""
    page: dict[str, Any]


class Patience:
    """How long the server may be away, over all requests together: any page that comes begins it anew."""

    def __init__(self, seconds: float, notice: Callable[[str], None]) -> None:
        """Args:
        notice: told when the waiting begins and ends.
        """
        self._seconds = seconds
        self._notice = notice
        self._since: float | None = None
        self._told = False

    def rewarded(self) -> None:
        """The server has done something."""
        self._since = None
        if self._told:
            self._told = False
            self._notice("The server reads again.")

    async def wait(self, trouble: Trouble) -> None:
        """Pause before the next try.

        Raises:
            Unreachable: it has been too long.
        """
        now = time.monotonic()
        since = self._since = now if self._since is None else self._since
        waited = now - since
        left = self._seconds - waited
        if left <= 0:
            raise Unreachable(f"{trouble} It has been so for {waited:.0f} s.")
        if waited and not self._told:  # not of a first pause, which is often the last
            self._told = True
            self._notice(f"{trouble} Trying again, for up to {self._seconds:g} s.")
        pause = trouble.retry_after
        if pause is None:
            pause = min(LONGEST_PAUSE, max(1.0, waited / 2))
        await asyncio.sleep(min(pause * random.uniform(1.0, 1.2), left))


class Server:
    """One server, through one pool of connections."""

    def __init__(self, url: str, api_key: str | None, *, connections: int) -> None:
        self.url = url
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.AsyncClient(
            headers={"user-agent": f"deepseek-ocr/{__version__}"}
            | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=connections),
            trust_env=not local,  # no proxy to this machine
        )

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def greet(self) -> None:
        """See that there is a server, and that it takes the key.

        Raises:
            Unreachable: nothing answers, or something else does.
            KeyRefused: the key is wrong or missing.
        """
        try:
            response = await self._client.get(f"{self.url}/models", timeout=GREETING_SECONDS)
        except httpx.TransportError as error:
            advice = "deepseek-ocr serve starts one here; --base-url names another."
            raise Unreachable(f"No server answers at {self.url}: {_reason(error)}. {advice}") from error
        if response.status_code == 429 or response.status_code >= 500:
            return  # full, or not ready yet: it will be waited for
        await self._check(response)

    async def pages(self, source: Source, options: ReadOptions, pages: str | None) -> AsyncGenerator[PageRead]:
        """Ask once, and yield each page as it is done.

        Args:
            pages: in the API's form, counted from 0; None for all.

        Raises:
            Refused: this document, or these pages, can't be read.
            Trouble: it may go better at another time; the pages so far are whole.
            Unreachable, KeyRefused: nothing can be read there.
            OSError: the file can't be read.
        """
        fields = options.fields() | {"stream": "true", "include_image_base64": str(options.figures).lower()}
        if pages is not None:
            fields["pages"] = pages
        try:
            with source.open() as file:
                request = self._client.stream(
                    "POST", f"{self.url}/ocr", data=fields, files={"file": ("document", file)}
                )
                async with request as response:
                    await self._check(response)
                    async for data in _events(response):
                        event = json.loads(data)
                        if "error" in event:
                            raise _stream_error(event["error"])
                        if event["object"] == "ocr.done":
                            return
                        yield _page(event)
        except httpx.TransportError as error:
            raise _away(error) from error
        except (ValueError, TypeError, KeyError) as error:
            raise Trouble("The server's answer is not what this client understands.", under_way=True) from error
        raise Trouble("The server broke its answer off.", under_way=True)

    async def overlay(
        self, source: Source, options: ReadOptions, pages: str | None
    ) -> tuple[Literal["pdf", "png"], bytes]:
        """The pages with their blocks drawn on them. Raises as `pages`."""
        fields = options.fields() | {"output": "overlay"} | ({} if pages is None else {"pages": pages})
        try:
            with source.open() as file:
                response = await self._client.post(
                    f"{self.url}/ocr",
                    data=fields,
                    files={"file": ("document", file)},
                    timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, read=OVERLAY_SECONDS),
                )
                await self._check(response)
        except httpx.TransportError as error:
            raise _away(error) from error
        return "png" if response.content.startswith(b"\x89PNG") else "pdf", response.content

    async def _check(self, response: httpx.Response) -> None:
        """Raise what an answer that isn't one means."""
        status = response.status_code
        if status == 200:
            return
        error = _error_body(await response.aread())
        message = str(error.get("message") or f"HTTP {status} {response.reason_phrase}")
        if status in AWAY:
            raise Trouble(message, retry_after=_seconds(response.headers.get("retry-after")))
        if status >= 500:
            raise Trouble(message, under_way=True)
        if status in (401, 403):
            raise KeyRefused(message)
        if 300 <= status < 400:
            raise Unreachable(f"{self.url} leads elsewhere, to {response.headers.get('location')}: give that address.")
        if status in (404, 405):
            raise Unreachable(f"What answers at {self.url} is no DeepSeek-OCR server (HTTP {status}).")
        raise Refused(message, status=status, code=error.get("code"), param=error.get("param"))


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """What the stream's events hold. Lines are split at newlines alone: to httpx, others end a line too."""
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


def _page(event: dict[str, Any]) -> PageRead:
    """Raises ValueError, TypeError or KeyError if it is none."""
    page, total = dict(event["page"]), int(event["total"])
    if not 0 < total <= MOST_PAGES:
        raise ValueError(f"no document has {total} pages")
    return PageRead(int(page["index"]), total, page)


def _stream_error(error: dict[str, Any]) -> Exception:
    message = str(error.get("message"))
    if error.get("type") == "server_error":
        return Trouble(message, under_way=True)
    return Refused(message, status=400, code=error.get("code"), param=error.get("param"))


def _error_body(body: bytes) -> dict[str, Any]:
    """OpenAI's error object; empty if it is none."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError):
        return {}
    return error if isinstance(error, dict) else {}


def _seconds(text: str | None) -> float | None:
    """Of Retry-After. A date, which it may be too, is left to our own pause."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _away(error: httpx.TransportError) -> Trouble:
    refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Trouble(f"The server is away: {_reason(error)}.", under_way=not refused)


def _reason(error: httpx.TransportError) -> str:
    text = str(error).strip().rstrip(".")
    if isinstance(error, httpx.TimeoutException):
        return "it doesn't answer in time"
    if "All connection attempts failed" in text or "Connection refused" in text:
        return "connection refused"
    return text[:1].lower() + text[1:] if text else type(error).__name__
