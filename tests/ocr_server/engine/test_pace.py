"""Few pages get every token at once; many get several tokens at a time, but the first ones at once all the same."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from ocr_server.engine.pace import LONGEST_WAIT, PIECES_PER_SECOND, Pace

TOKENS = 100
TOKEN_SECONDS = 0.005
"""Time in which the engine makes a token."""


async def fetched_at_a_time(pace: Pace) -> list[int]:
    """The number of tokens in each piece of a page, from an engine that joins the tokens that wait to be fetched."""
    loop = asyncio.get_running_loop()
    begun, taken, pieces = loop.time(), 0, []
    with pace.page() as page:
        while taken < TOKENS:
            made = round((loop.time() - begun) / TOKEN_SECONDS)
            if made == taken:
                await asyncio.sleep(TOKEN_SECONDS)
                continue
            pieces.append(made - taken)
            taken = made
            await page.wait()
    return pieces


async def test_a_single_page_gets_every_token_at_once() -> None:
    assert TOKEN_SECONDS > 1 / PIECES_PER_SECOND
    assert await fetched_at_a_time(Pace()) == [1] * TOKENS


@pytest.mark.parametrize(("pages", "tokens"), [(5, 4), (10, 8), (5000, 20)])
async def test_with_many_pages_tokens_come_together(pages: int, tokens: int) -> None:
    assert tokens * TOKEN_SECONDS == pytest.approx(min(pages / PIECES_PER_SECOND, LONGEST_WAIT))
    pace = Pace()
    with ExitStack() as stack:
        for _ in range(pages - 1):
            stack.enter_context(pace.page())
        first, second, *later = await fetched_at_a_time(pace)
    assert (first, second) == (1, 1)
    assert set(later) == {tokens}
    assert pace.interval == 0, "no page is left"


async def test_pieces_that_come_slowly_are_not_delayed() -> None:
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
            assert loop.time() == before
