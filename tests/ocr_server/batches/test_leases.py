"""Leases are taken over only from servers that no longer renew them, and only deaths are counted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.database import Database, batches
from ocr_server.batches.files import Files, Quota
from ocr_server.batches.leases import INPUT, BatchAnswer, Leases, LostLease
from ocr_server.batches.storage import Storage
from ocr_server.errors import Unavailable

SECONDS = 30.0
BATCH = "batch_1"


class Servers:
    """Servers that share a database with one batch. Their monotonic time is `now`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "batches.db"
        self.databases: list[Database] = []
        self.now = 0.0
        self._storage = Storage(str(folder / "files"))

    def start(self) -> Leases:
        database = Database(f"sqlite:///{self.path}")
        self.databases.append(database)
        clock, quota = SteadyClock(database), Quota(of_all=1 << 30, of_client=0)
        files = Files(database, self._storage, quota, days=30, clock=clock)
        return Leases(database, files, quota, seconds=SECONDS, clock=clock, monotonic=lambda: self.now)

    async def create(self) -> None:
        names = ("client", "endpoint", "completion_window", "input_file_id", "kind")
        row = {"id": BATCH, "status": "in_progress", "created_at": 0, "expires_at": 1 << 40, "total": 9}
        await self.databases[0].run(
            lambda connection: connection.execute(insert(batches).values(dict.fromkeys(names, "a") | row))
        )


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    servers = Servers(tmp_path)
    servers.start()
    await servers.create()
    yield servers
    for database in servers.databases:
        await database.close()


async def claims(leases: Leases) -> bool:
    claimed = await leases.claim({}, endpoints=["a"], accept_open=True)
    return claimed is not None


async def takes_over(servers: Servers) -> Leases:
    """A new server takes the batch of one that no longer renews its lease."""
    leases = servers.start()
    assert not await claims(leases)
    servers.now += SECONDS
    assert await claims(leases)
    return leases


async def test_a_lease_expires_when_it_is_not_renewed_for_its_duration(servers: Servers) -> None:
    first, second = servers.start(), servers.start()
    assert await claims(first)
    for _ in range(5):
        assert not await claims(second)
        servers.now += SECONDS - 0.1
        await first.renew([BATCH])
    assert not await claims(second)
    servers.now += SECONDS
    assert await claims(second)
    for change in (
        first.begin(BATCH, 1),
        first.close(BATCH),
        first.get(BATCH),
        first.record(BATCH, group=[BatchAnswer(1, True, "{}")]),
        first.record(BATCH, begun=[1]),
    ):
        with pytest.raises(LostLease):
            await change
    assert await first.renew([BATCH]) == {}
    assert (await second.renew([BATCH]))[BATCH].status == "in_progress"


@pytest.mark.parametrize("jump", [-1e9, 1e9])
async def test_a_jump_of_a_clock_takes_no_lease_away(
    servers: Servers, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = servers.start(), servers.start()
    assert await claims(first)
    assert not await claims(second)
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + jump)
    servers.now += SECONDS / 2
    assert not await claims(second)
    await first.renew([BATCH])
    servers.now += SECONDS / 2
    assert not await claims(second)
    servers.now += SECONDS
    assert await claims(second), "it does not wait for a clock that was set back"


async def test_deaths_are_counted_for_each_request_that_was_being_processed(servers: Servers) -> None:
    first = servers.start()
    assert await claims(first)
    await first.record(BATCH, begun=[1, 2])
    await first.record(BATCH, begun=[3], group=[BatchAnswer(2, True, "{}")])
    assert await first.deaths(BATCH) == {}, "its own requests are not deaths"
    second = await takes_over(servers)
    assert await second.deaths(BATCH) == {1: 1, 3: 1}
    await second.record(BATCH, begun=[1])
    third = await takes_over(servers)
    assert await third.deaths(BATCH) == {1: 2, 3: 1}
    await third.record(BATCH, group=[BatchAnswer(1, False, "{}"), BatchAnswer(3, True, "{}")])
    assert await third.deaths(BATCH) == {}


async def test_deaths_while_the_input_is_opened_are_counted(servers: Servers) -> None:
    assert await claims(servers.start())
    second = await takes_over(servers)
    assert await second.deaths(BATCH) == {INPUT: 1}
    third = await takes_over(servers)
    assert await third.deaths(BATCH) == {INPUT: 2}
    await third.record(BATCH, begun=[1])
    assert await third.deaths(BATCH) == {}, "now it has been opened"
    await third.close(BATCH)
    fourth = await takes_over(servers)
    assert await fourth.deaths(BATCH) == {INPUT: 1, 1: 1}, "it is read again for the error file"


async def test_a_server_that_stops_in_order_is_not_a_death(servers: Servers) -> None:
    first, second = servers.start(), servers.start()
    assert await claims(first)
    await first.record(BATCH, begun=[1])
    await first.release(BATCH)
    assert await claims(second)
    assert await second.deaths(BATCH) == {}


async def test_a_server_that_only_lost_its_lease_is_not_a_death(servers: Servers) -> None:
    """It may have been paused, or cut off from the database."""
    first = servers.start()
    assert await claims(first)
    await first.record(BATCH, begun=[1])
    second = await takes_over(servers)
    assert await second.deaths(BATCH) == {1: 1}, "until the other server is heard of"
    await second.record(BATCH, begun=[1])
    assert await first.renew([BATCH]) == {}
    await first.release(BATCH)
    assert await second.deaths(BATCH) == {}
    assert (await second.renew([BATCH]))[BATCH].status == "in_progress", "it keeps the lease"


async def test_a_lease_that_could_not_be_released_is_released_later(servers: Servers) -> None:
    first, second = servers.start(), servers.start()
    assert await claims(first)
    await first.record(BATCH, begun=[1])
    with closing(sqlite3.connect(servers.path)) as other:
        other.execute("ALTER TABLE batch_deliveries RENAME TO other")  # so that the next statement fails
    with pytest.raises(Unavailable):
        await first.release(BATCH)
    with closing(sqlite3.connect(servers.path)) as other:
        other.execute("ALTER TABLE other RENAME TO batch_deliveries")
    assert not await claims(second)
    assert await first.renew([]) == {}
    assert await claims(second)
    assert await second.deaths(BATCH) == {}


async def test_a_server_takes_its_own_lease_again_at_once(servers: Servers) -> None:
    first = servers.start()
    assert await claims(first)
    await first.record(BATCH, begun=[1])
    assert await claims(first)
    assert await first.deaths(BATCH) == {}


async def test_two_servers_that_see_the_same_expired_lease(servers: Servers) -> None:
    """Only one of them gets it, although its end is the same for both."""
    first, second, third = servers.start(), servers.start(), servers.start()
    assert await claims(first)
    stopped = update(batches).values(lease_until=1.0)
    await servers.databases[0].run(lambda connection: connection.execute(stopped))
    assert not await claims(second)
    assert not await claims(third)
    servers.now += SECONDS
    assert [await claims(second), await claims(third)] == [True, False]
