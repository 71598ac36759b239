"""How much of all batches is under way at a time."""

from __future__ import annotations

import asyncio

import pytest

from ocr_server.batches.budget import RequestBudget


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("sizes", "within"),
    [([1, 1, 1, 1], 3), ([6, 4, 1], 2), ([6, 5, 1], 1), ([50, 1], 1), ([1, 50, 1], 1)],
)
async def test_bounds_hold_and_nobody_is_passed(sizes: list[int], within: int) -> None:
    budget, entered = RequestBudget(requests=3, size=10), list[int]()

    async def enter(number: int) -> None:
        await budget.enter(sizes[number])
        entered.append(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(len(sizes))]
    await settle()
    assert entered == list(range(within))
    for number, size in enumerate(sizes):
        assert number in entered
        budget.leave(size)
        await settle()
    assert entered == list(range(len(sizes)))
    await asyncio.gather(*tasks)


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    budget = RequestBudget(requests=1, size=10)
    await budget.enter(1)
    first, second = asyncio.create_task(budget.enter(1)), asyncio.create_task(budget.enter(1))
    await settle()
    first.cancel()
    budget.leave(1)
    await settle()
    assert second.done()
