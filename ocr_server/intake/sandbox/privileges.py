"""Attributes of a process that decide over its privileges: see prctl(2)."""

from __future__ import annotations

import ctypes

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def gain_no_more() -> None:
    """Give up the right to gain privileges by executing a program, without which the kernel restricts no process."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def close_to_others() -> None:
    """Make the memory and the environment variables of this process unreadable for other processes of its user.

    It can no longer be attached to by a debugger or a profiler of that user, and leaves no core dump. Processes that
    it starts are not affected.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))
