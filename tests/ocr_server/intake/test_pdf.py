"""Rendering PDFs in worker processes: results, errors, crashes and timeouts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ocr_server.errors import Unavailable
from ocr_server.intake.pdf import PdfFile, PdfRenderer
from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.workers import Workers
from tests.ocr_server.intake import pdfs
from tests.ocr_server.intake.pdfs import filled, pdf
from tests.processes import children

ROOT = Path(__file__).resolve().parents[3]
RED, BLUE = (255, 0, 0), (0, 0, 255)
MEMORY = 2 << 30
MOST = 10_000_000
WORKER = "ocr_server.intake.worker"


def running() -> set[int]:
    """Ids of the live worker processes that this process has started."""
    return {child.pid for child in children(WORKER)}


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # a test may wait
            await asyncio.sleep(0.01)


async def busy(pid: int) -> None:
    """Wait until the process has worked for a while."""
    process = psutil.Process(pid)
    start = process.cpu_times().user
    await until(lambda: process.cpu_times().user > start + 0.1)


async def lose(rendering: asyncio.Task[SourcePage], before: set[int], number: signal.Signals, *, times: int) -> None:
    """End the process that works on the page by a signal, as many times as this."""
    for _ in range(times):
        await until(lambda: bool(running() - before) or rendering.done())
        (worker,) = running() - before
        await busy(worker)
        os.kill(worker, number)
        await until(lambda lost=worker: lost not in running())


class Renderer(PdfRenderer):
    """A renderer with its own workers."""

    def __init__(self, *, count: int = 1, timeout_s: float = 20.0, memory_bytes: int = MEMORY) -> None:
        self.workers = Workers(count=count, timeout_s=timeout_s, memory_bytes=memory_bytes)
        super().__init__(self.workers)

    async def close(self) -> None:
        await self.workers.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Renderer]:
    """A renderer whose process is shared by the tests of this module."""
    shared = Renderer()
    yield shared
    asyncio.run(shared.close())


@contextmanager
def stored(data: bytes, password: str | None = None) -> Iterator[PdfFile]:
    file = PdfFile(data, password)
    yield file
    file.close()


@pytest.fixture(scope="module")
def two() -> Iterator[PdfFile]:
    """A document of a red page and a blue one."""
    with stored(pdf(filled(1, 0, 0), filled(0, 0, 1))) as file:
        yield file


@pytest.fixture(scope="module")
def endless() -> Iterator[PdfFile]:
    with stored(pdfs.endless()) as file:
        yield file


async def page(renderer: PdfRenderer, file: PdfFile, index: int = 0) -> SourcePage:
    return await renderer.render(file, index, 72, MOST)


async def kind(renderer: PdfRenderer, file: PdfFile) -> str:
    async def attempt() -> None:
        await renderer.inspect(file)
        await page(renderer, file)

    with pytest.raises(PdfError) as caught:
        await attempt()
    return caught.value.kind


def has_temporary_file(pid: int) -> bool:
    """Whether a process has mapped a temporary file into its memory."""
    return any(
        tempfile.gettempdir() in line and line.endswith("(deleted)")
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
    )


class TestFile:
    """No name of the file can be left behind, not even if the server is killed."""

    def test_has_no_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with stored(b"content") as file:
            assert os.pread(file.content.fileno(), 100, 0) == b"content"
            assert os.fstat(file.content.fileno()).st_nlink == 0
            assert not list(tmp_path.iterdir())

    def test_is_closed_once(self) -> None:
        file = PdfFile(b"content", None)
        file.close()
        assert file.content.closed
        file.close()


class TestRendering:
    async def test_inspect_and_render(self, shared: PdfRenderer, two: PdfFile) -> None:
        assert (await shared.inspect(two)).page_count == 2
        shown = await shared.render(two, 1, 144, MOST)
        assert (shown.image.mode, shown.image.size, shown.dpi) == ("RGB", (1224, 1584), 144)
        assert shown.image.getpixel((1223, 1583)) == BLUE
        assert (await shared.render(two, 0, 144, 10_000)).dpi == pytest.approx(10.34, abs=0.01)

    async def test_errors_keep_their_kind_and_the_process(self, shared: PdfRenderer, two: PdfFile) -> None:
        await page(shared, two)
        before = running()
        for data, password, expected in (
            (pdfs.encrypted(b"", "secret"), None, "password_required"),
            (pdfs.encrypted(b"", "secret"), "wrong", "password_wrong"),
            (b"%PDF-1.7 nothing", None, "damaged"),
            (pdfs.NO_PAGES, None, "empty"),
            (pdf(b"", size=(1e6, 1e6)), None, "giant_page"),
            (pdf(b"").replace(b"/Kids[3 0 R]", b"/Kids[9 0 R]"), None, "page_failed"),
        ):
            with stored(data, password) as file:
                assert await kind(shared, file) == expected
        assert running() == before

    async def test_several_processes_share_the_pages(self, two: PdfFile) -> None:
        many = Renderer(count=2)
        before = running()
        shown = await asyncio.gather(*(page(many, two, index % 2) for index in range(6)))
        assert [each.image.getpixel((9, 9)) for each in shown] == [RED, BLUE] * 3
        assert len(running() - before) == 2
        await many.close()
        assert running() == before

    async def test_no_process_before_it_is_needed(self, two: PdfFile) -> None:
        before = running()
        idle = Renderer(count=2)
        assert running() == before
        await page(idle, two)
        await page(idle, two)
        assert len(running() - before) == 1
        await idle.close()
        with pytest.raises(Unavailable):
            await page(idle, two)

    async def test_a_discarded_document_is_closed_in_the_process(self, shared: PdfRenderer) -> None:
        with stored(pdf(filled(1, 0, 0))) as file:
            await page(shared, file)

            (pid,) = running()
            assert has_temporary_file(pid)
            shared.discard(file)
            await until(lambda: not has_temporary_file(pid))
            assert file.content.closed


class TestLostProcesses:
    """Losing a process fails the call that it was working on, and no other."""

    async def test_others_go_on_when_one_is_killed(self, two: PdfFile, endless: PdfFile) -> None:
        own = Renderer(count=2)
        before = running()
        await page(own, two)
        lost = asyncio.create_task(page(own, endless))
        (worker,) = running() - before
        await busy(worker)
        others = asyncio.create_task(page(own, two, 1))
        os.kill(worker, signal.SIGKILL)
        assert (await others).image.getpixel((9, 9)) == BLUE
        assert not lost.done()  # it is tried once more
        lost.cancel()
        for _ in range(2):
            assert (await page(own, two)).image.getpixel((9, 9)) == RED
        await own.close()
        assert running() == before

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    async def test_a_page_whose_process_is_lost_once_is_rendered(self, number: signal.Signals) -> None:
        own = Renderer()
        before = running()
        with stored(pdfs.slow()) as slow:
            rendering = asyncio.create_task(page(own, slow))
            await lose(rendering, before, number, times=1)
            assert (await rendering).image.size == (612, 792)
        await own.close()

    async def test_a_page_that_crashes_two_processes_is_at_fault(self, endless: PdfFile) -> None:
        own = Renderer()
        rendering = asyncio.create_task(page(own, endless))
        await lose(rendering, running(), signal.SIGSEGV, times=2)
        with pytest.raises(PdfError) as caught:
            await rendering
        assert caught.value.kind == "failed"
        await own.close()

    async def test_a_page_whose_processes_are_killed_is_not_at_fault(self, endless: PdfFile) -> None:
        """The kernel kills processes when memory runs out."""
        own = Renderer()
        rendering = asyncio.create_task(page(own, endless))
        await lose(rendering, running(), signal.SIGKILL, times=2)
        with pytest.raises(Unavailable) as caught:
            await rendering
        assert (caught.value.code, caught.value.retry_after) == ("out_of_resources", 5)
        await own.close()

    @pytest.mark.parametrize("ended", [False, True])
    async def test_killed_while_idle(self, ended: bool, two: PdfFile, shared: PdfRenderer) -> None:
        await page(shared, two)
        (worker,) = running()
        os.kill(worker, signal.SIGKILL)
        if ended:
            await until(lambda: worker not in running())
        assert (await page(shared, two, 1)).image.getpixel((9, 9)) == BLUE
        assert worker not in running()

    @pytest.mark.slow
    async def test_too_slow(self, two: PdfFile, endless: PdfFile) -> None:
        own = Renderer(timeout_s=1.5)
        before = running()
        await own.inspect(endless)
        (worker,) = running() - before
        with pytest.raises(PdfError) as caught:
            await page(own, endless)
        assert caught.value.kind == "timeout"
        await until(lambda: worker not in running())
        assert (await page(own, two)).image.getpixel((9, 9)) == RED
        await own.close()

    async def test_cancelled(self, two: PdfFile, endless: PdfFile) -> None:
        own = Renderer()
        before = running()
        await page(own, two)
        task = asyncio.create_task(page(own, endless))
        waiting = asyncio.create_task(page(own, two, 1))
        (worker,) = running() - before
        await busy(worker)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: worker not in running())
        assert (await waiting).image.getpixel((9, 9)) == BLUE
        await own.close()
        assert running() == before

    async def test_too_much_memory(self, two: PdfFile) -> None:
        own = Renderer(memory_bytes=400 << 20)
        with pytest.raises(PdfError) as caught:
            await own.render(two, 0, 2000, 1_000_000_000)
        assert caught.value.kind == "page_failed"
        assert (await page(own, two)).image.getpixel((9, 9)) == RED
        await own.close()

    async def test_a_process_that_cannot_start(self, two: PdfFile) -> None:
        own = Renderer(memory_bytes=1 << 20)
        with pytest.raises(Unavailable):
            await page(own, two)
        await own.close()

    @pytest.mark.slow
    def test_workers_end_with_the_server_also_while_rendering(self) -> None:
        script = """
            import asyncio, psutil
            from ocr_server.intake.pdf import PdfFile, PdfRenderer
            from ocr_server.intake.workers import Workers
            from tests.ocr_server.intake import pdfs

            async def main():
                renderer = PdfRenderer(Workers(count=1, timeout_s=100, memory_bytes=1 << 30))
                file = PdfFile(pdfs.endless(), None)
                await renderer.inspect(file)
                task = asyncio.create_task(renderer.render(file, 0, 72, 1_000_000))
                (process,) = psutil.Process().children()
                start = process.cpu_times().user
                while process.cpu_times().user < start + 0.1:
                    await asyncio.sleep(0.01)
                print(process.pid, flush=True)
                await task

            if __name__ == "__main__":
                asyncio.run(main())
        """
        command = [sys.executable, "-c", textwrap.dedent(script)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            worker = server.stdout.readline()
            server.kill()
        assert psutil.wait_procs([psutil.Process(int(worker))] if psutil.pid_exists(int(worker)) else [], 5)[1] == []
