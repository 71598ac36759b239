"""Hostile and damaged files give a clear error or a page, within the limits of time and memory."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ocr_server.intake.errors import SourceError
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.opener import Opener
from ocr_server.intake.source import Source
from ocr_server.intake.workers import Workers
from tests.ocr_server.intake.bad_files import KINDS, Bad, good_files
from tests.ocr_server.intake.memory import budget
from tests.processes import children

TIMEOUT_S = 5.0
MEMORY = 1_500_000_000
HUNG_S = 120.0
"""Much longer than all calls for a file may take together, on a machine that is busy."""
SERVER_CPU_S = 5.0
"""CPU time that the server itself, which only copies pixels, may spend on a file: seconds."""
COUNTS = {"truncated": 130, "bombs": 45, "pdf_bombs": 17, "polyglots": 28, "wrong_types": 22, "sizes": 70}
"""Number of files of each kind."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers(count=1, timeout_s=TIMEOUT_S, memory_bytes=MEMORY)
    yield workers
    asyncio.run(workers.close())


@pytest.fixture(scope="module")
def opener(workers: Workers, limits: IntakeLimits) -> Opener:
    roomy = dataclasses.replace(limits, max_image_pixels=100_000_000, max_image_bytes=50_000_000, max_pages=1000)
    return Opener(roomy, ThreadPoolExecutor(1), workers, budget())


async def read(opener: Opener, data: bytes) -> list[tuple[int, int]]:
    """The sizes of the first two pages."""
    opened, sizes = await opener.open(Source(data, dpi=72)), []
    try:
        for number in range(min(opened.page_count, 2)):
            page = await opened.page(number)
            sizes.append(page.size)
            page.close()
        return sizes
    finally:
        await opened.close()


def peaks() -> list[int]:
    """Peak memory of each worker process, in bytes."""
    found = []
    for child in children():
        with (
            suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{child.pid}/status", encoding="ascii") as status,
        ):
            found += [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")]
    return found


async def problem_with(name: str, bad: Bad, opener: Opener) -> str | None:
    """What is wrong with the response to a bad file; None if it is as it should be."""
    started = time.process_time()
    try:
        async with asyncio.timeout(HUNG_S):
            sizes = await read(opener, bad.data)
    except SourceError as error:
        if (error.about, error.source) != ("file", 0):
            return f"{name}: {error!r} about {error.about} of source {error.source}"
        if error.code not in bad.codes:
            return f"{name}: {error.code}"
        if "0x" in error.message or "/tmp" in error.message:
            return f"{name}: {error.message}"
    except Exception as error:
        return f"{name}: {error!r}"
    else:
        if not bad.pages or not sizes:
            return f"{name}: pages of {sizes}"
    seconds = time.process_time() - started
    return f"{name}: {seconds:.1f} s of CPU time in the server" if seconds > SERVER_CPU_S else None


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind.endswith("bombs") else []) for kind in KINDS]
)
async def test_bad_files(kind: str, opener: Opener) -> None:
    problems, most = [], 0
    for name, bad in KINDS[kind]():
        problems.append(await problem_with(name, bad, opener))
        most = max([most, *peaks()])
    assert [problem for problem in problems if problem is not None] == []
    assert len(problems) == COUNTS[kind]
    assert most <= MEMORY


async def test_good_files_can_still_be_read_afterwards(opener: Opener) -> None:
    for name, data in good_files().items():
        assert await read(opener, data), name
