"""Many pages are read at the same time and answered in order; pages that fail, and pages that repeat themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import MODES, ResolutionMode
from ocr_server.errors import EngineFailure, InvalidRequest, Unavailable
from ocr_server.intake.source_page import SourcePage
from ocr_server.memory import MemoryBudget, Use
from ocr_server.reading.admission import Admission, Ticket
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.loops import LoopPolicy
from ocr_server.reading.page import Job, Page, PageDelta, PageReading
from ocr_server.reading.reader import AHEAD, Event, Load, Piece, Reader
from tests.ocr_server.conftest import FakeEngine, delta, endless, examples, prepared, until

PICTURE = SourcePage(np.zeros((20, 30, 3), np.uint8), dpi=None)


class Loads:
    """Makes jobs, and records the pages that were loaded."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken
        self.loaded: list[int] = []

    def jobs(self, count: int, mode: str = "tiny") -> list[Job]:
        return [self.job(number, mode) for number in range(count)]

    def job(self, number: int, mode: str) -> Job:
        async def load() -> SourcePage:
            await asyncio.sleep(0)
            self.loaded.append(number)
            if number in self.broken:
                raise InvalidRequest(f"page {number} is torn", code="torn")
            return PICTURE

        return Job(load, MODES[mode], f"page {number}", Decoding(), source=0, number=number)


async def prepare(_: SourcePage, mode: ResolutionMode) -> PreparedImage:
    return prepared(tokens=mode.base_size)


def reader(engine: FakeEngine, at_once: int = 32, loops: LoopPolicy = "retry") -> Reader:
    return Reader(engine, prepare, family=DEEPSEEK_OCR, at_once=at_once, loops=loops)


def ticket(pages: int = 1000, slots: int = 1000) -> Ticket:
    """A ticket that never has to wait, unless the arguments say so."""
    ticket = Admission(slots=slots, most_waiting=1).enter()
    ticket.expect(pages)
    return ticket


def jobs(count: int) -> list[Job]:
    return Loads().jobs(count)


async def all_of(events: AsyncGenerator[Event]) -> list[Event]:
    return [event async for event in events]


def pieces(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.page, event.delta.text) for event in events if isinstance(event, Piece)]


def readings(events: list[Event]) -> list[PageReading]:
    return [event for event in events if isinstance(event, PageReading)]


class TestOrder:
    @given(
        delays=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=6),
        live=st.booleans(),
        at_once=st.integers(1, 4),
    )
    @examples(60)
    def test_pages_come_in_order_no_matter_when_they_are_ready(
        self, delays: list[list[int]], live: bool, at_once: int
    ) -> None:
        async def script(_: int, page: Page) -> AsyncGenerator[PageDelta]:
            number = int(page.prompt.removeprefix("page "))
            for piece, turns in enumerate(delays[number]):
                for _turn in range(turns):
                    await asyncio.sleep(0)
                yield delta(f"{number}.{piece}", finish="stop" if piece == len(delays[number]) - 1 else None)

        engine = FakeEngine(script)
        events = asyncio.run(all_of(reader(engine, at_once).read(jobs(len(delays)), ticket(), live=live)))
        expected = [(page, f"{page}.{piece}") for page, of_page in enumerate(delays) for piece in range(len(of_page))]
        assert pieces(events) == expected
        assert [reading.index for reading in readings(events)] == list(range(len(delays)))
        assert [reading.text() for reading in readings(events)] == [
            "".join(f"{page}.{piece}" for piece in range(len(of_page))) for page, of_page in enumerate(delays)
        ]
        assert sorted(engine.finished) == list(range(len(delays)))

    async def test_a_reading_describes_what_was_read(self) -> None:
        (reading,) = readings(await all_of(reader(FakeEngine()).read(Loads().jobs(1, "small"), ticket())))
        assert (reading.width, reading.height, reading.dpi) == (30, 20, None)
        assert (reading.text(), reading.finish_reason(), reading.image_tokens) == ("Hello", "stop", 640)
        assert (reading.prompt_tokens, reading.completion_tokens) == (10, 1)
        assert [(each.mode, each.finish_reason) for each in reading.attempts] == [(MODES["small"], "stop")]

    async def test_no_pages(self) -> None:
        assert await all_of(reader(FakeEngine()).read([], ticket())) == []

    async def test_the_first_page_is_streamed_while_others_are_read(self) -> None:
        gate = asyncio.Event()

        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number > 0:
                await gate.wait()
            yield delta(f"{number} begins")
            await gate.wait()
            yield delta(f"{number} ends")

        engine = FakeEngine(script)
        reading = reader(engine).read(jobs(3), ticket(), live=True)
        async with asyncio.timeout(5):
            first = await anext(reading)
        assert isinstance(first, Piece)
        assert first.delta.text == "0 begins"
        await until(lambda: engine.running == 3)
        gate.set()
        rest = pieces(await all_of(reading))
        assert [text for _, text in rest] == ["0 ends", "1 begins", "1 ends", "2 begins", "2 ends"]


class TestLimits:
    async def test_as_many_pages_at_a_time_as_allowed(self) -> None:
        gate, most = asyncio.Event(), 0

        async def script(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            await gate.wait()
            yield delta("x", finish="stop")

        engine, loads = FakeEngine(script), Loads()
        reading = asyncio.ensure_future(all_of(reader(engine, at_once=4).read(loads.jobs(50), ticket())))
        await until(lambda: engine.running == 4)
        for _ in range(50):
            await asyncio.sleep(0)
            most = max(most, engine.running)
        assert most == 4
        assert loads.loaded == [0, 1, 2, 3]
        gate.set()
        assert len(readings(await reading)) == 50

    async def test_slots_are_given_back_whenever_the_request_is_cancelled(self) -> None:
        for turns in range(40):
            admission = Admission(slots=2, most_waiting=1000)
            place = admission.enter()
            place.expect(6)
            reading = asyncio.create_task(all_of(reader(FakeEngine(), at_once=4).read(jobs(6), place)))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            place.close()
            await asyncio.sleep(0)
            assert (admission.pages_in_flight, admission.pages_waiting) == (0, 0), turns

    async def test_a_long_page_does_not_delay_others_until_many_answers_wait(self) -> None:
        gate = asyncio.Event()

        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number == 0:
                await gate.wait()
            yield delta("x", finish="stop")

        engine = FakeEngine(script)
        reading = asyncio.ensure_future(all_of(reader(engine, at_once=3).read(jobs(100), ticket())))
        await until(lambda: len(engine.finished) == AHEAD * 3 - 1)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(engine.pages) == AHEAD * 3
        gate.set()
        assert len(readings(await reading)) == 100


class TestFailures:
    async def test_a_page_that_cannot_be_loaded_does_not_affect_others(self) -> None:
        events = await all_of(reader(FakeEngine()).read(Loads(broken=(0, 2)).jobs(4), ticket(), live=True))
        assert [(reading.index, reading.finish_reason()) for reading in readings(events)] == [
            (0, "error"),
            (1, "stop"),
            (2, "error"),
            (3, "stop"),
        ]
        assert [reading.error.code if reading.error else None for reading in readings(events)] == [
            "torn",
            None,
            "torn",
            None,
        ]
        assert pieces(events) == [(1, "Hello"), (3, "Hello")]

    @pytest.mark.parametrize("live", [False, True])
    async def test_a_page_on_which_the_engine_fails_does_not_affect_others(self, live: bool) -> None:
        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            yield delta("half")
            if number == 1:
                raise EngineFailure("broken")
            yield delta("", finish="stop")

        events = await all_of(reader(FakeEngine(script)).read(jobs(3), ticket(), live=live))
        assert [reading.finish_reason() for reading in readings(events)] == ["stop", "error", "stop"]
        assert readings(events)[1].text() == "half"

    @pytest.mark.parametrize("live", [False, True])
    @pytest.mark.parametrize("count", [1, 3])
    async def test_the_request_fails_if_all_pages_fail(self, count: int, live: bool) -> None:
        """Nothing comes before the error, so that it can determine the HTTP status."""
        with pytest.raises(InvalidRequest, match="page 0 is torn"):
            await anext(reader(FakeEngine()).read(Loads(broken=(0, 1, 2)).jobs(count), ticket(), live=live))

    async def test_an_unavailable_engine_ends_the_request(self) -> None:
        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number == 1:
                raise Unavailable("gone")
            yield delta("x", finish="stop")

        with pytest.raises(Unavailable):
            await all_of(reader(FakeEngine(script)).read(jobs(3), ticket()))

    async def test_an_unexpected_exception_is_not_an_error_of_the_page(self) -> None:
        async def script(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            raise RuntimeError("bug")
            yield

        with pytest.raises(RuntimeError, match="bug"):
            await all_of(reader(FakeEngine(script)).read(jobs(2), ticket()))

    async def test_closing_early_aborts_all_pages(self) -> None:
        engine = FakeEngine(endless)
        reading = reader(engine).read(jobs(5), ticket(), live=True)
        await anext(reading)
        await until(lambda: engine.running == 5)
        await reading.aclose()
        assert sorted(engine.aborted) == [0, 1, 2, 3, 4]

    async def test_cancelling_aborts_all_pages(self) -> None:
        engine = FakeEngine(endless)
        reading = asyncio.create_task(all_of(reader(engine, at_once=3).read(jobs(9), ticket())))
        await until(lambda: engine.running == 3)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert sorted(engine.aborted) == [0, 1, 2]
        assert engine.running == 0


class TestFinish:
    async def test_it_gets_the_page_with_its_picture_before_the_page_is_yielded(self) -> None:
        gate, seen = asyncio.Event(), []

        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number == 0:
                await gate.wait()
            yield delta(str(number), finish="stop")

        async def finish(reading: PageReading, load: Load) -> object:
            assert await load() is PICTURE
            seen.append(reading.text())
            return f"made of {reading.text()}"

        reading = asyncio.ensure_future(all_of(reader(FakeEngine(script)).read(jobs(3), ticket(), finish=finish)))
        await until(lambda: sorted(seen) == ["1", "2"])
        gate.set()
        assert [each.artifacts for each in readings(await reading)] == ["made of 0", "made of 1", "made of 2"]


class TestMemory:
    """What a page holds of the budget while it is read."""

    @pytest.mark.parametrize(("size", "kept"), [((30, 20), True), ((3000, 3001), False)])
    async def test_large_pictures_are_dropped_and_decoded_again(self, size: tuple[int, int], kept: bool) -> None:
        memory, held, loaded = MemoryBudget(10**9), list[int](), []

        async def load() -> SourcePage:
            pixels = size[0] * size[1]
            loaded.append(await memory.wait(Use.PIXELS, 16 * pixels))
            return SourcePage(np.zeros((size[1], size[0], 3), np.uint8), None, loaded[-1])

        async def script(_: int, page: Page) -> AsyncGenerator[PageDelta]:
            held.append(memory.total - page.image.nbytes)
            yield delta("x", finish="stop")

        async def finish(_: PageReading, load: Load) -> object:
            assert (await load()).size == size

        job = Job(load, MODES["tiny"], "", Decoding())
        await all_of(reader(FakeEngine(script)).read([job], ticket(), finish=finish))
        assert held == [size[0] * size[1] * 3 if kept else 0]
        assert len(loaded) == (1 if kept else 2)
        assert memory.total == 0

    @pytest.mark.parametrize("ends", ["fails", "cancelled"])
    async def test_memory_is_given_back_however_a_page_ends(self, ends: str) -> None:
        memory = MemoryBudget(10**9)

        async def load() -> SourcePage:
            return SourcePage(PICTURE.pixels, None, await memory.wait(Use.PIXELS, 1000))

        async def script(_: int, __: Page) -> AsyncGenerator[PageDelta]:
            if ends == "fails":
                raise InvalidRequest("no")
            yield delta("x")
            await asyncio.Event().wait()

        jobs = [Job(load, MODES["tiny"], "", Decoding())]
        async with aclosing(reader(FakeEngine(script)).read(jobs, ticket(), live=True)) as events:
            with suppress(InvalidRequest):
                await anext(events)
        assert memory.total == 0


class TestLoops:
    """The engine ends a page on which the model repeats itself."""

    @staticmethod
    def engine(times: int, *, page: int = 0) -> FakeEngine:
        """An engine on which a page repeats itself in so many attempts."""
        tries = [0]

        async def script(_: int, given: Page) -> AsyncGenerator[PageDelta]:
            if given.prompt != f"page {page}":
                yield delta("fine", finish="stop")
                return
            tries[0] += 1
            yield delta("la ")
            for _turn in range(5):  # time to yield the piece
                await asyncio.sleep(0)
            yield delta("la", finish="repetition" if tries[0] <= times else "stop")

        return FakeEngine(script)

    async def test_the_page_is_read_again_with_a_stricter_guard(self) -> None:
        engine = self.engine(1)
        (reading,) = readings(await all_of(reader(engine).read(jobs(1), ticket())))
        assert (reading.text(), reading.finish_reason()) == ("la la", "stop")
        first, second = (page.decoding.guard for page in engine.pages)
        assert (first.ngram_size, first.window_size) == (30, 90)
        assert (second.ngram_size, second.window_size) == (20, 1024)
        assert [(each.ngram_size, each.window_size, each.finish_reason) for each in reading.attempts] == [
            (30, 90, "repetition"),
            (20, 1024, "stop"),
        ]

    async def test_then_the_page_is_read_in_another_mode(self) -> None:
        engine = self.engine(2)
        (reading,) = readings(await all_of(reader(engine).read(Loads().jobs(1, "gundam"), ticket())))
        assert reading.finish_reason() == "stop"
        assert [each.mode for each in reading.attempts] == [MODES["gundam"], MODES["gundam"], MODES["base"]]

    async def test_then_the_page_is_left_as_it_is(self) -> None:
        engine = self.engine(9)
        events = await all_of(reader(engine).read(jobs(1), ticket()))
        (reading,) = readings(events)
        assert (reading.text(), reading.finish_reason(), len(engine.pages)) == ("la la", "repetition", 3)
        assert pieces(events) == [(0, "la "), (0, "la")]

    @pytest.mark.parametrize(("policy", "watched"), [("end", True), ("off", False)])
    async def test_policies(self, policy: LoopPolicy, watched: bool) -> None:
        engine = self.engine(1)
        (reading,) = readings(await all_of(reader(engine, loops=policy).read(jobs(1), ticket())))
        assert reading.finish_reason() == "repetition"
        assert [page.decoding.detect_loops for page in engine.pages] == [watched]

    async def test_a_page_is_not_read_again_once_pieces_were_yielded(self) -> None:
        engine = self.engine(1)
        events = await all_of(reader(engine).read(jobs(1), ticket(), live=True))
        assert len(engine.pages) == 1
        assert pieces(events) == [(0, "la "), (0, "la")]

    async def test_a_later_page_of_a_stream_is_read_again(self) -> None:
        gate = asyncio.Event()
        looping = self.engine(1, page=1)

        async def script(number: int, page: Page) -> AsyncGenerator[PageDelta]:
            if page.prompt == "page 0":
                await gate.wait()
            async for each in looping.script(number, page):
                yield each

        engine = FakeEngine(script)
        reading = asyncio.ensure_future(all_of(reader(engine).read(jobs(2), ticket(), live=True)))
        await until(lambda: len(engine.finished) == 2)
        gate.set()
        assert [each.finish_reason() for each in readings(await reading)] == ["stop", "stop"]

    async def test_a_page_with_several_choices_is_not_read_again(self) -> None:
        job = jobs(1)[0]
        job = replace(job, decoding=replace(job.decoding, n=2, temperature=1.0))
        engine = self.engine(1)
        await all_of(reader(engine).read([job], ticket()))
        assert len(engine.pages) == 1
