"""Engines that crash, hang or fail to load, and pages that crash them. Time is virtual (see conftest)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from ocr_server.engine.quarantine import Evidence, Suspects, content_key
from ocr_server.engine.supervisor import LONGEST_RETRY_AFTER, Supervisor, Timing
from ocr_server.errors import EngineFailure, InvalidRequest, Unavailable
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta
from tests.ocr_server.conftest import FakeEngine, Script, delta, endless, fails, never, prepared, says, until
from tests.ocr_server.engine.conftest import VirtualTimeLoop

QUICK = Timing(poll=0.01, backoff=0.01, longest_backoff=0.04, healthy=60, kill=0.2)


class FakeRestartableEngine(FakeEngine):
    """A fake engine that a supervisor can watch and kill."""

    def __init__(self, script: Script | None = None, error: BaseException | None = None) -> None:
        super().__init__(script)
        self.error = error
        self.kills = 0
        self.steps = 0
        self.cpu: float | None = None
        """CPU time so far."""
        self.by_itself = True
        self.prepares = False
        """Whether its pages are still being prepared."""
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def loaded(self) -> None:
        self.start()
        await self.may_load.wait()
        if self.error is not None:
            raise self.error

    def has_work(self) -> bool:
        return not self.prepares

    def cpu_seconds(self) -> float | None:
        return self.cpu

    async def failed_by_itself(self) -> bool:
        assert not self.kills, "an engine that was killed does not tell why it crashed"
        return self.by_itself

    async def kill(self) -> None:
        self.kills += 1
        await self.may_end.wait()

    def crash(self) -> None:
        self.reason = "dead"


class RecordingCheck:
    """Records the options that it checks."""

    def __init__(self) -> None:
        self.checked: list[Decoding] = []
        self.closed = False

    async def __call__(self, decoding: Decoding) -> None:
        self.checked.append(decoding)

    async def close(self) -> None:
        self.closed = True


class Harness:
    """Makes supervisors, and records the engines that they make and when."""

    def __init__(self) -> None:
        self.engines: list[FakeRestartableEngine] = []
        self.times: list[float] = []
        self.supervisors: list[Supervisor] = []
        self.check = RecordingCheck()
        self.plan: Callable[[int], FakeRestartableEngine] = lambda _: FakeRestartableEngine(says("Hello"))
        """Makes the n-th engine, counted from 0."""

    @property
    def engine(self) -> FakeRestartableEngine:
        return self.engines[-1]

    def make(self) -> FakeRestartableEngine:
        self.times.append(asyncio.get_running_loop().time())
        self.engines.append(self.plan(len(self.engines)))
        return self.engine

    def supervisor(self, *, stall: float = 60, most: int = 100, timing: Timing = QUICK) -> Supervisor:
        supervisor = Supervisor(self.make, check=self.check, stall_timeout=stall, most_restarts=most, timing=timing)
        self.supervisors.append(supervisor)
        return supervisor

    async def ready(self, engines: int = 1) -> None:
        """Wait until so many engines have been made and the last of them is ready."""
        await until(lambda: len(self.engines) == engines and self.supervisors[0].unavailable() is None)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    before = asyncio.all_tasks()
    harness = Harness()
    yield harness
    for supervisor in harness.supervisors:
        await supervisor.close()
        assert supervisor.unavailable() is not None
    assert all(engine.closes or engine.kills for engine in harness.engines)
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    assert not left, "tasks are left behind"


def page(number: int = 0, prompt: str = "Free OCR.", **params: int) -> Page:
    """A page; a different number makes a different picture."""
    image = replace(prepared(), global_view=torch.full((4, 4, 3), number, dtype=torch.uint8))
    return Page(image, prompt, Decoding(**params))


async def text(supervisor: Supervisor, each: Page) -> str:
    return "".join([delta.text async for delta in supervisor.read(each)])


async def crash_with(harness: Harness, supervisor: Supervisor, *pages: Page) -> None:
    """Crash the engine while it reads these pages."""
    engine = harness.engine
    engine.script = endless
    readers = [asyncio.ensure_future(text(supervisor, each)) for each in pages]
    await until(lambda: engine.running == len(pages))
    engine.crash()
    for reader in readers:
        with pytest.raises(Unavailable):
            await reader


async def test_pages_are_read_by_the_engine(harness: Harness) -> None:
    supervisor = harness.supervisor()
    with pytest.raises(Unavailable, match="not been started"):
        await text(supervisor, page())
    await supervisor.loaded()
    assert supervisor.unavailable() is None
    assert await text(supervisor, page()) == "Hello"
    harness.engine.script = fails(EngineFailure("This page only."))
    with pytest.raises(EngineFailure):
        await text(supervisor, page())
    harness.engine.script = fails(TimeoutError("the page's own"))
    with pytest.raises(TimeoutError, match="own"):
        await text(supervisor, page())
    await asyncio.sleep(3 * QUICK.poll)
    assert (supervisor.restarts, len(harness.engines)) == (0, 1)


async def test_closing_a_page_aborts_it(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.engine.script = endless
    deltas = supervisor.read(page())
    await anext(deltas)
    await deltas.aclose()
    assert harness.engine.aborted == [0]


@pytest.mark.parametrize("script", [never, endless], ids=["before the first piece", "between pieces"])
async def test_a_crash_ends_all_pages_and_starts_a_new_engine(harness: Harness, script: Script) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    first = harness.engine
    first.script = script
    first.may_end.clear()
    readers = [asyncio.ensure_future(text(supervisor, page(number))) for number in range(3)]
    await until(lambda: first.running == 3)
    first.crash()
    for reader in readers:
        with pytest.raises(Unavailable, match="being restarted") as caught:
            await reader
        assert caught.value.retry_after is not None
        assert 1 <= caught.value.retry_after <= 60
    assert "being restarted" in (supervisor.unavailable() or "")
    with pytest.raises(Unavailable, match="being restarted"):
        await text(supervisor, page(9))
    await until(lambda: first.kills == 1)
    assert len(harness.engines) == 1, "the next engine is made only when this one has ended"
    first.may_end.set()
    await harness.ready(2)
    assert supervisor.restarts == 1
    assert await text(supervisor, page(0)) == "Hello"


async def test_a_crash_that_a_page_reports_counts_at_once(harness: Harness) -> None:
    supervisor = harness.supervisor(timing=replace(QUICK, poll=60))
    await supervisor.loaded()
    harness.engine.script = fails(Unavailable("dead"), "begun")
    deltas = supervisor.read(page())
    assert (await anext(deltas)).text == "begun"
    with pytest.raises(Unavailable, match="being restarted"):
        await anext(deltas)
    assert supervisor.unavailable() is not None
    await harness.ready(2)


async def test_any_error_of_a_crashed_engine_is_answered_with_try_again(harness: Harness) -> None:
    supervisor = harness.supervisor(timing=replace(QUICK, poll=60))
    await supervisor.loaded()
    harness.engine.script = fails(RuntimeError("a socket is closed"))
    harness.engine.crash()
    with pytest.raises(Unavailable, match="being restarted"):
        await text(supervisor, page())
    await harness.ready(2)


async def test_an_engine_that_hangs_is_killed(harness: Harness) -> None:
    supervisor = harness.supervisor(stall=0.1)
    await supervisor.loaded()
    harness.engine.script = never
    with pytest.raises(Unavailable, match="stopped making progress"):
        await text(supervisor, page())
    await harness.ready(2)
    assert harness.engines[0].kills == 1


@asynccontextmanager
async def regularly(change: Callable[[], None], seconds: float) -> AsyncIterator[None]:
    """Make a change every so many seconds, in this context."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
            change()

    repeating = asyncio.ensure_future(repeat())
    yield
    repeating.cancel()


async def test_an_engine_that_makes_steps_does_not_hang_although_no_text_comes(harness: Harness) -> None:
    """An answer that is not streamed, and a page that waits for its grammar."""
    supervisor = harness.supervisor(stall=10)
    await supervisor.loaded()
    engine = harness.engine
    engine.script = never
    reader = asyncio.ensure_future(text(supervisor, page()))

    def step() -> None:
        engine.steps += 1

    async with regularly(step, 9):
        await asyncio.sleep(1000)
    assert not reader.done()
    last = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match="stopped making progress"):
        await reader
    assert asyncio.get_running_loop().time() - last == pytest.approx(10, abs=2)


async def test_an_engine_that_computes_has_longer_for_a_step(harness: Harness) -> None:
    """Large pages are encoded in one step. It does not have forever."""
    supervisor = harness.supervisor(stall=10)
    await supervisor.loaded()
    engine = harness.engine
    engine.script, engine.cpu = never, 5.0
    began = asyncio.get_running_loop().time()

    def compute() -> None:
        engine.cpu = (engine.cpu or 0) + 0.2

    async with regularly(compute, 0.5):
        reader = asyncio.ensure_future(text(supervisor, page()))
        await asyncio.sleep(98)
        assert not reader.done()
        with pytest.raises(Unavailable, match="stopped making progress"):
            await reader
    assert asyncio.get_running_loop().time() - began == pytest.approx(10 * 10, abs=2)


async def test_an_engine_that_stops_computing_hangs(harness: Harness) -> None:
    supervisor = harness.supervisor(stall=10)
    await supervisor.loaded()
    engine = harness.engine
    engine.script, engine.cpu = never, 5.0
    reader = asyncio.ensure_future(text(supervisor, page()))
    await asyncio.sleep(9)
    engine.cpu += 0.01  # of a thread that has nothing to do with the model
    began = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match="stopped making progress"):
        await reader
    assert asyncio.get_running_loop().time() - began == pytest.approx(1, abs=0.5)


async def test_an_engine_that_has_not_got_its_pages_yet_does_not_hang(harness: Harness) -> None:
    """They are prepared in the server's process, one after the other. This does not take forever either."""
    supervisor = harness.supervisor(stall=10)
    await supervisor.loaded()
    harness.engine.script, harness.engine.prepares = never, True
    began = asyncio.get_running_loop().time()
    reader = asyncio.ensure_future(text(supervisor, page()))
    await asyncio.sleep(98)
    assert not reader.done()
    with pytest.raises(Unavailable, match="stopped making progress"):
        await reader
    assert asyncio.get_running_loop().time() - began == pytest.approx(10 * 10, abs=2)


async def test_time_in_which_nobody_looked_is_no_silence_of_the_engine(harness: Harness) -> None:
    """The server was stopped, or its event loop was busy: the engine's steps could not be noticed."""
    supervisor = harness.supervisor(stall=10)
    await supervisor.loaded()
    harness.engine.script = never
    reader = asyncio.ensure_future(text(supervisor, page()))
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.clock.now += 3600
    await asyncio.sleep(1)
    assert not reader.done()
    harness.engine.steps += 1
    await asyncio.sleep(9)
    assert not reader.done()
    reader.cancel()
    await asyncio.wait({reader})


async def test_waiting_is_not_hanging(harness: Harness) -> None:
    """Waiting for work, behind other pages, or for a client that does not read."""
    supervisor = harness.supervisor(stall=0.1)
    await supervisor.loaded()
    await asyncio.sleep(0.2)
    harness.engine.script = lambda number, each: (endless if number == 0 else never)(number, each)
    busy = asyncio.ensure_future(text(supervisor, page(0)))
    await until(lambda: harness.engine.running == 1)
    waiting = asyncio.ensure_future(text(supervisor, page(1)))
    await asyncio.sleep(0.25)
    assert supervisor.unavailable() is None
    for reader in (waiting, busy):
        reader.cancel()
    await asyncio.wait({waiting, busy})
    harness.engine.script = endless
    slow = supervisor.read(page(2))
    await anext(slow)
    await asyncio.sleep(0.25)
    assert (await anext(slow)).text == "on "
    await slow.aclose()
    assert len(harness.engines) == 1


async def test_an_engine_that_does_not_end_is_given_up(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.engine.may_end.clear()
    harness.engine.crash()
    await harness.ready(2)


async def test_a_first_load_that_fails_is_not_tried_again(harness: Harness) -> None:
    harness.plan = lambda _: FakeRestartableEngine(error=RuntimeError("no such model"))
    supervisor = harness.supervisor()
    with pytest.raises(RuntimeError, match="no such model"):
        await supervisor.loaded()
    assert "could not be loaded" in (supervisor.unavailable() or "")
    await asyncio.sleep(5 * QUICK.backoff)
    assert (len(harness.engines), supervisor.restarts) == (1, 0)


async def test_a_load_that_is_cancelled_counts_as_failed(harness: Harness) -> None:
    """The first load is not tried again, a later one is. Nobody waits for ever."""
    harness.plan = lambda number: FakeRestartableEngine(error=asyncio.CancelledError() if number == 1 else None)
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.engine.crash()
    await harness.ready(3)
    harness.plan = lambda _: FakeRestartableEngine(error=asyncio.CancelledError())
    with pytest.raises(RuntimeError, match="was cancelled"):
        await asyncio.wait_for(harness.supervisor().loaded(), 5)


async def test_cancelling_the_wait_for_the_first_load_does_not_cancel_the_load(harness: Harness) -> None:
    harness.plan = lambda _: loading()
    supervisor = harness.supervisor()
    waits = asyncio.ensure_future(supervisor.loaded())
    await until(lambda: len(harness.engines) == 1)
    waits.cancel()
    await asyncio.wait({waits})
    harness.engine.may_load.set()
    await harness.ready()
    assert await text(supervisor, page()) == "Hello"


async def test_a_closed_supervisor_does_not_start(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.close()
    supervisor.start()
    with pytest.raises(Unavailable, match="shutting down"):
        await supervisor.loaded()
    assert not harness.engines


async def test_it_can_be_killed_twice_while_it_closes(harness: Harness) -> None:
    harness.plan = lambda _: loading()
    supervisor = harness.supervisor()
    supervisor.start()
    await until(lambda: len(harness.engines) == 1)
    await asyncio.wait_for(asyncio.gather(supervisor.close(), supervisor.kill(), supervisor.kill()), 5)
    assert (harness.engine.closes, harness.engine.kills) == (1, 2)
    assert supervisor.restarts == 0


async def test_a_crash_while_the_next_engine_loads(harness: Harness) -> None:
    """It counts as a failed load, and pages are refused meanwhile."""
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.plan = lambda number: loading() if number == 1 else FakeRestartableEngine(says("Hello"))
    harness.engine.crash()
    await until(lambda: len(harness.engines) == 2)
    with pytest.raises(Unavailable, match="being restarted"):
        await text(supervisor, page())
    harness.engine.error = RuntimeError("killed")
    harness.engine.may_load.set()
    await harness.ready(3)
    assert supervisor.restarts == 2
    assert harness.engines[1].kills == 1


async def test_later_loads_are_tried_again_with_exponential_backoff(harness: Harness) -> None:
    harness.plan = lambda number: FakeRestartableEngine(error=RuntimeError("out of memory") if 0 < number < 5 else None)
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.engine.crash()
    await harness.ready(6)
    waits = [after - before for before, after in pairwise(harness.times[1:])]
    assert waits == pytest.approx([0.02, 0.04, 0.04, 0.04])
    assert supervisor.restarts == 5
    assert [engine.kills for engine in harness.engines] == [1, 1, 1, 1, 1, 0]


async def test_an_engine_that_stayed_healthy_resets_the_backoff(harness: Harness) -> None:
    supervisor = harness.supervisor(timing=replace(QUICK, backoff=0.05, longest_backoff=60, healthy=0.0))
    await supervisor.loaded()
    for number in range(1, 6):
        crashed = asyncio.get_running_loop().time()
        harness.engine.crash()
        await harness.ready(number + 1)
        assert harness.times[-1] - crashed == pytest.approx(0.05, abs=QUICK.poll)


async def test_after_too_many_crashes_no_engine_is_started(harness: Harness) -> None:
    supervisor = harness.supervisor(most=2)
    await supervisor.loaded()
    end = asyncio.ensure_future(supervisor.given_up())
    for number in (1, 2):
        harness.engine.crash()
        await harness.ready(number + 1)
        assert not end.done()
    await crash_with(harness, supervisor, page())
    await asyncio.wait_for(end, 5)
    assert "3 times" in (supervisor.unavailable() or "")
    with pytest.raises(Unavailable, match="not restarted again") as caught:
        await text(supervisor, page())
    assert caught.value.retry_after == LONGEST_RETRY_AFTER
    assert (len(harness.engines), supervisor.restarts) == (3, 2)


async def test_crashes_outside_the_window_do_not_count(harness: Harness) -> None:
    supervisor = harness.supervisor(most=1, timing=replace(QUICK, window=0.05))
    await supervisor.loaded()
    for number in range(1, 4):
        await asyncio.sleep(0.06)
        harness.engine.crash()
        await harness.ready(number + 1)


async def test_a_page_that_crashes_the_engine_twice_is_refused(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    poison, others = page(66), [page(number) for number in range(4)]
    await crash_with(harness, supervisor, poison, others[0], others[1])
    await harness.ready(2)
    assert await text(supervisor, others[0]) == "Hello"  # it is no suspect any more
    await crash_with(harness, supervisor, page(66), others[0], others[2])
    await harness.ready(3)
    with pytest.raises(InvalidRequest) as caught:
        await text(supervisor, page(66))
    assert caught.value.code == "poison_page"
    assert len(harness.engine.pages) == 0
    for other in (*others, page(66, prompt="Another."), page(66, max_tokens=5)):
        assert await text(supervisor, other) == "Hello"


POISON = 600


class CrashingEngine(FakeRestartableEngine):
    """An engine that crashes, a little later, on pages whose numbers are POISON and above."""

    def __init__(self) -> None:
        super().__init__(self._read)
        self.together = 0
        """The most pages that it had at a time."""

    async def _read(self, _: int, each: Page) -> AsyncGenerator[PageDelta]:
        self.together = max(self.together, self.running)
        yield delta("a")
        await asyncio.sleep(0.01)
        if number_of(each) >= POISON:
            self.crash()
            await asyncio.Event().wait()
        await asyncio.sleep(0.03)
        yield delta("b", finish="stop")


def number_of(each: Page) -> int:
    return int(each.decoding.seed or 0)


async def read_with_retries(supervisor: Supervisor, number: int) -> str:
    """Try a page again until it is read or refused, as the SDK does. The text, or the code of the error."""
    while True:
        await until(lambda: supervisor.unavailable() is None, 30)
        try:
            return await text(supervisor, page(number % 256, seed=number))
        except Unavailable:
            continue
        except InvalidRequest as refusal:
            return str(refusal.code)


@pytest.mark.parametrize(("poisons", "crashes"), [(1, 2), (3, 4)])
async def test_only_pages_that_crash_the_engine_are_refused(harness: Harness, poisons: int, crashes: int) -> None:
    """Of 20 pages in flight, with one crash more than there are poison pages, which is the documented bound."""
    harness.plan = lambda _: CrashingEngine()
    supervisor = harness.supervisor()
    await supervisor.loaded()
    innocent, poison = range(1, 21 - poisons), range(POISON, POISON + poisons)
    # The poison pages are in the middle: when their turn comes, some pages have been read and some have not.
    numbers = [*innocent[:8], *poison, *innocent[8:]]
    async with asyncio.timeout(60):
        results = dict(
            zip(numbers, await asyncio.gather(*(read_with_retries(supervisor, each) for each in numbers)), strict=True)
        )
    assert {number for number, result in results.items() if result == "poison_page"} == set(poison)
    assert {results[number] for number in innocent} == {"ab"}
    assert supervisor.restarts == crashes
    first, *later = [engine.together for engine in harness.engines if isinstance(engine, CrashingEngine)]
    assert (first, max(later)) == (20, 1)


async def make_suspects(harness: Harness, supervisor: Supervisor, *pages: Page) -> None:
    """Crash the engine while it reads these pages, and wait for the next engine."""
    await crash_with(harness, supervisor, *pages)
    await harness.ready(len(harness.engines) + 1)
    harness.engine.script = endless


async def reading(harness: Harness, supervisor: Supervisor, each: Page) -> asyncio.Future[str]:
    """Begin to read a page, and wait until the engine has it."""
    before = len(harness.engine.pages)
    reader = asyncio.ensure_future(text(supervisor, each))
    await until(lambda: len(harness.engine.pages) == before + 1)
    return reader


async def waiting(harness: Harness, supervisor: Supervisor, each: Page) -> asyncio.Future[str]:
    """Begin to read a page that is kept from the engine."""
    before = len(harness.engine.pages)
    reader = asyncio.ensure_future(text(supervisor, each))
    await asyncio.sleep(0.03)
    assert (len(harness.engine.pages), reader.done()) == (before, False)
    return reader


async def test_suspects_are_read_one_at_a_time_and_other_pages_do_not_wait(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    await make_suspects(harness, supervisor, *map(page, range(4)))
    first = await reading(harness, supervisor, page(0))
    line = [await waiting(harness, supervisor, page(number)) for number in (1, 2, 1, 3)]
    harness.engine.script = says("Hello")
    assert await text(supervisor, page(9)) == "Hello"
    harness.engine.script = endless
    other = await reading(harness, supervisor, page(8))
    line[0].cancel()
    first.cancel()
    await until(lambda: len(harness.engine.pages) == 4)  # page 2: page 1, which came before it, was cancelled
    assert [float(each.image.global_view[0, 0, 0]) for each in harness.engine.pages] == [0, 9, 8, 2]
    await asyncio.sleep(0.03)
    assert len(harness.engine.pages) == 4
    harness.engine.script = says("Hello")
    line[1].cancel()
    assert await asyncio.gather(*line[2:]) == ["Hello", "Hello"]
    other.cancel()
    await asyncio.wait({first, other, *line})


async def test_requests_for_the_same_suspect_all_go_on_when_it_has_been_read(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    await make_suspects(harness, supervisor, page(0))
    may_end = asyncio.Event()

    async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
        if number == 0:
            await may_end.wait()
        else:
            await until(lambda: len(harness.engine.pages) == 4)  # all at once
        yield delta("Hello", finish="stop")

    harness.engine.script = script
    first = await reading(harness, supervisor, page(0))
    line = [await waiting(harness, supervisor, page(0)) for _ in range(3)]
    may_end.set()
    assert await asyncio.gather(first, *line) == 4 * ["Hello"]


async def test_a_crash_in_the_turn_of_a_suspect_counts_for_that_suspect_only(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    await make_suspects(harness, supervisor, page(0), page(1))
    pages = [await reading(harness, supervisor, page(0)), await waiting(harness, supervisor, page(1))]
    pages.append(await reading(harness, supervisor, page(2)))
    harness.engine.crash()
    for each in pages:
        with pytest.raises(Unavailable):  # also the page that only waits: at once, not after the restart
            await each
    await harness.ready(3)
    with pytest.raises(InvalidRequest):
        await text(supervisor, page(0))
    for number in (1, 2):
        assert await text(supervisor, page(number)) == "Hello"
    assert supervisor.restarts == 2


async def read_and_end(harness: Harness, supervisor: Supervisor, *, hang: bool, others: int = 0) -> None:
    """Read page 0, and as many pages that are not known yet. The engine ends meanwhile."""
    engine, engines = harness.engine, len(harness.engines)
    engine.script = never
    fresh = [page(10 * engines + number + 1) for number in range(others)]
    readers = [asyncio.ensure_future(text(supervisor, each)) for each in (page(0), *fresh)]
    await until(lambda: engine.running == 1 + others)
    if not hang:
        engine.crash()
    for reader in readers:
        with pytest.raises(Unavailable):
            await reader
    await harness.ready(engines + 1)


@pytest.mark.parametrize(
    ("by_itself", "hang", "others", "ends"),
    [
        pytest.param(True, False, 0, 2, id="crashes"),
        pytest.param(True, True, 0, 2, id="hangs on this page alone"),
        pytest.param(True, True, 3, 4, id="hangs on many pages"),
        pytest.param(False, False, 0, 4, id="killed from outside"),
        pytest.param(False, True, 0, 4, id="stopped from outside"),
    ],
)
async def test_trouble_of_the_machine_is_weak_evidence_against_a_page(
    harness: Harness, by_itself: bool, hang: bool, others: int, ends: int
) -> None:
    """The page is refused after so many engines, in case that it causes the trouble after all."""

    def plan(_: int) -> FakeRestartableEngine:
        engine = FakeRestartableEngine(says("Hello"))
        engine.by_itself = by_itself
        return engine

    harness.plan = plan
    supervisor = harness.supervisor(stall=5)
    await supervisor.loaded()
    for _ in range(ends):
        await read_and_end(harness, supervisor, hang=hang, others=others)
    with pytest.raises(InvalidRequest) as caught:
        await text(supervisor, page(0))
    assert caught.value.code == "poison_page"
    assert await text(supervisor, page(255)) == "Hello"


async def test_a_page_that_is_read_between_two_kills_is_no_suspect_any_more(harness: Harness) -> None:
    harness.plan = lambda _: FakeRestartableEngine(says("Hello"))
    supervisor = harness.supervisor()
    await supervisor.loaded()
    for _ in range(6):
        harness.engine.by_itself = False
        await read_and_end(harness, supervisor, hang=False)
        assert await text(supervisor, page(0)) == "Hello"


async def test_an_engine_that_does_not_tell_why_it_crashed_is_replaced_all_the_same(harness: Harness) -> None:
    class Silent(FakeRestartableEngine):
        async def failed_by_itself(self) -> bool:
            raise RuntimeError("no such process")

    harness.plan = lambda _: Silent(says("Hello"))
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.engine.crash()
    await harness.ready(2)
    assert await text(supervisor, page()) == "Hello"


async def test_waiting_for_a_turn_is_not_hanging(harness: Harness) -> None:
    """Even if the page whose turn it is makes no progress, since its client does not ask for more."""
    supervisor = harness.supervisor(stall=0.1)
    await supervisor.loaded()
    await make_suspects(harness, supervisor, page(0), page(1))
    slow = supervisor.read(page(0))
    await anext(slow)
    line = await waiting(harness, supervisor, page(1))
    await asyncio.sleep(0.25)
    assert supervisor.unavailable() is None
    await slow.aclose()
    harness.engine.script = says("Hello")
    assert await line == "Hello"
    assert len(harness.engines) == 2


async def test_closing_ends_pages_that_wait_for_their_turn(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    await make_suspects(harness, supervisor, page(0), page(1))
    pages = [await reading(harness, supervisor, page(0)), await waiting(harness, supervisor, page(1))]
    await supervisor.close()
    for each in pages:
        with pytest.raises(Unavailable, match="shutting down"):
            await each


async def test_suspects_are_forgotten_after_the_window(harness: Harness) -> None:
    """Two pages that were suspects are read at the same time again."""
    supervisor = harness.supervisor(timing=replace(QUICK, window=0.3))
    await supervisor.loaded()
    await make_suspects(harness, supervisor, page(0), page(1))
    await asyncio.sleep(0.3)
    readers = [await reading(harness, supervisor, page(number)) for number in (0, 1)]
    for each in readers:
        each.cancel()
    await asyncio.wait(readers)


async def test_a_page_that_is_slow_to_leave_has_no_part_in_later_crashes(harness: Harness) -> None:
    """They are not counted for it, and it keeps no suspect from its turn."""
    supervisor = harness.supervisor()
    await supervisor.loaded()
    await make_suspects(harness, supervisor, page(1), page(2))
    slow = supervisor.read(page(1))
    await anext(slow)
    for number in (2, 3):
        await crash_with(harness, supervisor, page(10 + number))
        await harness.ready(number + 1)
    harness.engine.script = says("Hello")
    assert await asyncio.wait_for(text(supervisor, page(2)), 5) == "Hello"
    with pytest.raises(Unavailable):
        await anext(slow)


async def test_a_page_of_an_old_engine_does_not_end_the_new_engine(harness: Harness) -> None:
    """Its abort takes long, and fails when the new engine is ready."""
    supervisor = harness.supervisor(stall=0.1)
    await supervisor.loaded()

    async def clings(_: int, __: Page) -> AsyncGenerator[PageDelta]:
        yield delta("on ")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await until(lambda: len(harness.engines) == 2 and supervisor.unavailable() is None)
            await asyncio.sleep(0.2)
            raise Unavailable("dead") from None

    harness.engine.script = clings
    reader = await reading(harness, supervisor, page())
    harness.engine.crash()
    with pytest.raises(Unavailable, match="restarted"):
        await reader
    await asyncio.sleep(3 * QUICK.poll)
    assert supervisor.unavailable() is None
    assert len(harness.engines) == 2


async def test_pages_are_not_hashed_until_an_engine_has_crashed(harness: Harness) -> None:
    class Untouchable:
        """A prepared image that must not be looked at."""

        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"the image was hashed: {name}")

    supervisor = harness.supervisor()
    await supervisor.loaded()
    untouchable: Any = Untouchable()
    assert await text(supervisor, Page(untouchable, "Free OCR.", Decoding())) == "Hello"


async def test_options_are_checked_without_an_engine(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.check(Decoding(n=2))
    assert harness.check.checked == [Decoding(n=2)]
    assert not harness.engines
    await supervisor.close()
    assert harness.check.closed


async def test_closing_while_pages_are_read(harness: Harness) -> None:
    supervisor = harness.supervisor()
    await supervisor.loaded()
    harness.engine.script = never
    reader = asyncio.ensure_future(text(supervisor, page()))
    await until(lambda: harness.engine.running == 1)
    await asyncio.gather(supervisor.close(), supervisor.close())
    with pytest.raises(Unavailable, match="shutting down"):
        await reader
    assert (harness.engine.closes, harness.engine.kills) == (1, 0)
    await supervisor.kill()
    assert harness.engine.kills == 1


@pytest.mark.parametrize("when", ["first load", "ending", "backoff", "later load"])
async def test_closing_in_the_middle_of_a_restart(harness: Harness, when: str) -> None:
    harness.plan = lambda number: FakeRestartableEngine(says("Hello"))
    supervisor = harness.supervisor(timing=replace(QUICK, backoff=60 if when == "backoff" else 0.01, kill=60))
    if when == "first load":
        harness.plan = lambda _: loading()
        loaded = asyncio.ensure_future(supervisor.loaded())
        await until(lambda: len(harness.engines) == 1)
        assert "being loaded" in (supervisor.unavailable() or "")
        await supervisor.close()
        with pytest.raises(asyncio.CancelledError):
            await loaded
    else:
        await supervisor.loaded()
        harness.plan = lambda _: loading()
        if when == "ending":
            harness.engine.may_end.clear()
        harness.engine.crash()
        await until(lambda: harness.engines[0].kills == 1)
        if when == "later load":
            await until(lambda: len(harness.engines) == 2)
        await supervisor.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await text(supervisor, page())


def loading() -> FakeRestartableEngine:
    """An engine that does not finish loading."""
    engine = FakeRestartableEngine()
    engine.may_load.clear()
    return engine


async def test_a_factory_that_fails_is_an_engine_that_fails_to_load(harness: Harness) -> None:
    def plan(number: int) -> FakeRestartableEngine:
        harness.engines.append(FakeRestartableEngine())  # counted, although nobody gets it
        harness.engine.kills = 1
        raise RuntimeError("no more processes")

    supervisor = harness.supervisor()
    await supervisor.loaded()
    sound, harness.plan = harness.plan, plan
    harness.engine.crash()
    await until(lambda: len(harness.engines) == 3)
    harness.plan = sound
    await until(lambda: supervisor.unavailable() is None)
    assert await text(supervisor, page()) == "Hello"


def test_the_oldest_suspects_are_forgotten_first() -> None:
    suspects = Suspects(seconds=10, most=2)
    assert not suspects.any(0)
    suspects.record_crash({b"a"}, 0, Evidence.STRONG)
    suspects.record_crash({b"b"}, 5, Evidence.WEAK)
    suspects.record_crash({b"a"}, 6, Evidence.WEAK)
    assert [suspects.evidence(key) for key in (b"a", b"b", b"c")] == [3, 1, 0]
    suspects.record_crash({b"c"}, 7, Evidence.WEAK)  # one more than are remembered
    assert [suspects.evidence(key) for key in (b"a", b"b", b"c")] == [3, 0, 1]
    suspects.clear(b"c")
    suspects.clear(b"c")
    assert suspects.any(15.9)
    assert not suspects.any(16)
    assert suspects.evidence(b"a") == 0


def test_content_keys() -> None:
    """Keys are equal only if the engine would be asked the same."""
    image = prepared()
    pages = [
        page(),
        page(1),
        page(prompt="Another."),
        page(max_tokens=1),
        Page(image, "Free OCR.", Decoding()),
        Page(replace(image, tiles=torch.zeros(1, 2, 2, 3)), "Free OCR.", Decoding()),
        Page(replace(image, tiles=torch.zeros(2, 1, 2, 3)), "Free OCR.", Decoding()),
    ]
    assert len({content_key(each) for each in pages}) == len(pages)
    assert content_key(page(7, max_tokens=3)) == content_key(page(7, max_tokens=3))
