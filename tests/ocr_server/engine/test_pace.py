"""Few pages get every piece at once; many get several pieces at a time, and the first ones at once all the same."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from ocr_server.engine.pace import LONGEST_WAIT, PIECES_PER_SECOND, Pace

SECONDS = 0.5
EVERY = 0.005


async def fetches(pace: Pace) -> list[int]:
    """How much a page is given at a time, whose engine makes a token every 5 ms and joins what waits."""
    loop = asyncio.get_running_loop()
    begun, taken, given = loop.time(), 0, []
    with pace.page() as page:
        while taken < SECONDS / EVERY:
            made = int((loop.time() - begun) / EVERY)
            if made == taken:
                await asyncio.sleep(EVERY)
                continue
            given.append(made - taken)
            taken = made
            await page.wait()
    return given


async def test_one_page_gets_tokens_as_they_come() -> None:
    assert len(await fetches(Pace())) > 0.3 * SECONDS / EVERY


@pytest.mark.parametrize("others", [50, 5000])
async def test_with_many_pages_tokens_come_together(others: int) -> None:
    pace = Pace()
    with ExitStack() as stack:
        for _ in range(others):
            stack.enter_context(pace.page())
        given = await fetches(pace)
    assert len(given) <= SECONDS / min((others + 1) / PIECES_PER_SECOND, LONGEST_WAIT) + 3
    assert sum(given) >= SECONDS / EVERY
    assert pace.interval == 0, "nobody is left"


async def test_what_comes_slowly_is_not_delayed() -> None:
    pace = Pace()
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(pace.page())
        page = stack.enter_context(pace.page())
        for _ in range(3):
            await asyncio.sleep(0.12)
            before = loop.time()
            await page.wait()
            assert loop.time() - before < 0.05
