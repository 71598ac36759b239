"""Limits of accepted work, and the order in which pages get their turns."""

from __future__ import annotations

import asyncio
import random

import pytest

from ocr_server.errors import TooMany
from ocr_server.reading.admission import Admission, Ticket


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Pages:
    """Pages that take their turn and hold it until `let_go`."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[str] = []
        self.running: list[tuple[Ticket, asyncio.Task[None]]] = []

    def begin(self, name: str, ticket: Ticket, count: int) -> list[asyncio.Task[None]]:
        ticket.expect(count)
        tasks = [asyncio.create_task(self._one(name, ticket)) for _ in range(count)]
        self.running += [(ticket, task) for task in tasks]
        return tasks

    async def _one(self, name: str, ticket: Ticket) -> None:
        await ticket.acquire()
        self.order.append(name)

    async def let_go(self, count: int = 1) -> None:
        """End so many of the pages that have their turn, the first ones first."""
        await settle()
        done = [(ticket, task) for ticket, task in self.running if task.done() and not task.cancelled()]
        for ticket, task in done[:count]:
            self.running.remove((ticket, task))
            ticket.release()
        await settle()


async def test_no_more_pages_than_slots_at_a_time() -> None:
    admission = Admission(slots=3, most_waiting=100)
    pages, ticket = Pages(admission), admission.enter()
    pages.begin("a", ticket, 10)
    await settle()
    assert (len(pages.order), admission.pages_in_flight, admission.pages_waiting) == (3, 3, 7)
    await pages.let_go(2)
    assert (len(pages.order), admission.pages_in_flight, admission.pages_waiting) == (5, 3, 5)
    await pages.let_go(100)
    await pages.let_go(100)
    await pages.let_go(100)
    assert (len(pages.order), admission.pages_in_flight, admission.pages_waiting) == (10, 0, 0)


async def test_a_picture_does_not_wait_for_a_long_document() -> None:
    admission = Admission(slots=2, most_waiting=2000)
    pages = Pages(admission)
    pages.begin("long", admission.enter("a"), 1000)
    await settle()
    pages.begin("picture", admission.enter("b"), 1)
    await pages.let_go()
    await pages.let_go()
    assert "picture" in pages.order
    assert len(pages.order) <= 4


async def test_clients_take_turns_and_so_do_the_requests_of_a_client() -> None:
    admission = Admission(slots=1, most_waiting=100)
    pages = Pages(admission)
    pages.begin("hold", admission.enter("x"), 1)
    await settle()
    for name, client in (("a1", "a"), ("a2", "a"), ("b", "b")):
        pages.begin(name, admission.enter(client), 3)
    for _ in range(10):
        await pages.let_go()
    assert pages.order == ["hold", "a1", "b", "a2", "b", "a1", "b", "a2", "a1", "a2"]


async def test_new_requests_are_refused_while_the_queue_is_full() -> None:
    admission = Admission(slots=1, most_waiting=3)
    pages = Pages(admission)
    first = admission.enter()
    pages.begin("a", first, 10)  # a large request is accepted as a whole
    await settle()
    with pytest.raises(TooMany) as caught:
        admission.enter()
    assert caught.value.status == 429
    assert int(caught.value.headers["retry-after"]) >= 1
    for _ in range(7):
        await pages.let_go()
    admission.enter().close()


async def test_a_client_with_few_pages_is_admitted_while_another_fills_the_queue() -> None:
    admission = Admission(slots=1, most_waiting=20, guaranteed=5)
    pages = Pages(admission)
    pages.begin("a", admission.enter("a"), 21)
    await settle()
    with pytest.raises(TooMany):
        admission.enter("a")
    small, large = admission.enter("b", pages=2), admission.enter("b")
    small.expect(3)
    with pytest.raises(TooMany):
        large.expect(4)  # pages are counted again when the files have been opened
    assert admission.pages_waiting == 20 + 3
    large.expect(2)


async def test_pages_are_counted_again_when_the_files_have_been_opened() -> None:
    admission = Admission(slots=1, most_waiting=10)
    tickets = [admission.enter(client) for client in "abc"]
    refused = 0
    for ticket in tickets:
        try:
            ticket.expect(6)
        except TooMany:
            refused += 1
    assert refused == 2
    assert admission.pages_waiting == 6


async def test_the_files_of_a_request_count_before_they_are_opened() -> None:
    admission = Admission(slots=1, most_waiting=100, most_of_client=64)
    admission.enter("a", pages=64)
    with pytest.raises(TooMany):
        admission.enter("a")


async def test_the_limit_of_each_client() -> None:
    admission = Admission(slots=1, most_waiting=100, most_of_client=2)
    pages = Pages(admission)
    pages.begin("a", admission.enter("a"), 2)
    await settle()
    with pytest.raises(TooMany, match=r"You have 2 pages in progress; the limit is 2\."):
        admission.enter("a")
    pages.begin("b", admission.enter("b"), 1)
    await pages.let_go()
    admission.enter("a").close()


async def test_a_cancelled_request_leaves_the_queue() -> None:
    admission = Admission(slots=1, most_waiting=100)
    pages = Pages(admission)
    pages.begin("a", admission.enter("a"), 1)
    await settle()
    ticket = admission.enter("b")
    waiting = pages.begin("b", ticket, 5)
    await settle()
    for task in waiting:
        task.cancel()
    await settle()
    ticket.close()
    ticket.close()
    assert admission.pages_waiting == 0
    pages.begin("c", admission.enter("c"), 1)
    await pages.let_go()
    assert pages.order == ["a", "c"]


async def test_retry_after_follows_from_the_speed() -> None:
    now = [1000.0]
    admission = Admission(slots=1, most_waiting=10, clock=lambda: now[0])
    ticket = admission.enter()
    ticket.expect(30)
    for _ in range(11):
        await ticket.acquire()
        now[0] += 4.0
        ticket.release()
    with pytest.raises(TooMany) as caught:
        admission.enter()
    assert caught.value.retry_after == pytest.approx(10 * 4.0, rel=0.15)


@pytest.mark.parametrize("seed", range(30))
async def test_no_slot_is_lost_whenever_requests_are_cancelled(seed: int) -> None:
    """Requests come, end and are cancelled at random: there are never too many pages, and all counts return to 0."""
    rng = random.Random(seed)
    limit = 10_000
    admission = Admission(slots=3, most_waiting=limit, most_of_client=limit, background_slots=2)

    async def page(ticket: Ticket) -> None:
        await ticket.acquire()
        try:
            assert admission.pages_in_flight <= 3
            assert admission.background_in_flight <= 2
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        finally:
            ticket.release()

    async def request() -> None:
        ticket = admission.enter(rng.choice("abc"), in_background=rng.random() < 0.4)
        count = rng.randrange(1, 6)
        ticket.expect(count)
        tasks = [asyncio.create_task(page(ticket)) for _ in range(count)]
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            for task in tasks:
                if rng.random() < 0.7:
                    task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ticket.close()

    await asyncio.gather(*(request() for _ in range(20)))
    assert (admission.pages_in_flight, admission.pages_waiting) == (0, 0)
    assert admission.background_in_flight == 0
    for client in "abc":  # a page that was still counted for the client would be one too many
        ticket = admission.enter(client)
        ticket.expect(limit - 1)
        admission.enter(client).close()
        ticket.close()
    async with asyncio.timeout(5):  # a page that was still in a queue would keep these waiting
        for in_background, count in ((True, 2), (False, 1)):
            ticket = admission.enter(in_background=in_background)
            ticket.expect(count)
            for _ in range(count):
                await ticket.acquire()


async def test_background_pages_get_slots_while_no_other_page_waits() -> None:
    admission = Admission(slots=3, most_waiting=2, background_slots=2)
    pages = Pages(admission)
    pages.begin("batch", admission.enter("b", in_background=True), 10)
    await settle()
    assert pages.order == ["batch"] * 2, "one slot is left for other requests"
    assert (admission.pages_in_flight, admission.background_in_flight, admission.pages_waiting) == (2, 2, 0)
    pages.begin("asks", admission.enter("a"), 4)
    await settle()
    assert pages.order[2:] == ["asks"]
    for _ in range(3):
        await pages.let_go()
    assert pages.order[3:] == ["asks"] * 3, "all waiting pages go before the batch"
    for _ in range(20):
        await pages.let_go()
    assert pages.order.count("batch") == 10
    assert (admission.pages_in_flight, admission.background_in_flight, admission.pages_waiting) == (0, 0, 0)


async def test_background_requests_are_not_refused_and_do_not_cause_refusals() -> None:
    admission = Admission(slots=1, most_waiting=1, most_of_client=1, background_slots=1)
    pages = Pages(admission)
    for _ in range(3):
        pages.begin("batch", admission.enter("a", in_background=True), 10)
    await settle()
    pages.begin("asks", admission.enter("a"), 1)
    await pages.let_go()
    assert pages.order == ["batch", "asks"]


async def test_a_cancelled_background_page_frees_its_slot() -> None:
    admission = Admission(slots=1, most_waiting=10, background_slots=1)
    pages, ticket = Pages(admission), admission.enter("b", in_background=True)
    _, second, third = pages.begin("batch", ticket, 3)
    await settle()
    third.cancel()
    await settle()
    done = [task for _, task in pages.running if task.done() and not task.cancelled()]
    assert len(done) == 1
    ticket.release()
    second.cancel()  # at the moment when it is given the slot
    await settle()
    assert (admission.pages_in_flight, admission.background_in_flight) == (0, 0)
