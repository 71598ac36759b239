"""Restricts the system calls of a process to a list, with Linux's seccomp.

The filter is written by hand: libseccomp is not installed everywhere, and all that is needed is a list of numbers.
Whatever is not in the list fails with ENOSYS, as on a kernel that does not have it. The C library is prepared for that:
where it tries a new system call first, it goes on with the older one. See
https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import NamedTuple

_Numbers = tuple[int | None, int | None]
"""Numbers of a system call on x86-64 and on arm64; None where it does not exist."""


class Architecture(NamedTuple):
    audit: int
    """AUDIT_ARCH_* of linux/audit.h."""
    call: int
    """Number of the system call `seccomp`."""
    column: int
    """Its column in the tables below."""


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 317, 0),
    "aarch64": Architecture(0xC00000B7, 277, 1),
}

_ALLOWED: dict[str, _Numbers] = {
    # Files that are open, and what is known of others. Opening one is below.
    "read": (0, 63),
    "readv": (19, 65),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "write": (1, 64),
    "writev": (20, 66),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    # The channel to the server.
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    # Memory and threads.
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "brk": (12, 214),
    "madvise": (28, 233),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # Signals to this process, as they come.
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # Time, random numbers, and what is known of this process and the machine.
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrusage": (98, 165),
    "uname": (63, 160),
    "sysinfo": (99, 179),
}
"""Allowed with any arguments."""
_OPEN: _Numbers = (2, None)
_OPENAT: _Numbers = (257, 56)
_CLONE: _Numbers = (56, 220)
_FCNTL: _Numbers = (72, 25)
_PRLIMIT: _Numbers = (302, 261)

_CLONE_THREAD = 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL and F_DUPFD_CLOEXEC; others could send signals to other processes."""

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data
_SET_MODE_FILTER = 1
_TSYNC, _SPEC_ALLOW = 1 << 0, 1 << 2
"""The filter is for all threads, and must not make the CPU slower: the process has no secrets of its own."""

Instruction = tuple[int, int, int, int]
"""Code, jumps if true and if false (instructions to skip), and operand."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def restrict() -> bool:
    """Restrict the system calls of this process for good, and return whether the kernel can do so.

    It must not be able to gain privileges (`privileges.gain_no_more`).
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None or sys.maxsize < 2**32:
        return False
    return install(architecture, program(architecture))


def install(architecture: Architecture, instructions: list[Instruction]) -> bool:
    """Make the kernel run a filter for each system call of this process, and return whether it can do so."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    filter_ = ctypes.create_string_buffer(code, len(code))
    given = _Program(len(instructions), ctypes.addressof(filter_))
    called = ctypes.CDLL(None).syscall(architecture.call, _SET_MODE_FILTER, _TSYNC | _SPEC_ALLOW, ctypes.byref(given))
    return bool(called == 0)


def program(architecture: Architecture) -> list[Instruction]:
    """Return the filter. A system call of another architecture, such as a 32-bit one, kills the process."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    allow = (_RETURN, 0, 0, _ALLOW)
    made: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]

    def only_if(call: _Numbers, condition: list[Instruction]) -> None:
        """Add the rule for a system call that depends on its arguments. `condition` ends with a return."""
        if (number := call[architecture.column]) is not None:
            made.extend([(_JUMP_IF_EQUAL, 0, len(condition), number), *condition])

    for call, flags_at in ((_OPEN, 1), (_OPENAT, 2)):
        denied = (_RETURN, 0, 0, _ERRNO | errno.EACCES)
        only_if(call, [_argument(flags_at), (_JUMP_IF_BITS, 0, 1, _WRITING), denied, allow])
    only_if(_CLONE, [_argument(0), (_JUMP_IF_BITS, 1, 0, _CLONE_THREAD), refuse, allow])
    matches = [(_JUMP_IF_EQUAL, len(_FCNTL_COMMANDS) - at, 0, each) for at, each in enumerate(_FCNTL_COMMANDS)]
    only_if(_FCNTL, [_argument(1), *matches, refuse, allow])
    reading = [(_JUMP_IF_EQUAL, 0, 1, 0), allow, refuse]
    only_if(_PRLIMIT, [_argument(2), (_JUMP_IF_EQUAL, 1, 0, 0), refuse, _argument(2, upper=True), *reading])
    numbers = [number for call in _ALLOWED.values() if (number := call[architecture.column]) is not None]
    made += [(_JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    return [*made, refuse, allow]


def _argument(index: int, *, upper: bool = False) -> Instruction:
    """Return the instruction that loads one half of an argument. Both architectures are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + 4 * upper)
