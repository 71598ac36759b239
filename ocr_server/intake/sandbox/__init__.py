"""Takes rights away from a decoder process, with what the kernel offers to processes without privileges.

`enter` is called once, by the process itself, before it sees the first file of a client. This package imports nothing
but the standard library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from ocr_server.intake.sandbox import landlock, privileges, seccomp

Gap = Literal["files", "system calls"]
"""What the kernel does not restrict: which files are readable, or the system calls, and with them the network."""

FONTS = (
    "/usr/share/fonts",
    "/usr/share/X11/fonts/Type1",
    "/usr/share/X11/fonts/TTF",
    "/usr/local/share/fonts",
)
"""Where PDFium looks for the fonts that a PDF does not embed."""
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""What the dynamic linker reads when a decoder is imported."""

PROBE_S = 60.0
"""Time in seconds that `probe` may take."""


def enter() -> list[Gap]:
    """Take rights away from this process for good, and return what could not be restricted.

    From then on the process can compute, use the files that it has open, start threads, and read fonts and the code of
    decoders. It cannot open any other file or write to one, create sockets, start processes, or send signals. The
    process must have a single thread when it calls this.
    """
    privileges.gain_no_more()
    gaps: list[Gap] = []
    if not landlock.restrict(readable()):
        gaps.append("files")
    if not seccomp.restrict():  # last, since it also forbids the calls above
        gaps.append("system calls")
    return gaps


def readable() -> list[str]:
    """Return the files and folders that a decoder may read: fonts, shared libraries, and Python code.

    The folder of the checkout is not among them, which may contain the data of batches and a file of keys. Of the
    server, only its own package is, without which no other module of a decoder could be imported.
    """
    return [*FONTS, *LIBRARIES, *dict.fromkeys(_python_code())]


def _python_code() -> Iterator[str]:
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield sysconfig.get_path(name)
    for folder in sys.path:
        if os.path.basename(folder) in ("site-packages", "dist-packages", "lib-dynload"):
            yield folder
    yield str(Path(__file__).resolve().parents[2])


def probe() -> list[Gap]:
    """Return what this machine's kernel does not restrict, by trying it in another process. Raises OSError."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        capture_output=True,
        timeout=PROBE_S,
    )
    if done.returncode != 0:
        raise OSError(f"the process ended with {done.returncode}")
    gaps: list[Gap] = json.loads(done.stdout)
    return gaps


def explain(gaps: Iterable[Gap]) -> str:
    """Return a sentence for the log about what is not restricted; empty if everything is."""
    missing = {
        "files": "files (Landlock, which needs Linux 5.13)",
        "system calls": "the network and other system calls (seccomp)",
    }
    named = [missing[gap] for gap in gaps]
    if not named:
        return ""
    return f"This machine's kernel cannot cut decoder processes off from {' and '.join(named)}."
