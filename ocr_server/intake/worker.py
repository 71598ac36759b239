"""Main program of the worker processes, which decode pictures and render PDFs.

A hostile file can only crash its worker process, make it hang or make it run out of memory, not the server.

The server starts a worker as `python -m ocr_server.intake.worker CHANNEL MEMORY BYTES`. CHANNEL is the file descriptor
of a socket, over which both sides send lines of JSON. MEMORY is the file descriptor of a memory file, through which
picture files come in and pixels go out. BYTES is the limit of the address space of the process.

When the process is ready, it sends the list of what the kernel could not take away from it (`sandbox.enter`).

A call is the line `[function, arguments, given]`, where the function is one of a module `*_worker`. `given` says which
file comes with it: a number is the size in bytes of a picture file in MEMORY, `"descriptor"` means that the descriptor
of a file was sent with the line, and null that the process has the file already or needs none. The process first
responds with `"taken"`, and then with one of

- `{"value": …, "size": [width, height] or null}`; with a size, MEMORY contains the pixels, RGB, 3 bytes each;
- `{"refused": [class, arguments, attributes]}`: an error of the document;
- `{"exhausted": text}`: the machine has run out of something, which is not the document's fault;
- `{"failed": text}`: an unexpected error.

Functions named `forget` have no response. Responses are JSON and not pickles, so that a compromised worker cannot make
the server run code.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ocr_server.errors import out_of_resources
from ocr_server.intake import sandbox
from ocr_server.intake.errors import SourceError
from ocr_server.intake.pdf_errors import PdfError

TAKEN = "taken"
DESCRIPTOR = "descriptor"
_LONGEST_READ = 65_536
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pixels(NamedTuple):
    """A page as the functions of the workers return it, alone or with other values."""

    width: int
    height: int
    rows: bytes
    """Rows from top to bottom, RGB, 3 bytes per pixel."""


def main(channel: int, memory: int, memory_bytes: int) -> None:
    """Respond to calls until the server closes the channel."""
    limit(memory_bytes)
    importlib.import_module("ocr_server.intake.picture_worker")  # now, so that the first call is as fast as the others
    # Decoders print warnings about hostile files, which would flood the log of the server.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    with socket.socket(fileno=channel) as connection:
        _send(connection, sandbox.enter())
        for call, file in _calls(connection):
            function, arguments, given = call
            if function.endswith(".forget"):
                _function(function)(*arguments)
                continue
            _send(connection, TAKEN)
            _send(connection, answer(memory, function, arguments, given if file is None else file))


def _calls(connection: socket.socket) -> Iterator[tuple[Any, io.FileIO | None]]:
    """Yield the calls until the server closes the channel, each with the file whose descriptor was sent with it."""
    received, descriptors = b"", []
    while True:
        while b"\n" not in received:
            data, more, _, _ = socket.recv_fds(connection, _LONGEST_READ, 1)
            if not data:
                return
            received += data
            descriptors += more
        line, _, received = received.partition(b"\n")
        call = json.loads(line)
        yield call, io.FileIO(descriptors.pop(0)) if call[2] == DESCRIPTOR else None


def limit(memory_bytes: int) -> None:
    """Limit the memory of this process, and make it end together with the thread that started it."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))  # this also applies to memory files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would contain the document
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def answer(memory: int, function: str, arguments: list[Any], given: int | io.FileIO | None) -> dict[str, Any]:
    """Call the function and return the response.

    Args:
        given: The size of the picture file in `memory`, the file of a document, or None if the function needs neither.
    """
    try:
        if isinstance(given, io.FileIO):
            with given:
                _function("pdf_worker.take")(given.fileno())
        elif given is not None:
            _function("picture_worker.take")(os.pread(memory, given, 0))
        value = _function(function)(*arguments)
        value, pixels = value if isinstance(value, tuple) else (value, None)
        if pixels is None:
            return {"value": value, "size": None}
        try:
            store(memory, pixels.rows)
        except OSError as error:  # the memory file does not count as memory of this process
            if out_of_resources(error) is None:
                raise
            return {"exhausted": repr(error)}
        return {"value": value, "size": [pixels.width, pixels.height]}
    except (SourceError, PdfError) as error:
        return {"refused": [type(error).__name__, error.args, vars(error)]}
    except Exception as error:
        return {"failed": repr(error)[:1000]}


def _function(name: str) -> Any:
    """Return the function `module.name`. Modules are imported when they are first used."""
    module, _, name = name.partition(".")
    return getattr(importlib.import_module(f"ocr_server.intake.{module}"), name)


def store(memory: int, data: bytes) -> None:
    """Write `data` to the beginning of the memory file that the server and a worker share."""
    left, at = memoryview(data), 0
    while at < len(data):
        at += os.pwrite(memory, left[at:], at)


def _send(connection: socket.socket, value: Any) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
