"""What runs in the processes that decode pictures and open PDFs: hostile files can crash, hang or bloat those alone.

The server starts one as `python -m ocr_server.intake.worker CHANNEL MEMORY BYTES`. CHANNEL is a socket for a line of
JSON each way; MEMORY a file in memory that carries picture files in and pixels out; both are file descriptors. BYTES
is the address space that the process may take.

A call is `[function, arguments, size]`, of one of the modules `*_worker`; a picture file of `size` bytes, unless that
is null, is in MEMORY. The answer is `"taken"`, at once, and then one of

- `{"value": …, "size": [width, height] or null}`, with so many pixels in MEMORY, RGB, 3 bytes each;
- `{"refused": [class, arguments, attributes]}`, an error that is the document's;
- `{"failed": text}`, one that was not foreseen.

Functions named `forget` have no answer. Answers are JSON rather than pickles for the server's sake, which reads them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
from typing import Any, NamedTuple

from ocr_server.intake.errors import SourceError
from ocr_server.intake.pdf_errors import PdfError

TAKEN = "taken"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pixels(NamedTuple):
    """A page as functions return it, in place of or beside other values."""

    width: int
    height: int
    rows: bytes
    """From top to bottom, RGB, 3 bytes a pixel."""


def main(channel: int, memory: int, memory_bytes: int) -> None:
    """Answer calls until the server closes the channel."""
    limit(memory_bytes)
    importlib.import_module("ocr_server.intake.picture_worker")  # now, so that the first call is no slower than others
    with socket.socket(fileno=channel) as connection, connection.makefile("rb") as calls:
        _send(connection, TAKEN)
        # What decoders print about hostile files would fill the server's log.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        for line in calls:
            function, arguments, size = json.loads(line)
            if function.endswith(".forget"):
                _function(function)(*arguments)
                continue
            _send(connection, TAKEN)
            _send(connection, answer(memory, function, arguments, size))


def limit(memory_bytes: int) -> None:
    """Bound what this process may take, and how long it lives: as long as the thread that started it."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))  # files in memory count there
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the document
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def answer(memory: int, function: str, arguments: list[Any], size: int | None) -> dict[str, Any]:
    """What becomes of a call."""
    try:
        if size is not None:
            _function("picture_worker.take")(os.pread(memory, size, 0))
        value = _function(function)(*arguments)
        value, pixels = value if isinstance(value, tuple) else (value, None)
        if pixels is None:
            return {"value": value, "size": None}
        store(memory, pixels.rows)
        return {"value": value, "size": [pixels.width, pixels.height]}
    except (SourceError, PdfError) as error:
        return {"refused": [type(error).__name__, error.args, vars(error)]}
    except Exception as error:
        return {"failed": repr(error)[:1000]}


def _function(name: str) -> Any:
    """The function `module.name`; what it needs is imported when it is first called."""
    module, _, name = name.partition(".")
    return getattr(importlib.import_module(f"ocr_server.intake.{module}"), name)


def store(memory: int, data: bytes) -> None:
    """Write `data` to the beginning of the file that the server and a process share."""
    left, at = memoryview(data), 0
    while at < len(data):
        at += os.pwrite(memory, left[at:], at)


def _send(connection: socket.socket, value: Any) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
