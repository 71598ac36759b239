"""What a supervisor needs of the engines that it restarts."""

from __future__ import annotations

from typing import Protocol

from ocr_server.reading.decoding import Decoding
from ocr_server.reading.engine import Engine


class RestartableEngine(Engine, Protocol):
    """The engine that a supervisor needs. If it becomes unavailable after loading, it has crashed."""

    @property
    def steps(self) -> int:
        """A number that grows with each step that the engine makes, whether or not a page gets text by it."""

    def has_work(self) -> bool:
        """Return whether any page has been handed to it, after it was prepared, and is not finished."""

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that its processes have used so far. None if it does not tell whether they compute."""

    async def failed_by_itself(self) -> bool:
        """After a crash or a hang, before `kill`: return whether the engine itself failed.

        If not, its processes were killed or stopped from outside, or the machine is short of memory.
        """

    async def loaded(self) -> None:
        """Start, and wait until it is ready. Raises the exception that made loading fail."""

    async def kill(self) -> None:
        """End all its processes, whatever state they are in."""


class Check(Protocol):
    """Checks decoding options without an engine."""

    async def __call__(self, decoding: Decoding) -> None:
        """Return if the options are valid. Raises as `Engine.check`."""

    async def close(self) -> None:
        """End what it has started."""
