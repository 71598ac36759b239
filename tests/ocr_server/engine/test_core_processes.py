"""Why an engine's processes ended, and what they use."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from ocr_server.engine.core_processes import cpu_seconds, end, failed_by_itself
from ocr_server.engine.process import MACHINE_TROUBLE, is_machine_trouble


def started(function: Callable[..., Any], *args: Any) -> multiprocessing.context.SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=function, args=args, daemon=True)
    process.start()
    return process


@pytest.mark.parametrize(
    ("function", "argument", "by_itself"),
    [
        (os._exit, 1, True),
        (signal.raise_signal, signal.SIGSEGV, True),
        (signal.raise_signal, signal.SIGABRT, True),
        (signal.raise_signal, signal.SIGKILL, False),
        (signal.raise_signal, signal.SIGTERM, False),
        (os._exit, 0, False),
        (os._exit, MACHINE_TROUBLE, False),
    ],
)
async def test_how_a_process_ended_tells_why(function: Callable[..., Any], argument: int, by_itself: bool) -> None:
    core = started(function, argument)
    assert await failed_by_itself([core], [], crashed=True) is by_itself


async def test_one_copy_that_failed_takes_the_others_with_it() -> None:
    cores = [started(os._exit, 1), started(signal.raise_signal, signal.SIGTERM)]
    for core in cores:
        core.join()
    assert await failed_by_itself(cores, [], crashed=True)


async def test_a_stopped_process_does_not_hang_by_itself() -> None:
    core = started(time.sleep, 600)
    process = psutil.Process(core.pid)
    try:
        assert await failed_by_itself([core], [process], crashed=False)
        process.suspend()
        while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110  # nothing tells when
            await asyncio.sleep(0.01)
        assert not await failed_by_itself([core], [process], crashed=False)
    finally:
        end([process], set())
    assert not psutil.pid_exists(core.pid or 0) or process.status() == psutil.STATUS_ZOMBIE
    assert cpu_seconds([process]) >= 0
    core.join()


def test_the_cpu_time_of_processes_grows_while_they_compute() -> None:
    this = psutil.Process()
    before = cpu_seconds([this])
    assert before > 0
    while cpu_seconds([this]) < before + 0.1:
        sum(range(100_000))
    core = started(os._exit, 0)
    gone = psutil.Process(core.pid)
    core.join()
    assert cpu_seconds([gone]) == 0


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.EMFILE, "too many files"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (OSError(errno.ENOENT, "no such file"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_for_lack_of_memory_or_files_are_trouble_of_the_machine(error: Exception, machine: bool) -> None:
    assert is_machine_trouble(error) is machine


def test_torch_says_that_there_is_no_memory_in_words_that_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_machine_trouble(caught.value)
