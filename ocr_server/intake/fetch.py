"""Fetches http(s) URLs that a client sends, without giving it access to the private network of the server."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import httpx

from ocr_server.errors import out_of_resources
from ocr_server.intake.addresses import is_public
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.resolver import Resolve, Resolver
from ocr_server.memory import Reservation

PIECE_BYTES = 1_000_000
"""Most bytes that are decompressed at a time."""


class Fetcher:
    """Fetches files under `limits`. One for each process.

    The host name is resolved once for each hop of a redirect chain, all its addresses are checked, and the connection
    is made to a checked address instead of the name. DNS rebinding, where a name resolves to another address the next
    time, is therefore of no use. The Host header and the TLS verification use the real name.

    Connections are not reused: a connection pool identifies them by address only, and would use the verified connection
    of one host for another host at the same address. Each fetch has a connection pool of its own, which is closed with
    it; a shared pool would leak the connections that a cancelled fetch had just opened.
    """

    def __init__(
        self,
        limits: IntakeLimits,
        *,
        resolve: Resolve | None = None,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._limits = limits
        self._resolve = resolve or Resolver().for_request("")
        self._transport = transport or partial(
            httpx.AsyncHTTPTransport,
            verify=httpx.create_ssl_context(),
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def resolving(self, resolve: Resolve) -> Fetcher:
        """Return a fetcher that looks up names with `resolve`, and is like this one otherwise."""
        made = copy.copy(self)
        made._resolve = resolve
        return made

    async def fetch(self, url: str, memory: Reservation) -> bytes:
        """Return the response body of `url`, at most `limits.max_image_bytes` bytes.

        Args:
            memory: Grows with the body. If fetching fails, the caller closes it.

        Raises:
            SourceError: The URL is malformed (code `invalid_image_url`), the server does not fetch it
                (`image_url_not_allowed`), or fetching it failed (`image_fetch_failed`).
            SourceTooLarge: The body is larger than the limit.
            TooMany: There is no memory for the body at present.
            OutOfResources: The machine has run out of file descriptors or memory.
        """
        limits = self._limits
        if not limits.allow_urls:
            raise _not_allowed("This server does not fetch URLs. Send the file as a base64 data URI.")
        try:
            async with asyncio.timeout(limits.fetch_timeout_s), self._transport() as transport:
                return await self._follow(transport, _parse(url), memory)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _failed(f"it took longer than the limit of {limits.fetch_timeout_s:g} s") from error
        except (httpx.ConnectError, ConnectionError) as error:
            raise out_of_resources(error) or _failed("the connection failed") from error
        except (httpx.HTTPError, zlib.error) as error:
            raise _failed("the response was invalid or incomplete") from error

    async def _follow(self, transport: httpx.AsyncBaseTransport, url: httpx.URL, memory: Reservation) -> bytes:
        """Follow redirects from `url`, and return the body of the final response."""
        for _ in range(self._limits.max_redirects + 1):
            async with contextlib.aclosing(await self._get(transport, url)) as response:
                if response.has_redirect_location:
                    url = _parse(response.headers["Location"], base=url)
                    continue
                if not response.is_success:
                    raise _failed(f"the response has the status {response.status_code}")
                return await _read(response, self._limits.max_image_bytes, memory)
        raise _failed(f"there are more than {self._limits.max_redirects} redirects")

    async def _get(self, transport: httpx.AsyncBaseTransport, url: httpx.URL) -> httpx.Response:
        """Request `url` from the first address that accepts a connection. The body of the response is not read yet."""
        host = url.raw_host.decode("ascii")
        if self._limits.allowed_hosts and not _is_listed(host, self._limits.allowed_hosts):
            raise _not_allowed("This server does not fetch files from the host that the URL leads to.")
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
                    "Accept-Encoding": "identity",  # picture files are already compressed
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
        """Resolve `host`. Returns at least one address; connections to all of them are allowed."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, ValueError) as error:
            raise out_of_resources(error) or _failed("the host name can't be resolved") from error
        if not addresses:
            raise _failed("the host name can't be resolved")
        if not self._limits.allow_private_urls and not all(is_public(address) for address in addresses):
            raise _not_allowed("The URL leads to an address that is not on the public internet.")
        return addresses


def _is_listed(host: str, patterns: Sequence[str]) -> bool:
    """Return whether `host` matches one of `patterns`, of which `*.example.com` stands for all subdomains.

    A trailing dot of `host` is ignored.
    """
    host = host.lower().removesuffix(".")
    return any(host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns)


def _parse(text: str, *, base: httpx.URL | None = None) -> httpx.URL:
    """Parse an absolute http(s) URL without credentials, or a URL reference relative to `base`. Raises SourceError."""
    try:
        url = base.join(text) if base is not None else httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise SourceError("Not a valid URL.", code="invalid_image_url") from error
    if url.port is not None and not 0 < url.port < 65536:
        raise SourceError("Not a valid URL: the port must be between 1 and 65535.", code="invalid_image_url")
    if url.scheme not in ("http", "https") or not url.host:
        raise SourceError("Only http and https URLs can be fetched.", code="invalid_image_url")
    if url.userinfo:
        raise _not_allowed("URLs that contain a user name or password are not fetched.")
    return url.copy_with(fragment=None)


async def _read(response: httpx.Response, limit: int, memory: Reservation) -> bytes:
    """Return the decompressed body, reading no more than `limit` bytes of it.

    Memory is reserved for twice the body, since it is copied at the end. It is decompressed here rather than by httpx,
    which would decompress a whole network chunk, of any resulting size, before its length could be checked. Only gzip
    is supported, since the request asks for no compression at all, and the servers that compress in spite of it use
    gzip.

    Raises:
        SourceError: The body is incomplete, or compressed in another way.
        SourceTooLarge: It has more than `limit` bytes.
        TooMany: There is no memory for it at present.
    """
    too_large = SourceTooLarge(f"The file at the URL is larger than the limit of {limit:,} bytes.")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise _failed("the content encoding of the response is not supported")
    gunzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if "gzip" in encoding else None
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    if length.isdecimal():
        memory.check(2 * int(length))
    body = bytearray()
    async for chunk in response.aiter_raw():
        while chunk:
            piece = gunzip.decompress(chunk, PIECE_BYTES) if gunzip is not None else chunk
            chunk = gunzip.unconsumed_tail if gunzip is not None else b""
            if len(body) + len(piece) > limit:
                raise too_large
            memory.grow(2 * len(piece))
            body += piece
            if chunk:
                await asyncio.sleep(0)  # 64 kB from the network can be 60 MB
    if gunzip is not None and not gunzip.eof:
        raise _failed("the response was invalid or incomplete")
    memory.shrink_to(len(body))
    return bytes(body)


def _failed(reason: str) -> SourceError:
    return SourceError(f"The URL can't be fetched: {reason}.", code="image_fetch_failed")


def _not_allowed(message: str) -> SourceError:
    return SourceError(message, code="image_url_not_allowed")
