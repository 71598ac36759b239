"""Starts worker processes, with as little of the server's environment as they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""Environment variables that the processes inherit. They must not see keys and tokens."""
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # an arena for each thread would take too much address space
    "MALLOC_MMAP_THRESHOLD_": "32000000",  # the memory of one page is reused for the next
    "MALLOC_TRIM_THRESHOLD_": "64000000",
}


def spawn(channel: int, memory: int, memory_bytes: int) -> subprocess.Popen[bytes]:
    """Start a process that inherits these file descriptors. Raises OSError.

    This does not use multiprocessing, which would import the main module of the server and with it vLLM. It must be
    called in the thread of the event loop, since the process ends with the thread that started it.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ocr_server.intake.worker", str(channel), str(memory), str(memory_bytes)],
        pass_fds=(channel, memory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ENVIRONMENT,
        # Ctrl-C must reach the server only. A session of its own would do that, too, but Linux divides the CPU evenly
        # among sessions (sched_autogroup): the worker would get as much as the server and the engine together.
        process_group=0,
    )


def cpu_seconds(process: subprocess.Popen[bytes] | None) -> float:
    """Return the processor time that a process has used, in seconds; 0 if there is none or it has ended."""
    if process is None:
        return 0.0
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
