"""The processes of vLLM's engine, as seen from the server: what they use, how they ended, and how to end them."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from ocr_server.engine.process import MACHINE_TROUBLE

SHARED_MEMORY = re.compile(r"/dev/shm/(psm_\w+)$", re.MULTILINE)
"""A shared memory segment in a process's memory map."""
END_SECONDS = 5.0
"""How long to wait for processes to end, in seconds. Before they end, the driver frees the GPU's memory."""
FROM_OUTSIDE = {-each for each in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
"""Exit statuses of processes that were killed, by a person, by the kernel for lack of memory, or by a supervisor."""
STATUS_UNKNOWN = 255
"""Exit status that multiprocessing gives if the process that it forks from has ended, too."""


def engine_cores() -> list[BaseProcess]:
    """Return vLLM's child processes: one engine core for each copy of the model."""
    return [child for child in multiprocessing.active_children() if child.name.startswith("EngineCore")]


def engine_processes(cores: Sequence[BaseProcess]) -> list[psutil.Process]:
    """Return `cores` and the processes that they have started."""
    found: list[psutil.Process] = []
    for core in cores:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(core.pid)
            found += [process, *process.children(recursive=True)]
    return found


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU time that `processes` have used so far, those that have ended excepted."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system
    return total


async def failed_by_itself(cores: Sequence[BaseProcess], processes: Sequence[psutil.Process], *, crashed: bool) -> bool:
    """Return whether an engine that crashed or hangs failed by itself, possibly because of what it was reading.

    If not, its processes were killed or stopped from outside, or the machine is short of memory.

    Args:
        cores: The engine cores, not killed yet.
        processes: All processes of the engine.
        crashed: Whether it crashed; otherwise it hangs.
    """
    if not crashed:
        return not any(map(_is_stopped, processes))
    until = time.monotonic() + END_SECONDS
    while all(core.exitcode is None for core in cores) and time.monotonic() < until:  # noqa: ASYNC110  # not of asyncio
        await asyncio.sleep(0.02)
    statuses = {core.exitcode for core in cores} - {None}
    # An engine that is asked to end, ends with status 0.
    return not statuses or not statuses <= {0, MACHINE_TROUBLE, STATUS_UNKNOWN, *FROM_OUTSIDE}


def shared_memory(processes: Sequence[psutil.Process]) -> set[str]:
    """Return the names of the shared memory segments that `processes` use. Killed processes do not remove them."""
    found: set[str] = set()
    for process in processes:
        with suppress(OSError):
            found.update(SHARED_MEMORY.findall(Path(f"/proc/{process.pid}/maps").read_text()))
    return found


def end(processes: Sequence[psutil.Process], segments: set[str]) -> None:
    """Kill `processes`, wait until they are gone, and remove their shared memory."""
    kill(processes)
    until = time.monotonic() + END_SECONDS
    while any(map(_is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    for name in segments:
        with suppress(OSError):  # usually it has been removed already
            segment = SharedMemory(name)
            segment.close()
            segment.unlink()


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill `processes` without waiting."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that the process id has not been reused


def _is_alive(process: psutil.Process) -> bool:
    # Not psutil's wait(), which would take the exit status that multiprocessing waits for.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_stopped(process: psutil.Process) -> bool:
    """Return whether the process is stopped by a signal, or waits for the disk: for memory that was swapped out."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP)
    except psutil.Error:
        return False
