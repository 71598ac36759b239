"""What a file that has taken over a decoder process might try. Runs in the sandbox, and prints what came of each try.

python attack.py PID PORT SECRET FOLDER
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ocr_server.intake import sandbox

_PTRACE_ATTACH, _PROCESS_VM_READV, _PTRACE, _MOUNT, _BPF, _IO_URING_SETUP, _KEYCTL = 16, 310, 101, 165, 321, 425, 250


def main(pid: int, port: int, secret: str, folder: str) -> None:
    server = f"/proc/{pid}"
    libc = ctypes.CDLL(None, use_errno=True)
    own = socket.socketpair()
    gaps = sandbox.enter()

    def call(number: int, *arguments: int) -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "system call")

    attempts: dict[str, Callable[[], object]] = {
        "read the server's environment": Path(server, "environ").read_bytes,
        "read the server's memory": lambda: os.open(f"{server}/mem", os.O_RDONLY),
        "list the server's descriptors": lambda: os.listdir(f"{server}/fd"),
        "read its own environment": Path("/proc/self/environ").read_bytes,
        "read accounts": Path("/etc/passwd").read_bytes,
        "read a secret": Path(secret).read_bytes,
        "list a folder": lambda: os.listdir(folder),
        "read the settings": Path(sys.path[1], "config.py").read_bytes,
        "connect": lambda: socket.create_connection(("127.0.0.1", port), timeout=5),
        "resolve a name": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "open a pair of sockets": socket.socketpair,
        "send a descriptor": lambda: socket.send_fds(own[0], [b"x"], [0]),
        "execute a program": lambda: os.execv("/bin/true", ["true"]),
        "start a process": lambda: subprocess.run(["/bin/true"]),
        "fork": os.fork,
        "write a file": lambda: Path(folder, "written").write_bytes(b"x"),
        "append to a file": lambda: os.open(secret, os.O_WRONLY | os.O_APPEND),
        "truncate a file": lambda: os.truncate(secret, 0),
        "remove a file": lambda: os.unlink(secret),
        "rename a file": lambda: os.rename(secret, secret + "x"),
        "link a file": lambda: os.symlink("/etc", folder + "/etc"),
        "change rights": lambda: os.chmod(secret, 0o777),
        "make a folder": lambda: os.mkdir(folder + "/made"),
        "make a memory file": lambda: os.memfd_create("x"),
        "kill the server": lambda: os.kill(pid, 0),
        "raise its limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2),
        "attach to the server": lambda: call(_PTRACE, _PTRACE_ATTACH, pid, 0, 0),
        "copy the server's memory": lambda: call(_PROCESS_VM_READV, pid, 0, 0, 0, 0, 0),
        "mount": lambda: call(_MOUNT, 0, 0, 0, 0, 0),
        "load a program into the kernel": lambda: call(_BPF, 0, 0, 0),
        "set up a ring": lambda: call(_IO_URING_SETUP, 1, 0),
        "use keys": lambda: call(_KEYCTL, 0, -3, 0),
    }
    allowed = {
        "start a thread": _thread,
        "allocate memory": lambda: mmap.mmap(-1, 1 << 20).close(),
        "list fonts": lambda: [os.listdir(folder) for folder in sandbox.FONTS if os.path.exists(folder)],
        "import a decoder": lambda: [__import__(name) for name in ("pi_heif", "PIL.AvifImagePlugin", "PIL.ImageCms")],
        "import PDFium": lambda: __import__("ocr_server.intake.pdf_worker"),
        "use its channel": lambda: (own[0].sendall(b"x"), own[1].recv(1)),
    }
    print(json.dumps([gaps, *({name: _tried(each) for name, each in tries.items()} for tries in (attempts, allowed))]))


def _tried(attempt: Callable[[], object]) -> str:
    """Return why an attempt failed, empty if it succeeded."""
    try:
        attempt()
    except (OSError, ImportError) as error:
        return repr(error)
    return ""


def _thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
