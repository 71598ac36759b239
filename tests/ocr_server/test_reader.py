"""Many pages at once, answered in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from ocr_server.errors import EngineFailure, InvalidRequest
from ocr_server.reading.page import Page, PageDelta
from ocr_server.reading.reader import PAGE_SEPARATOR, Part, Piece, joined, read_pages
from tests.ocr_server.conftest import FakeEngine, Script, delta, endless, examples, prepared, until


def pages(count: int) -> list[Page]:
    return [Page(prepared(), f"page {number}", SamplingParams()) for number in range(count)]


async def pieces_of(*pieces: Piece) -> AsyncGenerator[Piece]:
    for piece in pieces:
        yield piece


async def joined_parts(*pieces: Piece, copies: int = 1) -> list[Part]:
    return [part async for part in joined(pieces_of(*pieces), copies=copies)]


def texts_of(parts: list[Part]) -> dict[int, str]:
    whole: dict[int, str] = {}
    for part in parts:
        whole[part.choice] = whole.get(part.choice, "") + part.text
    return whole


class TestReadPages:
    @given(delays=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=6))
    @examples(40)
    def test_pages_come_in_order_whenever_they_are_ready(self, delays: list[list[int]]) -> None:
        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            for piece, turns in enumerate(delays[number]):
                for _turn in range(turns):
                    await asyncio.sleep(0)
                yield delta(f"{number}.{piece}")

        async def read() -> None:
            engine = FakeEngine(script)
            pieces = [piece async for piece in read_pages(engine, pages(len(delays)))]
            expected = [
                (page, f"{page}.{piece}") for page, of_page in enumerate(delays) for piece in range(len(of_page))
            ]
            assert [(piece.page, piece.delta.text) for piece in pieces] == expected
            assert sorted(engine.finished) == list(range(len(delays)))

        asyncio.run(read())

    async def test_each_page_is_read_as_it_was_given(self) -> None:
        engine, given = FakeEngine(), pages(3)
        assert len([piece async for piece in read_pages(engine, given)]) == 3
        assert [page is wanted for page, wanted in zip(engine.pages, given, strict=True)] == [True] * 3

    async def test_no_pages(self) -> None:
        assert [piece async for piece in read_pages(FakeEngine(), [])] == []

    async def test_the_first_page_streams_while_others_run(self) -> None:
        gate = asyncio.Event()

        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number > 0:
                await gate.wait()
            yield delta(f"{number} begins")
            await gate.wait()
            yield delta(f"{number} ends")

        engine = FakeEngine(script)
        reading = read_pages(engine, pages(3))
        async with asyncio.timeout(5):
            assert (await anext(reading)).delta.text == "0 begins"
        assert engine.running == 3
        gate.set()
        assert [piece.delta.text async for piece in reading] == ["0 ends", "1 begins", "1 ends", "2 begins", "2 ends"]

    async def test_all_begin_before_the_first_ends(self) -> None:
        begun: list[int] = []

        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            begun.append(number)
            await until(lambda: len(begun) == 20)
            yield delta(str(number), finish="stop")

        assert len([piece async for piece in read_pages(FakeEngine(script), pages(20))]) == 20

    @pytest.mark.parametrize("error", [EngineFailure("broken"), InvalidRequest("bad"), RuntimeError("bug")])
    async def test_an_error_comes_in_its_turn(self, error: Exception) -> None:
        failed = asyncio.Event()

        async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
            if number == 1:
                yield delta("half of 1")
                failed.set()
                raise error
            await failed.wait()
            yield delta(f"all of {number}")
            if number == 2:
                await asyncio.Event().wait()

        engine, seen = FakeEngine(script), []

        async def read() -> None:
            async for piece in read_pages(engine, pages(3)):
                seen.append(piece.delta.text)

        with pytest.raises(type(error)) as caught:
            await read()
        assert caught.value is error
        assert seen == ["all of 0", "half of 1"]
        assert (engine.finished, engine.aborted, engine.running) == ([1, 0], [2], 0)

    async def test_closing_early_aborts_all_pages(self) -> None:
        engine = FakeEngine(endless)
        reading = read_pages(engine, pages(5))
        await anext(reading)
        await until(lambda: engine.running == 5)
        await reading.aclose()
        assert sorted(engine.aborted) == [0, 1, 2, 3, 4]

    async def test_cancelling_aborts_all_pages(self) -> None:
        engine = FakeEngine(endless)

        async def read() -> None:
            async for _ in read_pages(engine, pages(4)):
                pass

        reading = asyncio.create_task(read())
        await until(lambda: engine.running == 4)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert sorted(engine.aborted) == [0, 1, 2, 3]


class TestJoined:
    async def test_one_page_has_no_separator(self) -> None:
        parts = await joined_parts(Piece(0, delta("a")), Piece(0, delta("b", finish="stop")))
        assert [part.text for part in parts] == ["a", "b"]

    async def test_pages_are_parted(self) -> None:
        parts = await joined_parts(
            Piece(0, delta("a")), Piece(0, delta("b")), Piece(1, delta("c")), Piece(1, delta("d")), Piece(2, delta("e"))
        )
        assert texts_of(parts) == {0: f"ab{PAGE_SEPARATOR}cd{PAGE_SEPARATOR}e"}
        assert PAGE_SEPARATOR == "\n\n<--- Page Split --->\n\n"

    async def test_the_separator_comes_with_the_page_after_it(self) -> None:
        parts = await joined_parts(Piece(0, delta("a", finish="stop")), Piece(1, delta("b", finish="stop")))
        assert [part.text for part in parts] == ["a", f"{PAGE_SEPARATOR}b"]

    async def test_empty_pages_keep_their_place(self) -> None:
        ends = [delta("", finish="stop"), delta("", finish="stop"), delta("x", finish="stop"), delta("", finish="stop")]
        parts = await joined_parts(*(Piece(number, end) for number, end in enumerate(ends)))
        assert texts_of(parts) == {0: f"{PAGE_SEPARATOR}{PAGE_SEPARATOR}x{PAGE_SEPARATOR}"}

    async def test_a_page_without_pieces_keeps_its_place(self) -> None:
        parts = await joined_parts(Piece(0, delta("a")), Piece(2, delta("c")))
        assert texts_of(parts) == {0: f"a{PAGE_SEPARATOR}{PAGE_SEPARATOR}c"}

    async def test_each_choice_has_its_own_separators(self) -> None:
        parts = await joined_parts(
            Piece(0, delta("a", choice=0)),
            Piece(0, delta("A", choice=1)),
            Piece(1, delta("B", choice=1)),
            Piece(1, delta("b", choice=0)),
            Piece(1, delta("B", choice=1)),
        )
        assert texts_of(parts) == {0: f"a{PAGE_SEPARATOR}b", 1: f"A{PAGE_SEPARATOR}BB"}

    async def test_copies(self) -> None:
        parts = await joined_parts(Piece(0, delta("a")), Piece(1, delta("b")), copies=3)
        assert texts_of(parts) == dict.fromkeys(range(3), f"a{PAGE_SEPARATOR}b")
        assert [part.choice for part in parts] == [0, 1, 2, 0, 1, 2]
        assert all(part.delta.choice == 0 for part in parts)

    @pytest.mark.parametrize("script", [endless])
    async def test_closing_it_closes_what_it_joins(self, script: Script) -> None:
        engine = FakeEngine(script)
        parts = joined(read_pages(engine, pages(2)))
        await anext(parts)
        await until(lambda: engine.running == 2)
        await parts.aclose()
        assert sorted(engine.aborted) == [0, 1]
