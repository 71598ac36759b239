"""Find the child processes of a server or of the tests. Any of them may end at any time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psutil


def children(command: str = "") -> Iterator[psutil.Process]:
    """Yield the running children of this process that have `command` in their command line.

    Only direct children, because a server that runs as one of them has the same kinds of processes.
    """
    return _found(psutil.Process(), command, recursive=False)


def descendants(of: int, command: str = "") -> Iterator[psutil.Process]:
    """Yield the running descendants of a process that have `command` in their command line.

    Args:
        of: id of the process.
        command: part of the command line.
    """
    with suppress(psutil.NoSuchProcess):
        yield from _found(psutil.Process(of), command, recursive=True)


def is_running(process: psutil.Process) -> bool:
    """Return whether a process is running, and is not a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Return the command line of a process, joined with spaces; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _found(parent: psutil.Process, command: str, *, recursive: bool) -> Iterator[psutil.Process]:
    for child in parent.children(recursive=recursive):
        if is_running(child) and command in command_line(child):
            yield child
