"""The worker processes that decode pictures: crashes, limits and isolation. test_pdf.py has the same for PDFs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import io
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from ocr_server.errors import OutOfResources, Unavailable
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.opener import Opener
from ocr_server.intake.source import Source
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.workers import KEPT_BYTES, Workers
from tests.ocr_server.intake.memory import budget
from tests.ocr_server.intake.pdfs import pdf
from tests.processes import children

Start = Callable[..., Opener]
RED = (255, 0, 0)


def saved(size: tuple[int, int] = (20, 10), colour: str = "red", format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


LARGE = saved((6000, 6000))


@pytest.fixture
async def start(limits: IntakeLimits) -> AsyncIterator[Start]:
    started: list[Workers] = []
    roomy = dataclasses.replace(limits, max_image_pixels=100_000_000)

    def start(timeout_s: float = 20.0, memory_bytes: int = 2_000_000_000) -> Opener:
        started.append(Workers(count=1, timeout_s=timeout_s, memory_bytes=memory_bytes))
        return Opener(roomy, ThreadPoolExecutor(1), started[-1], budget())

    yield start
    for workers in started:
        await workers.close()
    assert processes() == []


def processes() -> list[psutil.Process]:
    return list(children("ocr_server.intake.worker"))


def shared_bytes(process: psutil.Process) -> list[int]:
    """Sizes of the memory files that the process shares with the server."""
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    return [file.stat().st_size for file in files if "memfd:page" in os.readlink(file)]


async def crash(process: psutil.Process, cpu_s: float) -> None:
    """Crash a process once it has used this much time of the CPU."""
    while process.cpu_times().user < cpu_s:  # noqa: ASYNC110  # it happens in another process
        await asyncio.sleep(0.002)
    os.kill(process.pid, signal.SIGSEGV)


async def read(opener: Opener, data: bytes) -> SourcePage:
    opened = await opener.open(Source(data, dpi=72))
    page = await opened.page(0)
    await opened.close()
    return page


@pytest.mark.slow
async def test_a_call_that_takes_too_long(start: Start) -> None:
    opener = start(timeout_s=2.0)
    await read(opener, saved())
    (before,) = processes()
    used = before.cpu_times().user
    late = asyncio.create_task(read(opener, LARGE))
    while before.cpu_times().user < used + 0.25:  # noqa: ASYNC110  # more than a tenth of the limit
        await asyncio.sleep(0.002)
    before.suspend()
    with pytest.raises(SourceError) as caught:
        await late
    assert (caught.value.code, caught.value.about) == ("image_timeout", "file")
    assert "2 s" in caught.value.message
    assert (await read(opener, saved())).image.getpixel((5, 5)) == RED
    assert before not in processes()


@pytest.mark.slow
async def test_a_process_that_does_not_get_to_run_is_not_the_file_s_fault(start: Start) -> None:
    opener = start(timeout_s=2.0)
    await read(opener, saved())
    (before,) = processes()
    before.suspend()
    with pytest.raises(Unavailable) as caught:
        await read(opener, saved())
    assert caught.value.retry_after
    assert (await read(opener, saved())).image.getpixel((5, 5)) == RED
    assert before not in processes()


async def test_a_file_that_crashes_its_process(start: Start) -> None:
    opener = start()
    await read(opener, saved())
    (before,) = processes()
    lost = asyncio.create_task(read(opener, LARGE))
    await crash(before, cpu_s=before.cpu_times().user + 0.05)
    while not (again := [process for process in processes() if process != before]):  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    await crash(again[0], cpu_s=0.3)
    with pytest.raises(SourceError) as caught:
        await lost
    assert (caught.value.code, caught.value.about) == ("image_parse_error", "file")
    assert (await read(opener, saved())).image.getpixel((5, 5)) == RED
    assert [process.pid for process in processes()] != [before.pid]


async def test_a_file_that_takes_too_much_memory(start: Start) -> None:
    opener = start(memory_bytes=300_000_000)
    with pytest.raises(SourceTooLarge) as caught:
        await read(opener, LARGE)
    assert (caught.value.code, caught.value.about) == ("too_large", "file")
    assert (await read(opener, saved())).image.getpixel((5, 5)) == RED


async def test_workers_see_no_secrets_and_load_no_model_code(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_OCR_API_KEYS", "sk-secret")
    await read(start(), saved())
    (process,) = processes()
    assert not [name for name in process.environ() if name.startswith("DEEPSEEK_OCR")]
    loaded = " ".join(file.path for file in process.memory_maps())
    assert "_imaging" in loaded
    assert "torch" not in loaded
    assert "vllm" not in loaded


async def test_without_descriptors_no_process_starts_but_the_file_is_not_at_fault(start: Start) -> None:
    opener = start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    for free in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, hard))
        try:
            with contextlib.suppress(Unavailable):
                await read(opener, saved())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (await read(opener, saved())).image.getpixel((5, 5)) == RED
    assert len(os.listdir("/proc/self/fd")) <= used + 2  # the channel and the memory of the process


@pytest.mark.parametrize("kind", ["picture", "pdf"])
async def test_without_memory_or_disk_space_the_file_is_not_at_fault(
    start: Start, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    opener = start()
    await read(opener, saved())
    monkeypatch.setattr("ocr_server.intake.workers.store", full)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutOfResources) as caught:
        await read(opener, saved() if kind == "picture" else pdf(b""))
    assert caught.value.retry_after


async def test_workers_are_in_the_sandbox_before_they_see_a_file(start: Start) -> None:
    """What it keeps them from is tested in sandbox/."""
    await read(start(), saved())
    (process,) = processes()
    text = Path(f"/proc/{process.pid}/status").read_text()  # noqa: ASYNC240
    assert "NoNewPrivs:\t1\n" in text
    assert "Seccomp:\t2\n" in text


async def test_what_the_kernel_does_not_restrict_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(count=2, timeout_s=1, memory_bytes=1)
    for gaps in ([], ["files"], ["files"]):
        workers.started(gaps)  # type: ignore[arg-type]
    assert len(caplog.messages) == 1
    assert "Landlock" in caplog.messages[0]
    await workers.close()


async def test_workers_have_their_own_process_group_but_the_session_of_the_server(start: Start) -> None:
    """Ctrl-C must reach the server only. Linux divides the CPU among sessions (autogroup): a worker in a session of its
    own would get as much of it as the server and the engine together."""
    await read(start(), saved())
    (process,) = processes()
    assert os.getpgid(process.pid) != os.getpgid(0)
    assert os.getsid(process.pid) == os.getsid(0)


@pytest.mark.slow
async def test_the_memory_of_a_large_page_is_released(start: Start) -> None:
    opener = start()
    assert (await read(opener, LARGE)).image.size == (6000, 6000)
    (process,) = processes()
    assert [size <= KEPT_BYTES for size in shared_bytes(process)] == [True]


async def test_a_worker_forgets_a_closed_document(start: Start) -> None:
    opener = start()
    data = saved((1000, 1000), format="BMP")
    opened = await opener.open(Source(data, dpi=72))
    first = await opened.page(0)
    again = await opened.page(0)
    assert first.image.tobytes() == again.image.tobytes()
    await opened.close()
    for _ in range(2):
        assert (await read(opener, saved(colour="blue"))).image.getpixel((5, 5)) == (0, 0, 255)
