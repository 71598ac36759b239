"""What a decoder process cannot do, tried from inside."""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocr_server.intake import sandbox
from ocr_server.intake.sandbox import seccomp

ROOT = Path(__file__).resolve().parents[4]
ATTACK = Path(__file__).with_name("attack.py")


def run(*arguments: str, before: Callable[[], object] | None = None) -> Any:
    """Run the server's Python with these arguments, and return its output as JSON."""
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        env={"PYTHONPATH": str(ROOT), "SECRET": "in the environment"},
        capture_output=True,
        text=True,
        preexec_fn=before,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls")
def test_nothing_but_decoding_is_possible(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        gaps, attempts, allowed = run(str(ATTACK), str(os.getpid()), str(port), str(secret), str(tmp_path))
    if gaps:
        pytest.skip(sandbox.explain(gaps))
    assert [name for name, failed in attempts.items() if not failed] == []
    assert {name: failed for name, failed in allowed.items() if failed} == {}
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("secret", "secret")]


def refusing(*calls: int) -> Callable[[], None]:
    """Return a function that makes these system calls fail in its process, as on a kernel without them."""

    def refuse() -> None:
        sandbox.privileges.gain_no_more()
        architecture = seccomp.ARCHITECTURES[platform.machine()]
        allow, refused = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | errno.ENOSYS)
        numbers = [(0x15, len(calls) - at, 0, number) for at, number in enumerate(calls)]
        assert seccomp.install(architecture, [(0x20, 0, 0, 0), *numbers, allow, refused])

    return refuse


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ([444], ["files"]),
        ([seccomp.ARCHITECTURES[platform.machine()].call], ["system calls"]),
        ([444, seccomp.ARCHITECTURES[platform.machine()].call], ["files", "system calls"]),
    ],
)
def test_what_an_old_kernel_lacks_is_reported(missing: list[int], expected: list[str]) -> None:
    complete = run("-m", "ocr_server.intake.sandbox")
    if complete:
        pytest.skip(sandbox.explain(complete))
    assert run("-m", "ocr_server.intake.sandbox", before=refusing(*missing)) == expected


def test_the_explanation_names_what_is_not_restricted() -> None:
    assert sandbox.explain([]) == ""
    assert "files" in sandbox.explain(["files"])
    assert "network" not in sandbox.explain(["files"])
    assert "network" in sandbox.explain(["files", "system calls"])


def test_a_probe_changes_nothing_here() -> None:
    assert sandbox.probe() == run("-m", "ocr_server.intake.sandbox")
    assert list(Path("/etc").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process of another user")
def test_other_processes_of_the_user_cannot_read_a_closed_one() -> None:
    code = (
        "import ctypes, os, sys; from ocr_server.intake.sandbox.privileges import close_to_others\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # as after execve; setuid has closed it
        "if sys.argv[1] == 'closed': close_to_others()\n"
        "parent, (reading, writing) = os.getpid(), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.execv('/bin/cat', ['cat', f'/proc/{parent}/environ'])\n"
        "os.wait(); print(open('/proc/self/stat').read()[:1])"
    )
    for state in ("open", "closed"):
        done = subprocess.run(
            [sys.executable, "-c", code, state],
            env={"PYTHONPATH": str(ROOT), "SECRET": "sesame"},
            capture_output=True,
            text=True,
        )
        assert ("sesame" in done.stdout) == (state == "open")
        assert ("Permission denied" in done.stderr) == (state == "closed")


def test_the_folder_of_the_server_is_not_readable() -> None:
    """It may contain the data of batches, and a file of keys."""
    for folder in sandbox.readable():
        assert not ROOT.is_relative_to(folder), folder


class TestFilter:
    """The filter, interpreted here, for both architectures."""

    @staticmethod
    def verdict(name: str, number: int, *arguments: int) -> int:
        architecture = seccomp.ARCHITECTURES[name]
        data = number.to_bytes(4, "little") + architecture.audit.to_bytes(4, "little") + bytes(8)
        data += b"".join(value.to_bytes(8, "little") for value in arguments) + bytes(8 * (6 - len(arguments)))
        instructions = seccomp.program(architecture)
        at, loaded = 0, 0
        while True:
            code, if_true, if_false, operand = instructions[at]
            at += 1
            if code == 0x20:
                loaded = int.from_bytes(data[operand : operand + 4], "little")
            elif code == 0x15:
                at += if_true if loaded == operand else if_false
            elif code == 0x45:
                at += if_true if loaded & operand else if_false
            else:
                assert code == 0x06
                return operand

    ALLOW, NO_CALL, DENIED = 0x7FFF0000, 0x00050000 | errno.ENOSYS, 0x00050000 | errno.EACCES

    @pytest.mark.parametrize(
        ("name", "openat", "clone", "fcntl", "prlimit", "read", "exit", "socket", "execve", "clone3"),
        [("x86_64", 257, 56, 72, 302, 0, 231, 41, 59, 435), ("aarch64", 56, 220, 25, 261, 63, 94, 198, 221, 435)],
    )
    def test_calls(
        self,
        name: str,
        openat: int,
        clone: int,
        fcntl: int,
        prlimit: int,
        read: int,
        exit: int,
        socket: int,
        execve: int,
        clone3: int,
    ) -> None:
        for number in (read, exit):
            assert self.verdict(name, number) == self.ALLOW
        for number in (socket, execve, clone3, 5000, 0x40000000 + read):
            assert self.verdict(name, number) == self.NO_CALL
        assert self.verdict(name, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == self.ALLOW
        for writing in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDONLY | os.O_TRUNC):
            assert self.verdict(name, openat, 0, 0, writing) == self.DENIED
        assert self.verdict(name, clone, 0x3D0F00) == self.ALLOW
        assert self.verdict(name, clone, 17) == self.NO_CALL
        assert self.verdict(name, fcntl, 1, 1030) == self.ALLOW
        assert self.verdict(name, fcntl, 1, 8) == self.NO_CALL  # F_SETOWN
        assert self.verdict(name, prlimit, 0, 9, 0) == self.ALLOW
        for pointer in (1, 1 << 40):
            assert self.verdict(name, prlimit, 0, 9, pointer) == self.NO_CALL

    def test_another_architecture_is_killed(self) -> None:
        instructions = seccomp.program(seccomp.ARCHITECTURES["x86_64"])
        assert instructions[:3] == [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, 0x80000000)]
