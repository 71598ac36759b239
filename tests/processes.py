"""The processes that a server, or the tests' own process, has started; any of them may end while it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psutil


def started(command: str = "", *, by: psutil.Process | None = None) -> Iterator[psutil.Process]:
    """Those of all generations that live and have `command` in their command line.

    Args:
        by: whose they are; this process's if it isn't given.
    """
    with suppress(psutil.NoSuchProcess):
        for child in (by or psutil.Process()).children(recursive=True):
            if lives(child) and command in command_line(child):
                yield child


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Its words with spaces between; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
