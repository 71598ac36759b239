"""Engines that die, hang and won't load, and pages that kill them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ocr_server.engine.quarantine import Suspects, content_key
from ocr_server.engine.supervisor import Supervisor, Timing
from ocr_server.errors import EngineFailure, InvalidRequest, Unavailable
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta
from tests.ocr_server.conftest import FakeEngine, Script, delta, endless, fails, never, prepared, says, until

QUICK = Timing(poll=0.01, backoff=0.01, longest_backoff=0.04, healthy=60, kill=0.2)


class Mortal(FakeEngine):
    """One of the engines that are watched."""

    def __init__(self, script: Script | None = None, error: BaseException | None = None) -> None:
        super().__init__(script)
        self.error = error
        self.kills = 0
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def loaded(self) -> None:
        self.start()
        await self.may_load.wait()
        if self.error is not None:
            raise self.error

    async def kill(self) -> None:
        self.kills += 1
        await self.may_end.wait()

    def die(self) -> None:
        self.reason = "dead"


class House:
    """Supervisors, the engines they made, and when."""

    def __init__(self) -> None:
        self.engines: list[Mortal] = []
        self.times: list[float] = []
        self.supervisors: list[Supervisor] = []
        self.checked: list[Decoding] = []
        self.plan: Callable[[int], Mortal] = lambda _: Mortal(says("Hello"))
        """The n-th engine, from 0."""

    @property
    def engine(self) -> Mortal:
        return self.engines[-1]

    def make(self) -> Mortal:
        self.times.append(asyncio.get_running_loop().time())
        self.engines.append(self.plan(len(self.engines)))
        return self.engine

    def supervisor(self, *, stall: float = 60, most: int = 100, timing: Timing = QUICK) -> Supervisor:
        supervisor = Supervisor(
            self.make, check=self.checked.append, stall_timeout=stall, most_restarts=most, timing=timing
        )
        self.supervisors.append(supervisor)
        return supervisor

    async def ready(self, engines: int = 1) -> None:
        """Wait until that many have been made and the last of them reads."""
        await until(lambda: len(self.engines) == engines and self.supervisors[0].unavailable() is None)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    before = asyncio.all_tasks()
    house = House()
    yield house
    for supervisor in house.supervisors:
        await supervisor.close()
        assert supervisor.unavailable() is not None
    assert all(engine.closes or engine.kills for engine in house.engines)
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    assert not left, "a task was left behind"


def page(number: int = 0, prompt: str = "Free OCR.", **params: int) -> Page:
    """Pages of different numbers are different pictures."""
    image = replace(prepared(), global_view=torch.full((4, 4, 3), number, dtype=torch.uint8))
    return Page(image, prompt, Decoding(**params))


async def text(supervisor: Supervisor, each: Page) -> str:
    return "".join([delta.text async for delta in supervisor.read(each)])


async def kill_with(house: House, supervisor: Supervisor, *pages: Page) -> None:
    """Let the engine die while it reads these."""
    engine = house.engine
    engine.script = endless
    readers = [asyncio.ensure_future(text(supervisor, each)) for each in pages]
    await until(lambda: engine.running == len(pages))
    engine.die()
    for reader in readers:
        with pytest.raises(Unavailable):
            await reader


async def test_it_reads_as_its_engine_does(house: House) -> None:
    supervisor = house.supervisor()
    with pytest.raises(Unavailable, match="not been started"):
        await text(supervisor, page())
    await supervisor.loaded()
    assert supervisor.unavailable() is None
    assert await text(supervisor, page()) == "Hello"
    house.engine.script = fails(EngineFailure("This page only."))
    with pytest.raises(EngineFailure):
        await text(supervisor, page())
    house.engine.script = fails(TimeoutError("the page's own"))
    with pytest.raises(TimeoutError, match="own"):
        await text(supervisor, page())
    await asyncio.sleep(3 * QUICK.poll)
    assert (supervisor.restarts, len(house.engines)) == (0, 1)


async def test_closing_a_page_aborts_it(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    house.engine.script = endless
    deltas = supervisor.read(page())
    await anext(deltas)
    await deltas.aclose()
    assert house.engine.aborted == [0]


@pytest.mark.parametrize("script", [never, endless], ids=["before the first piece", "between pieces"])
async def test_a_death_ends_all_pages_and_brings_a_new_engine(house: House, script: Script) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    first = house.engine
    first.script = script
    first.may_end.clear()
    readers = [asyncio.ensure_future(text(supervisor, page(number))) for number in range(3)]
    await until(lambda: first.running == 3)
    first.die()
    for reader in readers:
        with pytest.raises(Unavailable, match="being restarted") as caught:
            await reader
        assert caught.value.retry_after is not None
        assert 1 <= caught.value.retry_after <= 60
    assert "being restarted" in (supervisor.unavailable() or "")
    with pytest.raises(Unavailable, match="being restarted"):
        await text(supervisor, page(9))
    await until(lambda: first.kills == 1)
    assert len(house.engines) == 1, "the next is built only when this one has ended"
    first.may_end.set()
    await house.ready(2)
    assert supervisor.restarts == 1
    assert await text(supervisor, page(0)) == "Hello"


async def test_a_death_that_a_page_reports_counts_at_once(house: House) -> None:
    supervisor = house.supervisor(timing=replace(QUICK, poll=60))
    await supervisor.loaded()
    house.engine.script = fails(Unavailable("dead"), "begun")
    deltas = supervisor.read(page())
    assert (await anext(deltas)).text == "begun"
    with pytest.raises(Unavailable, match="being restarted"):
        await anext(deltas)
    assert supervisor.unavailable() is not None
    await house.ready(2)


async def test_any_error_of_a_dead_engine_can_be_tried_again(house: House) -> None:
    supervisor = house.supervisor(timing=replace(QUICK, poll=60))
    await supervisor.loaded()
    house.engine.script = fails(RuntimeError("a socket is closed"))
    house.engine.die()
    with pytest.raises(Unavailable, match="being restarted"):
        await text(supervisor, page())
    await house.ready(2)


async def test_an_engine_that_hangs_is_killed(house: House) -> None:
    supervisor = house.supervisor(stall=0.1)
    await supervisor.loaded()
    house.engine.script = never
    with pytest.raises(Unavailable, match="no sign of life"):
        await text(supervisor, page())
    await house.ready(2)
    assert house.engines[0].kills == 1


async def test_waiting_is_no_hanging(house: House) -> None:
    """Neither for work, nor behind other pages, nor for a client that does not read."""
    supervisor = house.supervisor(stall=0.1)
    await supervisor.loaded()
    await asyncio.sleep(0.2)
    house.engine.script = lambda number, each: (endless if number == 0 else never)(number, each)
    busy = asyncio.ensure_future(text(supervisor, page(0)))
    await until(lambda: house.engine.running == 1)
    waiting = asyncio.ensure_future(text(supervisor, page(1)))
    await asyncio.sleep(0.25)
    assert supervisor.unavailable() is None
    for reader in (waiting, busy):
        reader.cancel()
    await asyncio.wait({waiting, busy})
    house.engine.script = endless
    slow = supervisor.read(page(2))
    await anext(slow)
    await asyncio.sleep(0.25)
    assert (await anext(slow)).text == "on "
    await slow.aclose()
    assert len(house.engines) == 1


async def test_an_engine_that_won_t_end_is_left(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    house.engine.may_end.clear()
    house.engine.die()
    await house.ready(2)


async def test_the_first_load_fails_for_good(house: House) -> None:
    house.plan = lambda _: Mortal(error=RuntimeError("no such model"))
    supervisor = house.supervisor()
    with pytest.raises(RuntimeError, match="no such model"):
        await supervisor.loaded()
    assert "could not be loaded" in (supervisor.unavailable() or "")
    await asyncio.sleep(5 * QUICK.backoff)
    assert (len(house.engines), supervisor.restarts) == (1, 0)


async def test_a_load_that_is_broken_off_is_a_load_that_failed(house: House) -> None:
    """The first for good, a later one to be tried again: nobody waits for ever."""
    house.plan = lambda number: Mortal(error=asyncio.CancelledError() if number == 1 else None)
    supervisor = house.supervisor()
    await supervisor.loaded()
    house.engine.die()
    await house.ready(3)
    house.plan = lambda _: Mortal(error=asyncio.CancelledError())
    with pytest.raises(RuntimeError, match="broke off"):
        await asyncio.wait_for(house.supervisor().loaded(), 5)


async def test_giving_up_waiting_for_the_first_load_leaves_it_loading(house: House) -> None:
    house.plan = lambda _: loading()
    supervisor = house.supervisor()
    waits = asyncio.ensure_future(supervisor.loaded())
    await until(lambda: len(house.engines) == 1)
    waits.cancel()
    await asyncio.wait({waits})
    house.engine.may_load.set()
    await house.ready()
    assert await text(supervisor, page()) == "Hello"


async def test_what_is_closed_does_not_start(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.close()
    supervisor.start()
    with pytest.raises(Unavailable, match="shutting down"):
        await supervisor.loaded()
    assert not house.engines


async def test_killed_twice_while_it_closes(house: House) -> None:
    house.plan = lambda _: loading()
    supervisor = house.supervisor()
    supervisor.start()
    await until(lambda: len(house.engines) == 1)
    await asyncio.wait_for(asyncio.gather(supervisor.close(), supervisor.kill(), supervisor.kill()), 5)
    assert (house.engine.closes, house.engine.kills) == (1, 2)
    assert supervisor.restarts == 0


async def test_a_death_while_the_next_engine_loads(house: House) -> None:
    """It counts as one that could not be loaded, and pages are refused all the time."""
    supervisor = house.supervisor()
    await supervisor.loaded()
    house.plan = lambda number: loading() if number == 1 else Mortal(says("Hello"))
    house.engine.die()
    await until(lambda: len(house.engines) == 2)
    with pytest.raises(Unavailable, match="being restarted"):
        await text(supervisor, page())
    house.engine.error = RuntimeError("killed")
    house.engine.may_load.set()
    await house.ready(3)
    assert supervisor.restarts == 2
    assert house.engines[1].kills == 1


async def test_later_loads_are_tried_again_ever_more_slowly(house: House) -> None:
    house.plan = lambda number: Mortal(error=RuntimeError("out of memory") if 0 < number < 5 else None)
    supervisor = house.supervisor()
    await supervisor.loaded()
    house.engine.die()
    await house.ready(6)
    waits = [after - before for before, after in pairwise(house.times[1:])]
    for wait, least in zip(waits, (0.02, 0.04, 0.04, 0.04), strict=True):
        assert least <= wait < least + 0.1
    assert supervisor.restarts == 5
    assert [engine.kills for engine in house.engines] == [1, 1, 1, 1, 1, 0]


async def test_a_healthy_life_begins_the_backoff_anew(house: House) -> None:
    supervisor = house.supervisor(timing=replace(QUICK, backoff=0.05, longest_backoff=60, healthy=0.0))
    await supervisor.loaded()
    begun = asyncio.get_running_loop().time()
    for number in range(1, 6):
        house.engine.die()
        await house.ready(number + 1)
    assert asyncio.get_running_loop().time() - begun < 1  # doubled each time, it would be 1.55 s


async def test_too_many_deaths_are_the_end(house: House) -> None:
    supervisor = house.supervisor(most=2)
    await supervisor.loaded()
    end = asyncio.ensure_future(supervisor.given_up())
    for number in (1, 2):
        house.engine.die()
        await house.ready(number + 1)
        assert not end.done()
    await kill_with(house, supervisor, page())
    await asyncio.wait_for(end, 5)
    assert "3 times" in (supervisor.unavailable() or "")
    with pytest.raises(Unavailable, match="not restarted any more") as caught:
        await text(supervisor, page())
    assert caught.value.retry_after
    assert (len(house.engines), supervisor.restarts) == (3, 2)


async def test_deaths_of_long_ago_do_not_count(house: House) -> None:
    supervisor = house.supervisor(most=1, timing=replace(QUICK, window=0.05))
    await supervisor.loaded()
    for number in range(1, 4):
        await asyncio.sleep(0.06)
        house.engine.die()
        await house.ready(number + 1)


async def test_a_page_that_kills_twice_is_refused(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    poison, others = page(66), [page(number) for number in range(4)]
    await kill_with(house, supervisor, poison, others[0], others[1])
    await house.ready(2)
    assert await text(supervisor, others[0]) == "Hello"  # which clears it
    await kill_with(house, supervisor, page(66), others[0], others[2])
    await house.ready(3)
    with pytest.raises(InvalidRequest) as caught:
        await text(supervisor, page(66))
    assert caught.value.code == "poison_page"
    assert len(house.engine.pages) == 0
    for other in (*others, page(66, prompt="Another."), page(66, max_tokens=5)):
        assert await text(supervisor, other) == "Hello"


POISON = 600


class Poisoned(Mortal):
    """An engine that dies of pages whose numbers are POISON and above, but not at once."""

    def __init__(self) -> None:
        super().__init__(self._read)
        self.together = 0
        """Most pages that it had at a time."""

    async def _read(self, _: int, each: Page) -> AsyncGenerator[PageDelta]:
        self.together = max(self.together, self.running)
        yield delta("a")
        await asyncio.sleep(0.01)
        if number_of(each) >= POISON:
            self.die()
            await asyncio.Event().wait()
        await asyncio.sleep(0.03)
        yield delta("b", finish="stop")


def number_of(each: Page) -> int:
    return int(each.decoding.seed or 0)


async def insists(supervisor: Supervisor, number: int) -> str:
    """Try a page again until it is read or refused, as the SDK does."""
    while True:
        await until(lambda: supervisor.unavailable() is None, 30)
        try:
            return await text(supervisor, page(number % 256, seed=number))
        except Unavailable:
            continue
        except InvalidRequest as refusal:
            return str(refusal.code)


@pytest.mark.parametrize(("poisons", "deaths"), [(1, 2), (3, 4)])
async def test_only_the_poison_is_refused(house: House, poisons: int, deaths: int) -> None:
    """Of 20 pages in flight; with one death more than there are killers, which is the bound."""
    house.plan = lambda _: Poisoned()
    supervisor = house.supervisor()
    await supervisor.loaded()
    innocent, poison = range(1, 21 - poisons), range(POISON, POISON + poisons)
    # The killers among the others, where the turn comes to them when some have been read and some have not.
    numbers = [*innocent[:8], *poison, *innocent[8:]]
    async with asyncio.timeout(60):
        results = dict(
            zip(numbers, await asyncio.gather(*(insists(supervisor, each) for each in numbers)), strict=True)
        )
    assert {number for number, result in results.items() if result == "poison_page"} == set(poison)
    assert {results[number] for number in innocent} == {"ab"}
    assert supervisor.restarts == deaths
    first, *later = [engine.together for engine in house.engines if isinstance(engine, Poisoned)]
    assert (first, max(later)) == (20, 1)


async def suspect(house: House, supervisor: Supervisor, *pages: Page) -> None:
    """Let these have been read at a death, and have the next engine ready."""
    await kill_with(house, supervisor, *pages)
    await house.ready(len(house.engines) + 1)
    house.engine.script = endless


async def reading(house: House, supervisor: Supervisor, each: Page) -> asyncio.Future[str]:
    """A page that has got into the engine."""
    before = len(house.engine.pages)
    reader = asyncio.ensure_future(text(supervisor, each))
    await until(lambda: len(house.engine.pages) == before + 1)
    return reader


async def waiting(house: House, supervisor: Supervisor, each: Page) -> asyncio.Future[str]:
    """A page that is kept from the engine."""
    before = len(house.engine.pages)
    reader = asyncio.ensure_future(text(supervisor, each))
    await asyncio.sleep(0.03)
    assert (len(house.engine.pages), reader.done()) == (before, False)
    return reader


async def test_suspects_wait_for_each_other_and_others_do_not(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    await suspect(house, supervisor, *map(page, range(4)))
    first = await reading(house, supervisor, page(0))
    line = [await waiting(house, supervisor, page(number)) for number in (1, 2, 1, 3)]
    house.engine.script = says("Hello")
    assert await text(supervisor, page(9)) == "Hello"
    house.engine.script = endless
    other = await reading(house, supervisor, page(8))
    line[0].cancel()
    first.cancel()
    await until(lambda: len(house.engine.pages) == 4)  # the 2: the 1 that came before it has gone
    assert [float(each.image.global_view[0, 0, 0]) for each in house.engine.pages] == [0, 9, 8, 2]
    await asyncio.sleep(0.03)
    assert len(house.engine.pages) == 4
    house.engine.script = says("Hello")
    line[1].cancel()
    assert await asyncio.gather(*line[2:]) == ["Hello", "Hello"]
    other.cancel()
    await asyncio.wait({first, other, *line})


async def test_the_same_page_twice_is_acquitted_once(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    await suspect(house, supervisor, page(0))
    may_end = asyncio.Event()

    async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
        if number == 0:
            await may_end.wait()
        else:
            await until(lambda: len(house.engine.pages) == 4)  # all at once
        yield delta("Hello", finish="stop")

    house.engine.script = script
    first = await reading(house, supervisor, page(0))
    line = [await waiting(house, supervisor, page(0)) for _ in range(3)]
    may_end.set()
    assert await asyncio.gather(first, *line) == 4 * ["Hello"]


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_a_death_in_a_suspect_s_turn_is_that_suspect_s_alone(house: House, how: str) -> None:
    supervisor = house.supervisor(stall=0.15)
    await supervisor.loaded()
    await suspect(house, supervisor, page(0), page(1))
    if how == "hangs":
        house.engine.script = never
    pages = [await reading(house, supervisor, page(0)), await waiting(house, supervisor, page(1))]
    pages.append(await reading(house, supervisor, page(2)))
    if how == "dies":
        house.engine.die()
    for each in pages:
        with pytest.raises(Unavailable):  # also who only waits: at once, not after the restart
            await each
    await house.ready(3)
    with pytest.raises(InvalidRequest):
        await text(supervisor, page(0))
    for number in (1, 2):
        assert await text(supervisor, page(number)) == "Hello"
    assert supervisor.restarts == 2


async def test_waiting_for_a_turn_is_no_hanging(house: House) -> None:
    """Though the one whose turn it is says nothing: its reader does not ask for more."""
    supervisor = house.supervisor(stall=0.1)
    await supervisor.loaded()
    await suspect(house, supervisor, page(0), page(1))
    slow = supervisor.read(page(0))
    await anext(slow)
    line = await waiting(house, supervisor, page(1))
    await asyncio.sleep(0.25)
    assert supervisor.unavailable() is None
    await slow.aclose()
    house.engine.script = says("Hello")
    assert await line == "Hello"
    assert len(house.engines) == 2


async def test_closing_ends_those_who_wait_for_their_turn(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    await suspect(house, supervisor, page(0), page(1))
    pages = [await reading(house, supervisor, page(0)), await waiting(house, supervisor, page(1))]
    await supervisor.close()
    for each in pages:
        with pytest.raises(Unavailable, match="shutting down"):
            await each


async def test_suspicion_ends(house: House) -> None:
    """After the window: two that were suspects are read at once again."""
    supervisor = house.supervisor(timing=replace(QUICK, window=0.3))
    await supervisor.loaded()
    await suspect(house, supervisor, page(0), page(1))
    await asyncio.sleep(0.3)
    readers = [await reading(house, supervisor, page(number)) for number in (0, 1)]
    for each in readers:
        each.cancel()
    await asyncio.wait(readers)


async def test_a_reader_that_is_slow_to_go_has_no_part_in_later_deaths(house: House) -> None:
    """It is not accused of them, and it keeps no suspect from its turn."""
    supervisor = house.supervisor()
    await supervisor.loaded()
    await suspect(house, supervisor, page(1), page(2))
    slow = supervisor.read(page(1))
    await anext(slow)
    for number in (2, 3):
        await kill_with(house, supervisor, page(10 + number))
        await house.ready(number + 1)
    house.engine.script = says("Hello")
    assert await asyncio.wait_for(text(supervisor, page(2)), 5) == "Hello"
    with pytest.raises(Unavailable):
        await anext(slow)


async def test_an_old_engine_s_page_does_not_end_the_new_engine(house: House) -> None:
    """It takes long to abort, and fails at it when the new engine is there."""
    supervisor = house.supervisor(stall=0.1)
    await supervisor.loaded()

    async def clings(_: int, __: Page) -> AsyncGenerator[PageDelta]:
        yield delta("on ")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await until(lambda: len(house.engines) == 2 and supervisor.unavailable() is None)
            await asyncio.sleep(0.2)
            raise Unavailable("dead") from None

    house.engine.script = clings
    reader = await reading(house, supervisor, page())
    house.engine.die()
    with pytest.raises(Unavailable, match="restarted"):
        await reader
    await asyncio.sleep(3 * QUICK.poll)
    assert supervisor.unavailable() is None
    assert len(house.engines) == 2


async def test_until_an_engine_dies_no_page_is_hashed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(_: Page) -> bytes:
        raise AssertionError

    monkeypatch.setattr("ocr_server.engine.supervisor.content_key", unexpected)
    supervisor = house.supervisor()
    await supervisor.loaded()
    assert await text(supervisor, page()) == "Hello"


async def test_closing_while_pages_are_read(house: House) -> None:
    supervisor = house.supervisor()
    await supervisor.loaded()
    house.engine.script = never
    reader = asyncio.ensure_future(text(supervisor, page()))
    await until(lambda: house.engine.running == 1)
    await asyncio.gather(supervisor.close(), supervisor.close())
    with pytest.raises(Unavailable, match="shutting down"):
        await reader
    assert (house.engine.closes, house.engine.kills) == (1, 0)
    await supervisor.kill()
    assert house.engine.kills == 1


@pytest.mark.parametrize("when", ["first load", "ending", "backoff", "later load"])
async def test_closing_in_the_middle_of_a_restart(house: House, when: str) -> None:
    house.plan = lambda number: Mortal(says("Hello"))
    supervisor = house.supervisor(timing=replace(QUICK, backoff=60 if when == "backoff" else 0.01, kill=60))
    if when == "first load":
        house.plan = lambda _: loading()
        loaded = asyncio.ensure_future(supervisor.loaded())
        await until(lambda: len(house.engines) == 1)
        assert "being loaded" in (supervisor.unavailable() or "")
        await supervisor.close()
        with pytest.raises(asyncio.CancelledError):
            await loaded
    else:
        await supervisor.loaded()
        house.plan = lambda _: loading()
        if when == "ending":
            house.engine.may_end.clear()
        house.engine.die()
        await until(lambda: house.engines[0].kills == 1)
        if when == "later load":
            await until(lambda: len(house.engines) == 2)
        await supervisor.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await text(supervisor, page())


def loading() -> Mortal:
    """An engine that takes for ever to load."""
    engine = Mortal()
    engine.may_load.clear()
    return engine


async def test_a_factory_that_fails_is_an_engine_that_fails_to_load(house: House) -> None:
    def plan(number: int) -> Mortal:
        house.engines.append(Mortal())  # counted, though nobody gets it
        house.engine.kills = 1
        raise RuntimeError("no more processes")

    supervisor = house.supervisor()
    await supervisor.loaded()
    sound, house.plan = house.plan, plan
    house.engine.die()
    await until(lambda: len(house.engines) == 3)
    house.plan = sound
    await until(lambda: supervisor.unavailable() is None)
    assert await text(supervisor, page()) == "Hello"


def test_suspects_are_forgotten() -> None:
    suspects = Suspects(seconds=10, most=2)
    assert not suspects.any(0)
    suspects.record_crash({b"a"}, 0)
    suspects.record_crash({b"b"}, 5)
    suspects.record_crash({b"a"}, 6)
    assert [suspects.deaths(key) for key in (b"a", b"b", b"c")] == [2, 1, 0]
    suspects.record_crash({b"c"}, 7)  # one too many
    assert [suspects.deaths(key) for key in (b"a", b"b", b"c")] == [2, 0, 1]
    suspects.clear(b"c")
    suspects.clear(b"c")
    assert suspects.any(15.9)
    assert not suspects.any(16)
    assert suspects.deaths(b"a") == 0


def test_content_keys() -> None:
    """Equal only for what the engine would be asked alike."""
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
