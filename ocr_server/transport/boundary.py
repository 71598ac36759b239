"""The boundary for browsers: the names that this server answers to, and the web pages that may send it requests.

A web page of any site can send requests to every address that its visitor's browser reaches. The browser lets it read
the answers only if the page and the server have the same origin, or if the server allows it by CORS. Two things remain
that a server has to refuse itself: requests that have an effect even if nobody reads the answer, and pages of a name
that is first resolved to the attacker's server and then to this one (DNS rebinding), which have the same origin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr_server.errors import ApiError, Forbidden, InvalidRequest, Misdirected
from ocr_server.transport.auth import PROBES, is_signed
from ocr_server.transport.keys import KeyRing
from ocr_server.transport.negotiation import PAGE
from ocr_server.transport.refusal import refuse

PRIVATE_SUFFIXES = ("localhost", "local", "internal", "lan", "home.arpa", "svc", "test")
"""Top-level names that are not delegated in the public DNS, so that nobody can register a name below them.
`svc.cluster.local` is one of `local`; `svc` is its short form within a cluster."""
PUBLIC_FILES = (PAGE, "/static-offline-docs/")
PUBLIC_PATHS = PROBES | {"/", PAGE.rstrip("/"), "/docs", "/openapi.json"}
"""What a page of another site may link to, and signed URLs. It learns at most that there is a server."""
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.%\w]+\]|[a-z0-9_.-]+)(:[0-9]*)?", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class BrowserBoundary:
    """ASGI middleware that refuses names that could be anyone's, and requests of other sites' web pages.

    - Without API keys, a request must name the server by an address, by a name that no public domain can have, or by
      one of the allowed names: otherwise 421. With keys, any name is answered: a page that was rebound to this server
      does not have the key.
    - A request that a browser sends for a page of another origin is refused with 403, unless the origin is allowed, or
      the request is a plain read of a public page.

    Forwarded headers are not considered. Clients that are not browsers send none of the headers that are checked.
    """

    def __init__(
        self, app: ASGIApp, *, ring: KeyRing, own_name: str, allowed_hosts: Sequence[str], origins: Sequence[str]
    ) -> None:
        """Args:
        app: The next application.
        ring: The API keys.
        own_name: The name of this machine, which is answered as well.
        allowed_hosts: Further names, in lower case: `ocr.example.com`, `*.example.com`, or `*` for all.
        origins: Origins whose pages may use the server, in lower case, or `*` for all.
        """
        self._app = app
        self._ring = ring
        self._allowed_hosts = (own_name.lower().rstrip("."), *allowed_hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await refuse(error, scope, receive, send)

    def _error(self, scope: Scope) -> ApiError | None:
        """Return why the request is refused, or None if it is not."""
        headers = Headers(scope=scope)
        if self._ring.open and (error := self._host_error(headers.getlist("host"))) is not None:
            return error
        if self._is_foreign(headers) and not _is_public_read(scope):
            return _origin_error(headers.get("origin"))
        return None

    def _host_error(self, hosts: list[str]) -> ApiError | None:
        if not hosts or hosts == [""]:
            return None  # HTTP/1.0; no browser leaves it out
        name = _name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            return InvalidRequest("The request must have one Host header with a valid name.", param="host")
        if _is_private(name) or _is_listed(name, self._allowed_hosts):
            return None
        return Misdirected(
            f"This server does not answer to the name {name[:100]!r}. Without API keys it answers only to addresses "
            "and to names that no public domain can have, such as localhost. If the name is this server's, add it to "
            "the setting ALLOWED_HOSTS, or set API keys."
        )

    def _is_foreign(self, headers: Headers) -> bool:
        """Return whether a browser sent the request for a page of another origin that is not allowed."""
        origins, sites = headers.getlist("origin"), set(headers.getlist("sec-fetch-site"))
        if origins and ("*" in self._origins or self._origins.issuperset(origin.lower() for origin in origins)):
            return False
        if sites - {"none"} or (sites and not origins):  # the browser has compared the origins; "none": no page asked
            return not sites <= {"none", "same-origin"}
        return not all(_is_same(origin, headers.get("host", "")) for origin in origins)


def is_browser(headers: Headers) -> bool:
    """Return whether a request may come from a web page. Browsers do not let pages remove these headers."""
    return "origin" in headers or "sec-fetch-site" in headers


def _is_public_read(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] in ("GET", "HEAD") and (
        path in PUBLIC_PATHS or path.startswith(PUBLIC_FILES) or is_signed(path)
    )


def _name(host: str) -> str | None:
    """Return the name of a `Host` header in lower case, without port and final dot. None if it is not valid."""
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return None
    return match["name"].removesuffix(".") or None


def _is_private(name: str) -> bool:
    """Return whether `name` is an IP address, or one that no public domain can have."""
    if name.startswith("["):
        try:
            return isinstance(ip_address(name[1:-1]), IPv6Address)
        except ValueError:
            return False
    last = name.rpartition(".")[2]
    # The URL standard takes a host whose last label is a number as an IPv4 address, also in short forms like 127.1.
    return "." not in name or last.isdigit() or name.endswith(tuple(f".{suffix}" for suffix in PRIVATE_SUFFIXES))


def _is_listed(name: str, patterns: Sequence[str]) -> bool:
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in patterns
    )


def _is_same(origin: str, host: str) -> bool:
    """Return whether a page of `origin` comes from `host`, a `Host` header.

    The scheme is not compared, except for its default port: behind a proxy with TLS, the server does not know it.
    """
    scheme, _, authority = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and authority != "" and authority.removesuffix(port) == host.lower().removesuffix(port)


def _origin_error(origin: str | None) -> Forbidden:
    if origin is None:
        who = "Web pages of other sites"
    elif origin == "null":
        who = "Web pages without an origin, such as files that are opened in a browser,"
    else:
        who = f"Web pages of {origin[:200]!r}"
    return Forbidden(
        f"{who} may not use this server. To allow a page, serve it over HTTP and add its origin to the setting "
        "CORS_ORIGINS. If the page is this server's own, behind a proxy, let the proxy pass on the Host header."
    )


class RelativeRedirects:
    """ASGI middleware that makes redirects relative.

    Starlette redirects to the path with or without a slash at the end, and repeats the `Host` header in the address,
    which may be any host, and is the wrong one behind a proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_relative(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "://" in headers.get("location", ""):
                    headers["location"] = _other_slash(scope)
            await send(message)

        await self._app(scope, receive, send_relative if scope["type"] == "http" else send)


def _other_slash(scope: Scope) -> str:
    """Return a relative reference to the request's path, without its slashes at the end or with one, if it has none."""
    path: str = scope["path"].rstrip("/")
    slashes = len(scope["path"]) - len(path)
    last = quote(path.rpartition("/")[2])
    query = scope.get("query_string", b"").decode("latin-1")
    return ("../" * slashes + last if slashes else f"./{last}/") + (f"?{query}" if query else "")


def reachable_by(host: str, *, keys: bool, origins: Sequence[str]) -> str:
    """Return a sentence for the log about who can use the server, and how to change that.

    Args:
        host: Address that the server listens on.
        keys: Whether requests need an API key.
        origins: Origins whose web pages may use the server.
    """
    pages = "all sites" if "*" in origins else ", ".join(origins)
    pages = f"Web pages of {pages} can as well (CORS_ORIGINS)." if origins else "Web pages of other sites cannot."
    if keys:
        return f"Whoever has an API key and can connect to {host} can use this server. {pages}"
    if host in ("localhost", "::1") or host.startswith("127."):
        return f"No API keys are set: every user and program of this machine can use this server. {pages}"
    return (
        f"No API keys are set: everyone who can connect to {host} can use this server. {pages} "
        "To close it, set API_KEYS_FILE or API_KEYS, or listen on this machine only (HOST=127.0.0.1)."
    )
