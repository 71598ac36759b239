"""How many connections the server keeps open, in all and for each address, and which of them make room for others.

A connection that has no request in progress can be closed without a loss: HTTP allows it at any time, and clients open
another one. So a new connection takes the place of such a one, and is refused only if every other one is in use.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

from ocr_server.errors import Unavailable
from ocr_server.intake.addresses import is_public
from ocr_server.observability import metrics

DEFAULT_CONNECTIONS = 4096
"""Default limit of all connections, if there are descriptors for so many."""
SHARE_OF_ADDRESS = 0.25
"""By default, an address of the internet may have this part of all connections."""
MAX_LINGERING = 64
"""Most refused connections that are kept open for a moment, so that the client receives the answer."""
RETRY_SECONDS = 5.0
"""`Retry-After` of refused connections."""


class Activity(IntEnum):
    """What a connection is used for. Those that come first are the first to make room."""

    WAITS = 0
    """No complete request head has been received: nothing, or a part of it."""
    KEPT = 1
    """Its last request has been answered, and no other one has begun."""
    BUSY = 2
    """A request is in progress. It does not make room."""


class Closable(Protocol):
    """A connection."""

    def evict(self) -> None:
        """Close the connection immediately."""


class _Group:
    """The connections of all addresses, or of one."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.uses: dict[Activity, dict[Closable, None]] = {use: {} for use in Activity}

    @property
    def size(self) -> int:
        return sum(map(len, self.uses.values()))

    def is_full(self) -> bool:
        return self.limit is not None and self.size >= self.limit

    def first_to_go(self) -> Closable | None:
        """Return the connection that has been idle for longest, None if all are busy."""
        for use in (Activity.WAITS, Activity.KEPT):
            for connection in self.uses[use]:
                return connection
        return None


class ConnectionLimits:
    """All open connections of a server."""

    def __init__(self, *, total: int = DEFAULT_CONNECTIONS, of_address: int = 0) -> None:
        """Args:
        total: Most connections in all.
        of_address: Most connections of each address; for IPv6, of each network of 64 bits. 0 means a part of `total`
            for addresses of the internet, and no limit for other ones: a reverse proxy connects from there.
        """
        self._total = total
        self._of_address = of_address
        self._all = _Group(total)
        self._addresses: dict[str, _Group] = {}
        self._entries: dict[Closable, tuple[str, Activity]] = {}
        self._lingering: dict[Closable, None] = {}

    def add(self, connection: Closable, address: str) -> None:
        """Count a new connection. Closes another one if there is no room for it.

        Raises:
            Unavailable: All other connections are busy.
        """
        key = network_of(address)
        group = self._addresses.get(key) or _Group(self._limit_of(address))
        for full, name in ((group, "address"), (self._all, "total")):
            if full.is_full():
                if (other := full.first_to_go()) is None:
                    metrics.CONNECTIONS_REFUSED.labels(cause=name).inc()
                    whose = "your address has" if name == "address" else "the server has"
                    raise Unavailable(
                        f"Too many connections: {whose} {full.limit}, and all are in use. Try again shortly.",
                        code="too_many_connections",
                        retry_after=RETRY_SECONDS,
                    )
                self._evict(other)
        self._addresses[key] = group
        self._entries[connection] = (key, Activity.WAITS)
        for each in (group, self._all):
            each.uses[Activity.WAITS][connection] = None

    def note(self, connection: Closable, use: Activity) -> None:
        """Note what a connection is used for. Nothing happens if it is not counted any more."""
        key, before = self._entries.get(connection, ("", use))
        if use is not before:
            self._entries[connection] = (key, use)
            for group in (self._addresses[key], self._all):
                del group.uses[before][connection]
                group.uses[use][connection] = None

    def remove(self, connection: Closable) -> None:
        """Count a connection no more. Idempotent."""
        self._lingering.pop(connection, None)
        if connection in self._entries:
            key, use = self._entries.pop(connection)
            for group in (self._addresses[key], self._all):
                del group.uses[use][connection]
            if not self._addresses[key].size:
                del self._addresses[key]

    def linger(self, connection: Closable) -> None:
        """Note that a refused connection stays open for a moment. Closes the oldest of them if they are too many."""
        self._lingering[connection] = None
        if len(self._lingering) > MAX_LINGERING:
            oldest = next(iter(self._lingering))
            del self._lingering[oldest]
            oldest.evict()

    def shed(self, count: int) -> int:
        """Close up to `count` connections that are not busy, and return how many."""
        for shed in range(count):
            if (other := self._all.first_to_go()) is None:
                return shed
            self._evict(other)
        return count

    def _evict(self, connection: Closable) -> None:
        self.remove(connection)
        connection.evict()

    def _limit_of(self, address: str) -> int | None:
        if self._of_address:
            return self._of_address
        return max(1, int(SHARE_OF_ADDRESS * self._total)) if _is_of_internet(address) else None


@lru_cache(1024)
def network_of(address: str) -> str:
    """Return what stands for one client: its IPv4 address, or its IPv6 network, all of which one host can use."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is None:
        return str(ip_network((int(ip), 64), strict=False))
    return str(getattr(ip, "ipv4_mapped", None) or ip)


@lru_cache(1024)
def _is_of_internet(address: str) -> bool:
    try:
        return is_public(address.partition("%")[0])
    except ValueError:
        return False
