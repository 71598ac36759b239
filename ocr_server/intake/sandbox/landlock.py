"""Restricts which files a process can open, and which TCP ports it can use, with Linux's Landlock.

Python's standard library does not have these system calls, and the bindings on PyPI are not maintained. See
https://docs.kernel.org/userspace-api/landlock.html.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on all architectures."""
_VERSION = 1 << 0
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Version → number of access rights to files that exist from then on."""
_TCP, _TCP_SINCE = 0b11, 4
"""Binding and connecting."""
_SCOPES, _SCOPES_SINCE = 0b11, 6
"""Abstract unix sockets and signals."""


def restrict(readable: Iterable[str]) -> bool:
    """Let this thread, and those that it starts, only read `readable`; and return whether the kernel can do so.

    What is open already stays usable. Signals, TCP and abstract unix sockets are forbidden, too, where the kernel is
    new enough for it.

    Args:
        readable: Files, and folders with everything beneath them. Those that do not exist are left out.
    """
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    rights = (1 << max(count for since, count in _FILE_RIGHTS.items() if version >= since)) - 1
    fields = [rights]
    if version >= _TCP_SINCE:
        fields.append(_TCP)
    if version >= _SCOPES_SINCE:
        fields.append(_SCOPES)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            with contextlib.suppress(OSError):
                _allow(libc, ruleset, path)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    """Add `path` to what is readable. Raises OSError if it does not exist."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = _READ_FILE | _READ_DIR if stat.S_ISDIR(os.fstat(place).st_mode) else _READ_FILE
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)
