"""Compiles JSON schemas and grammars in a process that can be killed, before the engine gets them.

Some small ones take minutes to compile, or gigabytes. The engine could not be interrupted in this, and would be
killed with all pages that it reads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ocr_server.errors import DecodingError, Unavailable

logger = logging.getLogger(__name__)

KINDS = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "grammar": "grammar",
}
"""Field of `Decoding` with what the answer follows → its name in messages."""
MEMORY_BYTES = 1_000_000_000
"""Memory that a schema may take to compile."""
START_SECONDS = 120.0
"""Time after which starting the process is given up. It takes a few seconds, mostly to import torch."""
WALL = 20
"""Time that a schema may take altogether, as a multiple of its CPU time. A machine that is slower is overloaded."""
MAX_WAITING = 32
"""Number of schemas that wait to be compiled; further ones are refused."""
REMEMBERED = 1000
"""Number of schemas whose result is remembered."""
RETRY_AFTER = 10.0
_LONGEST_ANSWER = 65_536
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME")
"""Environment variables that the process inherits. It must not see keys and tokens."""

_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Schemas:
    """Tells which JSON schemas and grammars the engine can compile within the limits. One for each engine."""

    def __init__(self, tokenizer: Callable[[], Path], seconds: float, memory_bytes: int = MEMORY_BYTES) -> None:
        """Args:
        tokenizer: Returns the path of the model's tokenizer.json. Called in a thread, when it is first needed.
        seconds: Limit of the CPU time for compiling a schema.
        memory_bytes: Limit of the memory for it.
        """
        self._tokenizer = tokenizer
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        """Hash of each schema → why it cannot be used."""
        self._closed = False

    async def check(self, source: Mapping[str, Any] | Sequence[str] | str, kind: str = "json_schema") -> None:
        """Return if the engine can use what the answer is to follow.

        Args:
            source: A JSON schema, a regular expression, choices, or a grammar.
            kind: Which of these it is, one of `KINDS`.

        Raises:
            DecodingError: It cannot be compiled, or takes too much time or memory.
            Unavailable: The process cannot be started, or too many schemas are waiting.
        """
        text = json.dumps([kind, source if isinstance(source, str) else json.dumps(source)])
        key = hashlib.blake2b(text.encode()).digest()
        if key not in self._known:
            if self._waiting >= MAX_WAITING:
                raise Unavailable("Too many JSON schemas are being compiled; try again later.", retry_after=RETRY_AFTER)
            self._waiting += 1
            try:
                async with self._turn:
                    if key not in self._known:
                        self._known[key] = await self._reason(text, KINDS[kind])
                        if len(self._known) > REMEMBERED:
                            self._known.popitem(last=False)
            finally:
                self._waiting -= 1
        self._known.move_to_end(key)
        if (reason := self._known[key]) is not None:
            code = "invalid_schema" if kind == "json_schema" else "invalid_grammar"
            raise DecodingError(f"{reason}.", field=kind, code=code)

    async def close(self) -> None:
        """Kill the process, also while it compiles, and wait until it has ended. Idempotent."""
        self._closed = True
        await self._stop()

    async def _reason(self, source: str, name: str) -> str | None:
        """Return why something cannot be used, None if it can. Raises Unavailable."""
        try:
            process = self._process or await self._start()
            assert process.stdin is not None
            process.stdin.write(source.encode() + b"\n")
            async with asyncio.timeout(WALL * self._seconds):
                answer = await _line(process)
                if not answer:
                    raise OSError("the process has ended")
                status, reason = json.loads(answer)
        except (OSError, ValueError) as error:  # a TimeoutError is an OSError
            await self._stop()
            logger.warning("The process that compiles JSON schemas was lost: %r", error)
            raise self._busy() from error
        except BaseException:  # also if cancelled: the process is still working
            await self._stop()
            raise
        if status == 0:
            return None if reason is None else f"The {name} {reason}"
        if status in (-signal.SIGKILL, -signal.SIGTERM):  # from outside, possibly because the machine has no memory
            raise self._busy()
        logger.warning("A %s exceeded the limits when it was compiled (exit status %s)", name, status)
        if status == -signal.SIGXCPU:
            return f"The {name} takes more than {self._seconds:g} seconds to compile; simplify it"
        return f"The {name} takes too much memory to compile; simplify it"

    async def _start(self) -> asyncio.subprocess.Process:
        if self._closed:
            raise Unavailable("The server is shutting down.")
        tokenizer = await asyncio.to_thread(self._tokenizer)
        arguments = (
            "-P",
            "-m",
            "ocr_server.engine.schema_worker",
            tokenizer,
            str(self._seconds),
            str(self._memory_bytes),
        )
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            limit=_LONGEST_ANSWER,
            env=environment | _ENVIRONMENT,
            process_group=0,  # Ctrl-C must reach the server only
        )
        async with asyncio.timeout(START_SECONDS):
            if not await _line(self._process):
                raise OSError("the process ended while it started")
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @staticmethod
    def _busy() -> Unavailable:
        return Unavailable("The JSON schema cannot be compiled now; try again later.", retry_after=RETRY_AFTER)


async def _line(process: asyncio.subprocess.Process) -> bytes:
    """Return the next line of the process, empty if it has ended."""
    assert process.stdout is not None
    return await process.stdout.readline()
