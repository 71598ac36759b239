"""The processes that a server, or the tests' own process, has started; any of them may end while it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psutil


def children(command: str = "") -> Iterator[psutil.Process]:
    """Those that this process has started itself, that live and have `command` in their command line.

    Not their children: a server that runs beside has the same kinds of processes.
    """
    return _found(psutil.Process(), command, recursive=False)


def descendants(of: int, command: str = "") -> Iterator[psutil.Process]:
    """Those of all generations that live and have `command` in their command line.

    Args:
        of: whose they are, its id.
    """
    with suppress(psutil.NoSuchProcess):
        yield from _found(psutil.Process(of), command, recursive=True)


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


def _found(parent: psutil.Process, command: str, *, recursive: bool) -> Iterator[psutil.Process]:
    for child in parent.children(recursive=recursive):
        if lives(child) and command in command_line(child):
            yield child
