"""Stalls of the event loop are measured, exported, and logged with the place that causes them."""

from __future__ import annotations

import asyncio
import time

import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from ocr_server.observability.event_loop import LoopWatchdog
from tests.ocr_server.conftest import client_of

STALL_S = 0.3


def sum_of_stalls() -> float:
    return REGISTRY.get_sample_value("ocr_event_loop_stall_seconds_sum") or 0.0


async def longest(watchdog: LoopWatchdog, least: float) -> float:
    """Return the longest stall once the watchdog has noticed one of at least `least` seconds."""
    while watchdog.longest < least:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return watchdog.longest


def block(seconds: float) -> None:
    time.sleep(seconds)


def block_until_logged(caplog: pytest.LogCaptureFixture) -> None:
    while not caplog.records:
        time.sleep(0.01)


@pytest.mark.timeout(60)
class TestMeasurement:
    async def test_a_stall(self) -> None:
        before = sum_of_stalls()
        async with LoopWatchdog() as watchdog:
            await asyncio.sleep(0)  # the task has begun to sleep
            block(STALL_S)
            assert await longest(watchdog, STALL_S / 2) < 30
            assert sum_of_stalls() - before >= STALL_S / 2
            assert (REGISTRY.get_sample_value("ocr_event_loop_longest_stall_seconds") or 0) >= STALL_S / 2

    async def test_a_stall_is_forgotten(self) -> None:
        async with LoopWatchdog(window_s=1.0) as watchdog:
            await asyncio.sleep(0)
            block(3)
            assert await longest(watchdog, 2) >= 2
            while watchdog.longest >= 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def test_it_ends_with_its_context(self) -> None:
        async with LoopWatchdog():
            pass
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    async def test_it_watches_the_server(self, app: FastAPI) -> None:
        async with app.router.lifespan_context(app), client_of(app) as client:
            await asyncio.sleep(0)
            block(STALL_S)
            await longest(app.state.watchdog, STALL_S / 2)
            text = (await client.get("/metrics")).text
        assert "ocr_event_loop_stall_seconds_bucket" in text
        assert "ocr_event_loop_longest_stall_seconds" in text


@pytest.mark.timeout(60)
class TestWarning:
    async def test_the_place_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        async with LoopWatchdog(warn_after_s=0.1):
            await asyncio.sleep(0)
            block_until_logged(caplog)
            block(0.3)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "stalled for" in record.getMessage()
        assert "block_until_logged" in record.getMessage()

    async def test_the_next_stall_is_logged_again(self, caplog: pytest.LogCaptureFixture) -> None:
        async with LoopWatchdog(warn_after_s=0.1) as watchdog:
            await asyncio.sleep(0)
            block_until_logged(caplog)
            await longest(watchdog, 0.1)
            caplog.clear()
            block_until_logged(caplog)

    async def test_stalls_while_the_model_is_loaded_are_measured_but_not_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with LoopWatchdog(warn_after_s=0.1, expected=lambda: "The model is loading.") as watchdog:
            await asyncio.sleep(0)
            block(0.5)
            await longest(watchdog, 0.3)
        assert not caplog.records

    async def test_a_free_loop_is_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        async with LoopWatchdog(warn_after_s=5):
            await asyncio.sleep(1)
        assert not caplog.records
