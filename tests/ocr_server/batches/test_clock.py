"""Clocks that jump: nothing is deleted at once, and no lease is taken away."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ocr_server.batches.clock import CATCH_UP, SteadyClock
from ocr_server.batches.database import Database, batches, files
from tests.ocr_server.batches.conftest import Serve, request

HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0


class Time:
    """A system's clock and a monotonic one."""

    def __init__(self) -> None:
        self.system, self.monotonic = 1.8e9, 500.0

    def passes(self, seconds: float) -> None:
        self.system += seconds
        self.monotonic += seconds


@pytest.fixture
def at() -> Time:
    return Time()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/batches.db")
    yield database
    await database.close()


def clock_of(database: Database, at: Time) -> SteadyClock:
    return SteadyClock(database, system=lambda: at.system, monotonic=lambda: at.monotonic)


async def test_it_follows_the_systems_clock(database: Database, at: Time) -> None:
    clock = clock_of(database, at)
    await clock.load()
    for seconds in (0.1, 60, 40 * DAY):
        at.passes(seconds)
        assert clock.now() == at.system
    at.system -= 2 * DAY
    assert clock.now() == at.system, "also backwards"


async def test_after_a_jump_it_catches_up_slowly(
    database: Database, at: Time, caplog: pytest.LogCaptureFixture
) -> None:
    clock = clock_of(database, at)
    before = clock.now()
    at.system += 10 * YEAR
    assert clock.now() == before
    assert caplog.text.count("the system's clock is 87600.0 h ahead") == 1
    at.passes(HOUR)
    assert clock.now() == before + CATCH_UP * HOUR
    assert caplog.text.count("h ahead") == 1, "it is logged once"
    at.system -= 10 * YEAR
    assert clock.now() == at.system


async def test_a_jump_while_no_server_runs(database: Database, at: Time) -> None:
    """It cannot be distinguished from a long break. After a month, the clock is right within 31 hours."""
    clock = clock_of(database, at)
    await clock.save()
    before = at.system
    at.passes(30 * DAY)
    restarted = clock_of(database, at)
    await restarted.load()
    assert restarted.now() == before
    at.passes(5 * HOUR)
    await restarted.save()
    again = clock_of(database, at)
    await again.load()
    assert again.now() == restarted.now() == before + CATCH_UP * 5 * HOUR
    at.passes(26.5 * HOUR)
    assert again.now() == at.system


async def test_a_clock_in_the_past_is_believed(database: Database, at: Time) -> None:
    clock = clock_of(database, at)
    await clock.save()
    at.system -= YEAR
    again = clock_of(database, at)
    await again.load()
    assert again.now() == at.system


async def test_a_jump_of_years_deletes_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a server is running or started afterwards. When the time has really passed, all is deleted."""
    real = time.time
    years = 0
    monkeypatch.setattr("time.time", lambda: real() + years * YEAR)
    async with serve() as served:
        done = await served.ended(await served.batch([request("a")]))
        state = served.app.state.batches
        await state.clock.save()
        years = 20
        await state.files.sweep()
        await state.store.sweep()
        assert list(await served.lines(done.output_file_id)) == ["a"]
    with caplog.at_level(logging.WARNING):
        async with serve() as served:
            state = served.app.state.batches
            assert (await served.ended(await served.batch([request("b")]))).status == "completed"
            await state.files.sweep()
            await state.store.sweep()
            assert list(await served.lines(done.output_file_id)) == ["a"]
            assert (await served.api.batches.retrieve(done.id)).status == "completed"
            assert "Check the clock" in caplog.text
            await served.change(files, done.output_file_id, expires_at=0)
            await served.change(batches, done.id, completed_at=0)
            await state.files.sweep()
            await state.store.sweep()
            assert done.output_file_id not in [file.id async for file in served.api.files.list()]
            assert done.id not in [batch.id async for batch in served.api.batches.list()]
