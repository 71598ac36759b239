"""Which network addresses belong to the public internet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# Two networks that `ipaddress` (Python 3.11) considers public although cloud providers serve instance metadata from
# them: 192.0.0.0/24 is reserved for protocol assignments (RFC 6890); 168.63.129.16 is a public address that one cloud
# uses internally.
_ALSO_PRIVATE = (ip_network("192.0.0.0/24"), ip_network("168.63.129.16/32"))
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address behind a translator


def is_public(address: str) -> bool:
    """Return whether `address`, an IPv4 or IPv6 address as text, belongs to the public internet.

    False for private, loopback, link-local, multicast, reserved, unspecified and shared addresses, for those of cloud
    metadata services, and for IPv6 addresses that embed such an IPv4 address.

    Raises:
        ValueError: `address` is not an IP address.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        inner = _inner_ipv4(ip)
        if inner is not None:
            ip = inner
        elif ip.is_site_local:
            return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    return not any(ip in network for network in _ALSO_PRIVATE)


def _inner_ipv4(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address embedded in `ip` (IPv4-mapped, 6to4 or NAT64), None if there is none."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
