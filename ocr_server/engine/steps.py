"""Counts the steps that vLLM's engine makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.metrics.loggers import StatLoggerBase

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats


class Steps:
    """The number of steps so far. vLLM reports each step of the scheduler, also one in which no page gets a token."""

    def __init__(self) -> None:
        self.count = 0

    def logger(self, config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """Return a new logger for vLLM, one for each copy of the model, that counts here."""
        return _StepLogger(self)


class _StepLogger(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        self._steps.count += 1

    def log_engine_initialized(self) -> None:
        """There is nothing to log."""
