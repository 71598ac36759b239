"""The limit of the requests of all batches that are processed at a time."""

from __future__ import annotations

import asyncio
import math

import pytest

from ocr_server.batches.budget import RequestBudget
from ocr_server.memory import BYTES_HELD, SHARES, MemoryBudget, Reservation, Use


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("sizes", "within"),  # of 10 bytes for bodies
    [([1, 1, 1, 1], 3), ([6, 4, 1], 2), ([6, 5, 1], 1), ([50, 1], 1), ([1, 50, 1], 1)],
)
async def test_limits_hold_and_requests_stay_in_order(sizes: list[int], within: int) -> None:
    memory = MemoryBudget(math.ceil(BYTES_HELD * 10 / SHARES[Use.BODIES]))
    budget, entered, bodies = RequestBudget(requests=3, memory=memory), list[int](), dict[int, Reservation]()

    async def enter(number: int) -> None:
        bodies[number] = await budget.enter(sizes[number])
        entered.append(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(len(sizes))]
    await settle()
    assert entered == list(range(within))
    for number in range(len(sizes)):
        assert number in entered
        budget.leave(bodies[number])
        await settle()
    assert entered == list(range(len(sizes)))
    await asyncio.gather(*tasks)


async def test_a_request_that_stops_waiting_does_not_block_the_next() -> None:
    budget = RequestBudget(requests=1, memory=MemoryBudget(1000))
    body = await budget.enter(1)
    first, second = asyncio.create_task(budget.enter(1)), asyncio.create_task(budget.enter(1))
    await settle()
    first.cancel()
    budget.leave(body)
    await settle()
    assert second.done()


@pytest.mark.parametrize(("requests", "in_groups"), [(1, 1), (2, 1), (4, 2), (16, 4), (50, 6)])
async def test_suspects_are_tried_in_small_groups_and_then_alone(requests: int, in_groups: int) -> None:
    budget = RequestBudget(requests=requests, memory=MemoryBudget(1000))
    for deaths, within in ((0, requests), (1, in_groups), (2, 1), (3, 1)):
        places = budget.share(deaths)
        tasks = [asyncio.create_task(budget.enter(0, places)) for _ in range(within + 1)]
        await settle()
        assert [task.done() for task in tasks] == [True] * within + [False]
        for task in tasks:
            budget.leave(await task)
            await settle()
