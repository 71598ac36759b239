"""Tells an engine that hangs from one that takes its time."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_STEP = 10
"""How many times as long the silence may be if the engine's processes are computing, or pages are being prepared."""
COMPUTING = 0.02
"""CPU time per second, of all its processes together, from which an engine is taken to be computing."""
LONGEST_GAP = 1.0
"""Time that one check can add to the silence, in seconds. A check that comes later than that was held up itself: the
process was stopped or its event loop was busy, so the engine's steps could not be noticed."""


class Liveness:
    """How long an engine that has work has shown no sign of life.

    The signs are the engine's own steps, not the text that clients are shown: an answer that is not streamed shows no
    text until its end, and an engine that waits for a grammar makes steps without any. A single step takes minutes if
    many large pages are encoded on a CPU. Such an engine uses CPU time, so it gets `LONGEST_STEP` times as long.
    """

    def __init__(self, timeout: float) -> None:
        """Args:
        timeout: Silence after which an engine is taken to hang, in seconds.
        """
        self._timeout = timeout
        self._signs: object = None
        self._checked = 0.0
        self._silent = 0.0
        """Seconds without a sign."""
        self._measured: float | None = None
        """The engine's CPU time at the beginning of the interval in which it is measured."""
        self._measured_at = 0.0
        """Silence at the beginning of that interval."""

    def reset(self, now: float) -> None:
        """Start again at `now`, in seconds: the engine is new, or no page waits."""
        self._checked, self._silent, self._measured, self._measured_at = now, 0.0, None, 0.0

    def hangs(self, now: float, signs: object, *, has_work: bool, cpu_seconds: Callable[[], float | None]) -> bool:
        """Return whether the engine hangs. Call this regularly while pages wait.

        Args:
            now: The time in seconds.
            signs: A value that changes whenever the engine shows a sign of life.
            has_work: Whether any of the pages has been handed to the engine. If not, this process is preparing them.
            cpu_seconds: Returns the CPU time that the engine's processes have used so far, or None if it says nothing
                about their work. Called only after a long silence.
        """
        if signs != self._signs:
            self._signs = signs
            self.reset(now)
            return False
        self._silent += min(now - self._checked, LONGEST_GAP)
        self._checked = now
        if self._silent - self._measured_at < self._timeout / 2:
            return False
        before, since = self._measured, self._silent - self._measured_at
        self._measured, self._measured_at = cpu_seconds(), self._silent
        if self._silent < self._timeout:
            return False
        if self._silent >= LONGEST_STEP * self._timeout:
            return True
        if not has_work:
            return False
        if before is None or self._measured is None:
            return True
        return self._measured - before < COMPUTING * since
