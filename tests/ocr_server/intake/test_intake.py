"""From sources to what the engine takes: order, limits, failures, and an event loop that stays free."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import MODES, ResolutionMode
from ocr_server.intake.document import LoadedPage
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.intake import Intake
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.page_selection import parse_pages
from ocr_server.intake.source import Base64, Source, Url
from ocr_server.intake.source_page import SourcePage
from tests.ocr_server.conftest import until
from tests.ocr_server.intake.memory import budget
from tests.ocr_server.intake.pdfs import filled, pdf
from tests.ocr_server.intake.recording import RecordingWorkers

TINY = MODES["tiny"]


def file_of(*pages: Image.Image, file_type: str = "PNG") -> bytes:
    file = io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(file, file_type, **more)
    return file.getvalue()


def data_uri(*pages: Image.Image, file_type: str = "PNG") -> str:
    return "data:;base64," + base64.b64encode(file_of(*pages, file_type=file_type)).decode()


def grey(value: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


def source(url: str) -> Source:
    return Source(Url(url))


def new_intake(limits: IntakeLimits, threads: int) -> Intake:
    return Intake(limits, RecordingWorkers(), budget(), threads=threads)


async def pages_of(intake: Intake, sources: list[Source], mode: ResolutionMode = TINY) -> list[PreparedImage]:
    """All pages of all sources, opened and prepared."""
    documents = await intake.open(sources)
    try:
        work = [
            one_page(intake, document.page(number), mode)
            for document in documents
            for number in range(document.page_count)
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


class SilentServer:
    """A server that accepts requests and never responds; counts the connections."""

    def __init__(self) -> None:
        self.accepted = self.connected = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.connected += 1
        try:
            while await reader.read(1000):
                pass
        except ConnectionError:
            pass
        finally:
            self.connected -= 1
            writer.close()


async def until_connected(silent: SilentServer, connections: int) -> None:
    async with asyncio.timeout(30):
        while silent.connected != connections:  # noqa: ASYNC110  # a test may wait
            await asyncio.sleep(0.005)


class RecordingDocument(LoadedPage):
    """An open document that counts how often it is closed."""

    def __init__(self, value: int) -> None:
        super().__init__(SourcePage(np.full((16, 16, 3), value, np.uint8), None))
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class TestContent:
    async def test_bytes_are_opened_without_a_url(self, intake: Intake) -> None:
        sources = [Source(file_of(grey(30))), Source(pdf(filled(0.2, 0.2, 0.2)))]
        assert values(await pages_of(intake, sources)) == [30, 51]

    async def test_base64_text_is_decoded(self, intake: Intake) -> None:
        text = base64.b64encode(file_of(grey(40))).decode()
        assert values(await pages_of(intake, [Source(Base64(text)), Source(Base64(text.rstrip("=")))])) == [40, 40]

    @pytest.mark.parametrize(("text", "code"), [("*", "invalid_base64_image"), ("", "empty_image_file")])
    async def test_invalid_base64_text(self, intake: Intake, text: str, code: str) -> None:
        with pytest.raises(SourceError) as caught:
            await intake.open([Source(Base64(text))])
        assert caught.value.code == code

    async def test_options_apply_to_bytes_as_to_a_url(self, intake: Intake) -> None:
        data = pdf(filled(0, 0, 0), filled(0.2, 0.2, 0.2), filled(0.4, 0.4, 0.4))
        url = "data:application/pdf;base64," + base64.b64encode(data).decode()
        selection = parse_pages("3,2", first=1)
        for content in (data, Url(url)):
            (document,) = await intake.open([Source(content, selection, dpi=36)])
            assert list(document.indices) == [2, 1]
            page = await document.page(0)
            assert (page.size, page.dpi) == ((306, 396), 36)
            await document.close()

    async def test_bytes_have_the_same_limits_as_a_url(self, limits: IntakeLimits) -> None:
        data = file_of(grey(0))
        intake = new_intake(dataclasses.replace(limits, max_image_bytes=len(data) - 1), threads=1)
        for content in (data, Url(data_uri(grey(0)))):
            with pytest.raises(SourceTooLarge, match="the limit is"):
                await intake.open([Source(content)])
        await intake.close()

    async def test_an_open_document_is_used_as_it_is(self, intake: Intake) -> None:
        loaded = RecordingDocument(77)
        documents = await intake.open([source(data_uri(grey(5))), Source(loaded)])
        assert documents[1] is loaded
        assert values([await one_page(intake, document.page(0), TINY) for document in documents]) == [5, 77]
        assert loaded.closed == 0
        await documents[0].close()

    async def test_single_pages_of_an_open_document(self, intake: Intake) -> None:
        """As batches do it: the owner stays open while every page is a request of its own."""
        (owner,) = await intake.open([Source(file_of(grey(20), grey(40), grey(60), file_type="TIFF"))])
        for number, value in ((2, 60), (0, 20), (1, 40)):
            assert values(await pages_of(intake, [Source(owner.single(number))])) == [value]
        await owner.close()

    @pytest.mark.parametrize("position", [0, 1])
    async def test_open_documents_are_closed_if_another_source_fails(self, position: int, intake: Intake) -> None:
        loaded = RecordingDocument(0)
        sources = [source("data:;base64,AAAA")]
        sources.insert(position, Source(loaded))
        with pytest.raises(SourceError) as caught:
            await intake.open(sources)
        assert caught.value.source == 1 - position
        assert loaded.closed >= 1

    async def test_open_documents_are_closed_if_opening_is_cancelled_at_its_start(self, intake: Intake) -> None:
        loaded = RecordingDocument(0)
        opening = asyncio.create_task(intake.open([Source(loaded), source(data_uri(grey(1)))]))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert loaded.closed >= 1

    async def test_open_documents_count_towards_the_page_limit(self, limits: IntakeLimits) -> None:
        intake = new_intake(dataclasses.replace(limits, max_pages=2), threads=1)
        loaded = [RecordingDocument(value) for value in range(3)]
        with pytest.raises(SourceError, match="at most 2 pages, not 3"):
            await intake.open([Source(document) for document in loaded])
        assert [document.closed for document in loaded] == [1, 1, 1]
        await intake.close()


class TestOrder:
    async def test_pages_keep_the_order_of_the_sources(self, intake: Intake) -> None:
        """The first takes longest: it is large, the rest are small."""
        greys = [10, 60, 110, 160, 210]
        sources = [source(data_uri(grey(value, 2000 if value == 10 else 16))) for value in greys]
        assert values(await pages_of(intake, sources)) == greys

    async def test_pages_of_one_source_stay_together(self, intake: Intake) -> None:
        tiff = data_uri(grey(20), grey(40), grey(60), file_type="TIFF")
        sources = [source(data_uri(grey(5))), source(tiff), source(data_uri(grey(99)))]
        assert values(await pages_of(intake, sources)) == [5, 20, 40, 60, 99]

    async def test_each_page_in_its_own_mode(self, intake: Intake) -> None:
        modes = [MODES["tiny"], MODES["gundam"], MODES["large"]]
        (document,) = await intake.open([source(data_uri(grey(0, 700)))])
        pages = [await one_page(intake, document.page(0), mode) for mode in modes]
        await document.close()
        assert [page.num_tokens for page in pages] == [mode.vision_tokens(mode.crop_grid(700, 700)) for mode in modes]
        assert [page.global_view.shape[0] for page in pages] == [512, 1024, 1280]

    async def test_no_sources(self, intake: Intake) -> None:
        assert await pages_of(intake, []) == []


class TestLimits:
    async def test_pages_of_all_sources_together(self, limits: IntakeLimits) -> None:
        intake = new_intake(dataclasses.replace(limits, max_pages=4), threads=1)
        tiff = data_uri(grey(1), grey(2), file_type="TIFF")
        assert len(await pages_of(intake, [source(tiff), source(tiff)])) == 4
        with pytest.raises(SourceError, match="at most 4 pages, not 5") as caught:
            await pages_of(intake, [source(tiff), source(tiff), source(data_uri(grey(3)))])
        assert (caught.value.code, caught.value.about) == ("too_many_pages", "file")
        await intake.close()

    async def test_the_limits_of_a_picture_apply_to_every_source(self, limits: IntakeLimits) -> None:
        intake = new_intake(dataclasses.replace(limits, max_image_pixels=255), threads=1)
        with pytest.raises(SourceTooLarge) as caught:
            await pages_of(intake, [source(data_uri(grey(0, 15))), source(data_uri(grey(0, 16)))])
        assert caught.value.source == 1
        await intake.close()


class TestFailures:
    @pytest.mark.parametrize("bad", ["data:;base64,AAAA", "data:;base64,", "nothing", "ftp://host/"])
    @pytest.mark.parametrize("position", [0, 1, 2])
    async def test_the_error_says_which_source_it_is(self, intake: Intake, bad: str, position: int) -> None:
        sources = [source(data_uri(grey(1))), Source(file_of(grey(2)))]
        sources.insert(position, source(bad))
        with pytest.raises(SourceError) as caught:
            await pages_of(intake, sources)
        assert (caught.value.source, caught.value.about) == (position, "file")

    async def test_the_error_of_a_selection_says_which_source_it_is(self, intake: Intake) -> None:
        tiff = file_of(grey(1), grey(2), file_type="TIFF")
        sources = [Source(tiff, parse_pages(pages, first=1)) for pages in ("1-2", "2", "3")]
        with pytest.raises(SourceError) as caught:
            await intake.open(sources)
        assert (caught.value.source, caught.value.about, caught.value.code) == (2, "pages", "invalid_pages")

    async def test_the_first_error_ends_the_other_fetches(self, limits: IntakeLimits) -> None:
        intake = new_intake(dataclasses.replace(limits, fetch_timeout_s=250), threads=1)
        silent = SilentServer()
        async with await asyncio.start_server(silent.serve, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with asyncio.timeout(60):  # much less than what the fetches would take to give up
                with pytest.raises(SourceError) as caught:
                    await pages_of(intake, [source(url), source("data:;base64,AAAA"), source(url)])
            assert caught.value.source == 1
            await until_connected(silent, 0)
        await intake.close()

    async def test_cancelling_ends_all_fetches(self, intake: Intake) -> None:
        silent = SilentServer()
        async with await asyncio.start_server(silent.serve, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            preparing = asyncio.create_task(pages_of(intake, [source(url)] * 3))
            await until_connected(silent, 3)
            preparing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await preparing
            await until_connected(silent, 0)
            assert silent.accepted == 3

    @pytest.mark.slow
    async def test_cancelling_while_it_connects_leaves_no_connection(self, intake: Intake) -> None:
        silent = SilentServer()
        async with await asyncio.start_server(silent.serve, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            for number in range(300):
                accepted = silent.accepted
                preparing = asyncio.create_task(pages_of(intake, [source(url)] * 3))
                while silent.accepted == accepted:  # noqa: ASYNC110  # a test may wait
                    await asyncio.sleep(0)
                for _ in range(number % 6):
                    await asyncio.sleep(0)
                preparing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await preparing
            await asyncio.sleep(0.1)
            await until_connected(silent, 0)

    async def test_the_first_error_leaves_no_queue_of_pictures(self, limits: IntakeLimits) -> None:
        """What waits behind the bad source is dropped, so that the next request has its turn at once."""
        workers = RecordingWorkers()
        intake = Intake(
            dataclasses.replace(limits, max_image_pixels=20_000_000, max_pages=60),
            workers,
            budget(),
            threads=1,
        )
        large = source(data_uri(grey(0, 4000)))
        with pytest.raises(SourceError):
            await pages_of(intake, [source("data:;base64,AAAA"), *[large] * 30])
        assert workers.pending == 0
        workers.calls.clear()
        assert values(await pages_of(intake, [source(data_uri(grey(7)))])) == [7]
        assert workers.decoded == 1
        await intake.close()

    async def test_the_intake_works_after_a_failure(self, intake: Intake) -> None:
        with pytest.raises(SourceError):
            await pages_of(intake, [source("data:;base64,AAAA")])
        assert values(await pages_of(intake, [source(data_uri(grey(9)))])) == [9]


class TestThreads:
    async def test_the_event_loop_stays_free(self, intake: Intake) -> None:
        """The thread of the event loop does the smaller part of the work, measured in CPU time."""
        noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
        large = source(data_uri(Image.fromarray(noise), file_type="JPEG"))
        await pages_of(intake, [large])  # starts the processes
        of_loop, of_all = time.thread_time(), time.process_time()
        assert len(await pages_of(intake, [large] * 8, MODES["gundam"])) == 8
        assert time.thread_time() - of_loop < (time.process_time() - of_all) / 2

    async def test_pages_are_prepared_in_threads_of_the_intake(self, limits: IntakeLimits) -> None:
        before = set(threading.enumerate())
        intake = new_intake(limits, threads=3)
        await pages_of(intake, [source(data_uri(grey(0)))] * 5)
        started = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("prepare")}
        assert 1 <= len(started) <= 3
        await intake.close()

    async def test_close_ends_the_threads(self, limits: IntakeLimits) -> None:
        before = set(threading.enumerate())
        intake = new_intake(limits, threads=2)
        await pages_of(intake, [source(data_uri(grey(0)))] * 4)
        ours = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("prepare")}
        assert 1 <= len(ours) <= 2
        await intake.close()
        async with asyncio.timeout(5):
            while any(thread.is_alive() for thread in ours):  # noqa: ASYNC110  # threads set no event
                await asyncio.sleep(0.005)


async def test_a_file_that_is_refused_is_not_kept_by_its_error(limits: IntakeLimits) -> None:
    """The error lives until the request has been answered, without a reservation of memory for the file."""
    intake = new_intake(limits, 1)
    uri = "data:;base64," + base64.b64encode(bytes(2_000_000)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(SourceError) as caught:
            await intake.open([source(uri)])
        assert caught.value.code == "invalid_image_format"
        await until(lambda: tracemalloc.get_traced_memory()[0] < 1_000_000)  # the thread may not have let go of it yet
    finally:
        tracemalloc.stop()
        await intake.close()
