"""Pictures fetched from http(s) URLs that a client names, without letting it reach into our own network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import httpx

from ocr_server.intake.addresses import is_public
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port → the host's addresses, best first. Raises OSError if there are none."""


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses the operating system knows for `host`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Fetcher:
    """Fetches pictures under `limits`. One for the whole server.

    A host name is resolved once for each hop, all its addresses are checked, and the connection goes to a
    checked address rather than to the name: a name that resolves differently a moment later gains nothing.
    The Host header and the TLS check keep the real name. Connections aren't kept for reuse, since a pool
    knows them by address only and would hand one host's verified connection to another host at the same
    address. Each fetch has a pool of its own, closed with it: one for all keeps for good what a fetch that
    was cancelled had just connected.
    """

    def __init__(
        self,
        limits: IntakeLimits,
        *,
        resolve: Resolve = system_resolve,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._limits = limits
        self._resolve = resolve
        self._transport = transport or partial(
            httpx.AsyncHTTPTransport,
            verify=httpx.create_ssl_context(),
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def fetch(self, url: str) -> bytes:
        """The body behind `url`, at most `limits.max_image_bytes` bytes.

        Raises SourceError with the code `invalid_image_url` if the URL is malformed,
        `image_url_not_allowed` if this server doesn't go there, `image_fetch_failed` if going there fails;
        SourceTooLarge if the body is.
        """
        limits = self._limits
        if not limits.allow_urls:
            raise _not_allowed("This server doesn't fetch URLs; send the picture as a base64 data URI.")
        try:
            async with asyncio.timeout(limits.fetch_timeout_s), self._transport() as transport:
                return await self._follow(transport, _parse(url))
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _failed(f"it took longer than {limits.fetch_timeout_s:g} s") from error
        except (httpx.ConnectError, ConnectionError) as error:
            raise _failed("no connection to the server could be made") from error
        except (httpx.HTTPError, zlib.error) as error:
            raise _failed("the server's answer was broken or incomplete") from error

    async def _follow(self, transport: httpx.AsyncBaseTransport, url: httpx.URL) -> bytes:
        """The body at the end of the redirects that start at `url`."""
        for _ in range(self._limits.max_redirects + 1):
            async with contextlib.aclosing(await self._get(transport, url)) as response:
                if response.has_redirect_location:
                    url = _parse(response.headers["Location"], base=url)
                    continue
                if not response.is_success:
                    raise _failed(f"the server answered with status {response.status_code}")
                return await _read(response, self._limits.max_image_bytes)
        raise _failed(f"more than {self._limits.max_redirects} redirects")

    async def _get(self, transport: httpx.AsyncBaseTransport, url: httpx.URL) -> httpx.Response:
        """The response to one request, its body unread, from the first address that can be connected to."""
        host = url.raw_host.decode("ascii")
        if self._limits.allowed_hosts and not _is_listed(host, self._limits.allowed_hosts):
            raise _not_allowed("This server doesn't fetch pictures from the host that the URL leads to.")
        addresses = await self._addresses(host, url)
        total = self._limits.fetch_timeout_s
        for position, address in enumerate(addresses, start=1):
            request = httpx.Request(
                "GET",
                url.copy_with(host=address),
                headers={
                    "Host": url.netloc.decode("ascii"),
                    "User-Agent": "deepseek-ocr-server",
                    "Accept": "image/*,*/*;q=0.8",
                    "Accept-Encoding": "identity",  # pictures are compressed already
                },
                extensions={
                    "sni_hostname": host,
                    "timeout": httpx.Timeout(total, connect=total / len(addresses)).as_dict(),
                },
            )
            try:
                return await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if position == len(addresses):
                    raise
        raise AssertionError("unreachable: there is at least one address")

    async def _addresses(self, host: str, url: httpx.URL) -> Sequence[str]:
        """The addresses of `host`, at least one, each of which may be connected to."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, ValueError) as error:
            raise _failed("its host name can't be resolved") from error
        if not addresses:
            raise _failed("its host name can't be resolved")
        if not self._limits.allow_private_urls and not all(is_public(address) for address in addresses):
            raise _not_allowed("The URL leads to an address that isn't on the public internet.")
        return addresses


def _is_listed(host: str, patterns: Sequence[str]) -> bool:
    """Whether `host` is one of `patterns`, or below one that begins with `*.`; a dot at its end changes nothing."""
    host = host.lower().removesuffix(".")
    return any(host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns)


def _parse(text: str, *, base: httpx.URL | None = None) -> httpx.URL:
    """`text` as an absolute http(s) URL without credentials; relative to `base` where one is given."""
    try:
        url = base.join(text) if base is not None else httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise SourceError("This isn't a valid URL.", code="invalid_image_url") from error
    if url.port is not None and not 0 < url.port < 65536:
        raise SourceError("The port of the URL isn't a port.", code="invalid_image_url")
    if url.scheme not in ("http", "https") or not url.host:
        raise SourceError("Pictures are fetched only from http and https URLs.", code="invalid_image_url")
    if url.userinfo:
        raise _not_allowed("URLs with a user name or password aren't fetched.")
    return url.copy_with(fragment=None)


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body, uncompressed, read no further than `limit` bytes.

    Uncompressed here rather than by httpx, which would inflate a whole network chunk, however much that
    becomes, before anyone could count. Servers that compress although they were asked not to use gzip.
    """
    too_large = SourceTooLarge(f"The picture at the URL is larger than the limit of {limit:,} bytes.")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise _failed("the server's answer is in a compression that isn't supported")
    gunzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if "gzip" in encoding else None
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += gunzip.decompress(chunk, limit + 1 - len(body)) if gunzip is not None else chunk
        if len(body) > limit:
            raise too_large
    if gunzip is not None and not gunzip.eof:
        raise _failed("the server's answer was broken or incomplete")
    return bytes(body)


def _failed(reason: str) -> SourceError:
    return SourceError(f"The URL can't be fetched: {reason}.", code="image_fetch_failed")


def _not_allowed(message: str) -> SourceError:
    return SourceError(message, code="image_url_not_allowed")
