"""Whatever a file tries: a clear error that names its parameter, or a page, in time, and in a process that holds."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ocr_server.errors import ApiError, SourceError, SourceTooLarge
from ocr_server.intake.document import Opener
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.workers import Workers
from tests.ocr_server.intake.bad_files import KINDS, Bad, good_files
from tests.processes import children

TIMEOUT_S = 5.0
MEMORY = 1_500_000_000


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers(count=1, timeout_s=TIMEOUT_S, memory_bytes=MEMORY)
    yield workers
    asyncio.run(workers.close())


@pytest.fixture(scope="module")
def opener(workers: Workers, limits: IntakeLimits) -> Opener:
    roomy = dataclasses.replace(limits, max_image_pixels=100_000_000, max_image_bytes=50_000_000, max_pages=1000)
    return Opener(roomy, ThreadPoolExecutor(1), workers)


async def read(opener: Opener, data: bytes) -> list[tuple[int, int]]:
    """The sizes of the first two pages."""
    opened = await opener.open(data, pages=None, dpi=72, password=None, param="file", pages_param="pages")
    try:
        return [(await opened.page(number)).image.size for number in range(min(opened.page_count, 2))]
    finally:
        await opened.close()


def peaks() -> list[int]:
    """Of the processes that decode, the most memory each has held: bytes."""
    found = []
    for child in children():
        with (
            suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{child.pid}/status", encoding="ascii") as status,
        ):
            found += [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")]
    return found


async def wrong_with(name: str, bad: Bad, opener: Opener) -> str | None:
    """What is not as it should be with the answer to a bad file; None if all is well."""
    started = time.monotonic()
    try:
        sizes = await read(opener, bad.data)
    except ApiError as error:
        if not isinstance(error, SourceError | SourceTooLarge) or error.param != "file":
            return f"{name}: {error!r} at {error.param}"
        if error.code not in bad.codes:
            return f"{name}: {error.code}"
        if "0x" in error.message or "/tmp" in error.message:
            return f"{name}: {error.message}"
    except Exception as error:
        return f"{name}: {error!r}"
    else:
        if not bad.pages or not sizes:
            return f"{name}: pages of {sizes}"
    seconds = time.monotonic() - started
    return f"{name}: {seconds:.1f} s" if seconds > 2 * TIMEOUT_S + 3 else None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
async def test_bad_files(kind: str, opener: Opener) -> None:
    found, most = [], 0
    for name, bad in KINDS[kind]():
        found.append(await wrong_with(name, bad, opener))
        most = max([most, *peaks()])
    assert [each for each in found if each is not None] == []
    assert len(found) > 10
    assert most <= MEMORY


async def test_good_files_are_read_after_all_that(opener: Opener) -> None:
    for name, data in good_files().items():
        assert await read(opener, data), name
