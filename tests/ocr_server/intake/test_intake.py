"""From sources to what the engine takes: order, limits, failures, and a loop that stays free."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import threading
import time
from collections.abc import AsyncIterator, Awaitable

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import MODES, ResolutionMode
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.intake import Intake, Source
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.workers import Workers

TINY = MODES["tiny"]


def data_uri(*pages: Image.Image, file_type: str = "PNG") -> str:
    file = io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(file, file_type, **more)
    return "data:;base64," + base64.b64encode(file.getvalue()).decode()


def grey(value: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


def source(url: str, mode: ResolutionMode = TINY, param: str = "p") -> Source:
    return Source(url, mode, param)


def new_intake(limits: IntakeLimits, threads: int) -> Intake:
    return Intake(limits, Workers(count=1, timeout_s=20, memory_bytes=4_000_000_000), threads=threads)


async def pages_of(intake: Intake, sources: list[Source]) -> list[PreparedImage]:
    """All pages of all sources, opened and prepared."""
    documents = await intake.open(sources)
    try:
        work = [
            one_page(intake, document.page(place), source.mode)
            for document, source in zip(documents, sources, strict=True)
            for place in range(document.page_count)
        ]
        return list(await asyncio.gather(*work))
    finally:
        for document in documents:
            await document.close()


async def one_page(intake: Intake, page: Awaitable[SourcePage], mode: ResolutionMode) -> PreparedImage:
    return await intake.prepare(await page, mode)


def values(pages: list[PreparedImage]) -> list[int]:
    """The grey in the middle of each page."""
    return [int(page.global_view[256, 256, 0]) for page in pages]


@pytest.fixture
async def intake(limits: IntakeLimits) -> AsyncIterator[Intake]:
    intake = new_intake(dataclasses.replace(limits, max_image_pixels=10_000_000, max_pages=60), threads=2)
    yield intake
    await intake.close()


class Silent:
    """A server that takes requests and never answers. Counts who is still connected."""

    def __init__(self) -> None:
        self.came = self.connected = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        self.connected += 1
        try:
            while await reader.read(1000):
                pass
        except ConnectionError:
            pass
        finally:
            self.connected -= 1
            writer.close()


async def until_equal(silent: Silent, came: int, connected: int) -> None:
    async with asyncio.timeout(10):
        while (silent.came, silent.connected) != (came, connected):  # noqa: ASYNC110  # a test may wait
            await asyncio.sleep(0.005)


class TestOrder:
    async def test_the_order_of_the_sources(self, intake: Intake) -> None:
        """The first takes longest: it is large, the rest are small."""
        greys = [10, 60, 110, 160, 210]
        sources = [source(data_uri(grey(value, 2000 if value == 10 else 16))) for value in greys]
        assert values(await pages_of(intake, sources)) == greys

    async def test_pages_of_one_picture_stay_together(self, intake: Intake) -> None:
        tiff = data_uri(grey(20), grey(40), grey(60), file_type="TIFF")
        sources = [source(data_uri(grey(5))), source(tiff), source(data_uri(grey(99)))]
        assert values(await pages_of(intake, sources)) == [5, 20, 40, 60, 99]

    async def test_each_in_its_own_mode(self, intake: Intake) -> None:
        large = data_uri(grey(0, 700))
        modes = [MODES["tiny"], MODES["gundam"], MODES["large"]]
        pages = await pages_of(intake, [source(large, mode) for mode in modes])
        assert [page.num_tokens for page in pages] == [mode.vision_tokens(mode.crop_grid(700, 700)) for mode in modes]
        assert [page.global_view.shape[0] for page in pages] == [512, 1024, 1280]

    async def test_no_sources(self, intake: Intake) -> None:
        assert await pages_of(intake, []) == []


class TestLimits:
    async def test_as_many_pages_as_allowed(self, limits: IntakeLimits) -> None:
        intake = new_intake(dataclasses.replace(limits, max_pages=4), threads=1)
        tiff = data_uri(grey(1), grey(2), file_type="TIFF")
        assert len(await pages_of(intake, [source(tiff), source(tiff)])) == 4
        with pytest.raises(SourceError, match="at most 4 pages, not 5") as caught:
            await pages_of(intake, [source(tiff), source(tiff), source(data_uri(grey(3)))])
        assert caught.value.code == "too_many_pages"
        await intake.close()

    async def test_the_limits_of_a_picture_hold(self, limits: IntakeLimits) -> None:
        intake = new_intake(dataclasses.replace(limits, max_image_pixels=255), threads=1)
        with pytest.raises(SourceTooLarge) as caught:
            await pages_of(intake, [source(data_uri(grey(0, 15))), source(data_uri(grey(0, 16)), param="second")])
        assert caught.value.param == "second"
        await intake.close()


class TestFailures:
    @pytest.mark.parametrize("bad", ["data:;base64,AAAA", "data:;base64,", "nothing", "ftp://host/"])
    async def test_the_error_names_its_source(self, intake: Intake, bad: str) -> None:
        sources = [source(data_uri(grey(1)), param="first"), source(bad, param="second")]
        with pytest.raises(SourceError) as caught:
            await pages_of(intake, sources)
        assert caught.value.param == "second"

    async def test_the_first_error_ends_the_other_fetches(self, intake: Intake) -> None:
        silent = Silent()
        async with await asyncio.start_server(silent.serve, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            started = time.monotonic()
            with pytest.raises(SourceError):
                await pages_of(intake, [source(url), source("data:;base64,AAAA"), source(url)])
            assert time.monotonic() - started < 3, "it waited for the fetches, which take 5 seconds to give up"
            await until_equal(silent, silent.came, 0)

    async def test_cancelling_ends_all_fetches(self, intake: Intake) -> None:
        silent = Silent()
        async with await asyncio.start_server(silent.serve, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            preparing = asyncio.create_task(pages_of(intake, [source(url)] * 3))
            await until_equal(silent, 3, 3)
            preparing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await preparing
            await until_equal(silent, 3, 0)

    async def test_cancelling_while_it_connects_leaves_no_connection(self, intake: Intake) -> None:
        silent = Silent()
        async with await asyncio.start_server(silent.serve, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            for number in range(300):
                came = silent.came
                preparing = asyncio.create_task(pages_of(intake, [source(url)] * 3))
                while silent.came == came:  # noqa: ASYNC110  # a test may wait
                    await asyncio.sleep(0)
                for _ in range(number % 6):
                    await asyncio.sleep(0)
                preparing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await preparing
            await asyncio.sleep(0.1)
            await until_equal(silent, silent.came, 0)

    async def test_the_first_error_leaves_no_queue_of_pictures(self, limits: IntakeLimits) -> None:
        """With one thread, what waits behind the bad picture is dropped: the next request has its turn at once."""
        intake = new_intake(dataclasses.replace(limits, max_image_pixels=20_000_000, max_pages=60), threads=1)
        large, small = source(data_uri(grey(0, 4000)), MODES["gundam"]), source(data_uri(grey(7)))
        started = time.monotonic()
        await pages_of(intake, [large])
        of_one = time.monotonic() - started
        with pytest.raises(SourceError):
            await pages_of(intake, [source("data:;base64,AAAA"), *[large] * 30])
        started = time.monotonic()
        assert values(await pages_of(intake, [small])) == [7]
        assert time.monotonic() - started < 12 * of_one
        await intake.close()

    async def test_it_works_on_after_a_failure(self, intake: Intake) -> None:
        with pytest.raises(SourceError):
            await pages_of(intake, [source("data:;base64,AAAA")])
        assert values(await pages_of(intake, [source(data_uri(grey(9)))])) == [9]


class TestThreads:
    async def test_the_loop_stays_free(self, intake: Intake) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
        large = source(data_uri(Image.fromarray(noise), file_type="JPEG"), MODES["gundam"])
        gaps: list[float] = []

        async def tick() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                gaps.append(time.monotonic() - before)

        ticking = asyncio.create_task(tick())
        started = time.monotonic()
        assert len(await pages_of(intake, [large] * 8)) == 8
        total = time.monotonic() - started
        ticking.cancel()
        assert len(gaps) > 20
        assert max(gaps) < total / 2, "one thing held the loop for most of the time"

    async def test_work_is_done_in_the_threads_of_its_own(self, limits: IntakeLimits) -> None:
        intake = new_intake(limits, threads=3)
        await pages_of(intake, [source(data_uri(grey(0)))] * 5)
        named = [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
        assert len(named) >= 1
        await intake.close()

    async def test_close_ends_them(self, limits: IntakeLimits) -> None:
        before = set(threading.enumerate())
        intake = new_intake(limits, threads=2)
        await pages_of(intake, [source(data_uri(grey(0)))] * 4)
        ours = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("prepare")}
        assert 1 <= len(ours) <= 2
        await intake.close()
        async with asyncio.timeout(5):
            while any(thread.is_alive() for thread in ours):  # noqa: ASYNC110  # threads set no event
                await asyncio.sleep(0.005)
