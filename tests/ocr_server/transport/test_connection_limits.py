"""Which connections make room for new ones."""

from __future__ import annotations

import pytest

from ocr_server.errors import Unavailable
from ocr_server.transport.connection_limits import MAX_LINGERING, Activity, ConnectionLimits


class Connection:
    def __init__(self) -> None:
        self.is_open = True

    def evict(self) -> None:
        assert self.is_open
        self.is_open = False


def added(limits: ConnectionLimits, address: str, count: int, use: Activity = Activity.WAITS) -> list[Connection]:
    connections = [Connection() for _ in range(count)]
    for each in connections:
        limits.add(each, address)
        limits.note(each, use)
    return connections


class TestConnectionLimits:
    def test_the_longest_idle_goes_first(self) -> None:
        limits = ConnectionLimits(total=4)
        (busy,) = added(limits, "10.0.0.1", 1, Activity.BUSY)
        first, second = added(limits, "10.0.0.1", 2, Activity.KEPT)
        (waits,) = added(limits, "10.0.0.1", 1)
        limits.note(first, Activity.BUSY)
        limits.note(first, Activity.KEPT)
        gone = []
        for _ in range(3):
            added(limits, "10.0.0.2", 1, Activity.BUSY)
            gone += [each for each in (busy, first, second, waits) if not each.is_open and each not in gone]
        assert gone == [waits, second, first]
        with pytest.raises(Unavailable) as refused:
            limits.add(Connection(), "10.0.0.3")
        assert refused.value.retry_after

    def test_room_is_given_back(self) -> None:
        limits = ConnectionLimits(total=2)
        first, _ = added(limits, "10.0.0.1", 2, Activity.BUSY)
        for _ in range(2):
            limits.remove(first)
        added(limits, "10.0.0.1", 1, Activity.BUSY)
        with pytest.raises(Unavailable):
            limits.add(Connection(), "10.0.0.1")

    @pytest.mark.parametrize("address", ["8.8.8.8", "2a00:1450::1", "::ffff:8.8.8.8"])
    def test_an_address_of_the_internet_has_a_quarter(self, address: str) -> None:
        limits = ConnectionLimits(total=40)
        (other,) = added(limits, "9.9.9.9", 1)
        own = added(limits, address, 10)
        added(limits, address, 1)
        assert [each.is_open for each in own] == [False] + [True] * 9
        assert other.is_open

    @pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fe80::1%eth0", "fd00::1", ""])
    def test_a_proxy_may_have_all(self, address: str) -> None:
        assert all(each.is_open for each in added(ConnectionLimits(total=40), address, 40))

    def test_a_limit_that_is_set_holds_for_all_addresses(self) -> None:
        limits = ConnectionLimits(total=40, of_address=2)
        added(limits, "127.0.0.1", 2, Activity.BUSY)
        with pytest.raises(Unavailable, match="your address"):
            limits.add(Connection(), "127.0.0.1")
        added(limits, "10.0.0.1", 2, Activity.BUSY)

    def test_the_addresses_of_an_ipv6_network_count_together(self) -> None:
        limits = ConnectionLimits(total=40, of_address=2)
        added(limits, "2a00:1450::1", 1, Activity.BUSY)
        added(limits, "2a00:1450::ffff:2", 1, Activity.BUSY)
        added(limits, "2a00:1450:0:1::1", 1, Activity.BUSY)
        with pytest.raises(Unavailable):
            limits.add(Connection(), "2a00:1450::3")

    def test_shed(self) -> None:
        limits = ConnectionLimits(total=10)
        added(limits, "127.0.0.1", 2, Activity.BUSY)
        idle = added(limits, "127.0.0.1", 3, Activity.KEPT)
        assert limits.shed(2) == 2
        assert [each.is_open for each in idle] == [False, False, True]
        assert limits.shed(2) == 1

    def test_refused_connections_do_not_add_up(self) -> None:
        limits = ConnectionLimits()
        refused = [Connection() for _ in range(MAX_LINGERING + 2)]
        for each in refused:
            limits.linger(each)
        assert [each.is_open for each in refused] == [False, False] + [True] * MAX_LINGERING
