"""The memory budget: who is granted bytes, who waits, and who is refused."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from ocr_server.errors import TooLarge, TooMany
from ocr_server.memory import SHARES, MemoryBudget, Use, default_capacity

KB = 1000


def test_a_reservation_grows_until_the_share_of_its_use_is_reached_and_is_given_back_once() -> None:
    budget = MemoryBudget(100 * KB)
    with budget.reserve(Use.BODIES, 30 * KB) as body:
        body.grow(20 * KB)
        other = budget.reserve(Use.BODIES)
        with pytest.raises(TooMany) as refused:
            other.grow(1)
        assert refused.value.code == "too_many_bytes"
        assert refused.value.retry_after == 5
        assert (budget.used[Use.BODIES], budget.refused[Use.BODIES]) == (50 * KB, 1)
    body.close()
    assert (budget.total, budget.peak) == (0, 50 * KB)


def test_a_request_that_could_never_fit_is_told_so_instead_of_to_try_again() -> None:
    budget = MemoryBudget(100 * KB)
    with pytest.raises(TooLarge):
        budget.reserve(Use.BODIES, 51 * KB)
    assert budget.total == 0


def test_later_uses_find_room_however_much_the_earlier_ones_want() -> None:
    budget = MemoryBudget(100 * KB)
    for earlier, later in pairwise(SHARES):
        if later is Use.ANSWERS:
            break
        budget.reserve(earlier, int(SHARES[earlier] * budget.capacity) - budget.total)
        with pytest.raises(TooMany):
            budget.reserve(earlier, KB)
        budget.reserve(later, KB)


async def test_those_who_wait_are_served_in_their_order_and_a_cancelled_one_is_skipped() -> None:
    budget, order = MemoryBudget(100 * KB), list[str]()

    async def wait(name: str, size: int) -> None:
        await budget.wait(Use.PIXELS, size)
        order.append(name)

    first = await budget.wait(Use.PIXELS, 80 * KB)
    tasks = [asyncio.create_task(wait(name, size)) for name, size in (("large", 60 * KB), ("left", KB), ("small", KB))]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert order == []  # the small one does not overtake the large one, which would wait forever
    first.close()
    await asyncio.gather(tasks[0], tasks[2])
    assert (order, budget.total) == (["large", "small"], 61 * KB)


async def test_an_early_use_that_waits_does_not_hold_up_a_later_one_which_it_waits_for() -> None:
    budget = MemoryBudget(100 * KB)
    page = await budget.wait(Use.PIXELS, 70 * KB)
    first_body = await budget.wait(Use.BODIES, KB)
    body = asyncio.create_task(budget.wait(Use.BODIES, 10 * KB))
    await asyncio.sleep(0)
    await asyncio.wait_for(budget.wait(Use.PIXELS, 10 * KB), 5)
    assert not body.done()
    page.close()
    await asyncio.wait_for(body, 5)
    first_body.close()


async def test_a_cancelled_wait_lets_those_behind_it_go_on() -> None:
    budget = MemoryBudget(100 * KB)
    await budget.wait(Use.PIXELS, 80 * KB)
    large = asyncio.create_task(budget.wait(Use.PIXELS, 60 * KB))
    small = asyncio.create_task(budget.wait(Use.PIXELS, KB))
    await asyncio.sleep(0)
    large.cancel()
    await asyncio.wait_for(small, 5)
    assert budget.total == 81 * KB


async def test_a_wait_that_is_cancelled_in_the_moment_of_its_turn_gives_the_bytes_back() -> None:
    budget = MemoryBudget(100 * KB)
    first = await budget.wait(Use.PIXELS, 80 * KB)
    second = asyncio.create_task(budget.wait(Use.PIXELS, 60 * KB))
    await asyncio.sleep(0)
    first.close()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert budget.total == 0


async def test_a_page_larger_than_the_budget_is_granted_when_there_is_no_other() -> None:
    budget = MemoryBudget(100 * KB)
    page = await asyncio.wait_for(budget.wait(Use.PIXELS, 300 * KB), 5)
    assert page.size == 300 * KB
    next_page = asyncio.create_task(budget.wait(Use.PIXELS, KB))
    await asyncio.sleep(0)
    assert not next_page.done()
    page.shrink_to(10 * KB)
    await asyncio.wait_for(next_page, 5)


async def test_the_answer_of_a_page_that_took_more_than_the_budget_is_kept() -> None:
    """The page was granted since there was no other. Without room for the answer it would have been read in vain."""
    budget = MemoryBudget(100 * KB)
    await asyncio.wait_for(budget.wait(Use.PIXELS, 300 * KB), 5)
    answer = budget.reserve(Use.ANSWERS, 50 * KB)
    with pytest.raises(TooMany):
        budget.reserve(Use.ANSWERS, KB)
    with pytest.raises(TooLarge):
        answer.grow(KB)


def test_a_client_with_little_is_granted_memory_although_another_one_has_it_all() -> None:
    """Up to a sixteenth of the capacity, and only while the total does not exceed the capacity by far."""
    budget = MemoryBudget(160 * KB)
    budget.reserve(Use.BODIES, 80 * KB, "greedy")
    with pytest.raises(TooMany):
        budget.reserve(Use.BODIES, KB, "greedy")
    small = budget.reserve(Use.BODIES, 6 * KB, "modest")
    small.grow(4 * KB)
    with pytest.raises(TooMany):
        small.grow(1)
    small.close()
    budget.reserve(Use.BODIES, 10 * KB, "modest")
    for number in range(11):
        budget.reserve(Use.BODIES, 10 * KB, f"one of many {number}")
    with pytest.raises(TooMany):
        budget.reserve(Use.BODIES, 10 * KB, "one too many")


async def test_clients_take_turns_when_they_wait() -> None:
    budget = MemoryBudget(100 * KB)
    first = await budget.wait(Use.PIXELS, 80 * KB, "greedy")
    more = [asyncio.create_task(budget.wait(Use.PIXELS, 80 * KB, "greedy")) for _ in range(3)]
    await asyncio.sleep(0)
    other = asyncio.create_task(budget.wait(Use.PIXELS, 50 * KB, "modest"))
    little = await asyncio.wait_for(budget.wait(Use.PIXELS, KB, "small"), 5)  # guaranteed
    first.close()
    (await asyncio.wait_for(more[0], 5)).close()
    (await asyncio.wait_for(other, 5)).close()
    (await asyncio.wait_for(more[1], 5)).close()
    (await asyncio.wait_for(more[2], 5)).close()
    little.close()
    assert budget.total == 0


def test_the_default_capacity_is_a_part_of_the_machine() -> None:
    assert default_capacity() >= 500_000_000
