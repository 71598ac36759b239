"""What vLLM and torch take from the process's environment; set it before either is imported."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Settings

VLLM_LOG_LEVELS = {"debug": "INFO", "info": "ERROR", "warning": "ERROR", "error": "ERROR"}
"""vLLM tells a lot: what it calls information helps when something is being looked for, not before."""

FEW_CORES = 4
"""vLLM keeps a core free of the model on a CPU. Of so few, none can be spared: measured on 2, the model reads 1.7
times as many pages with both."""


def set_up(settings: Settings) -> None:
    """Set what isn't set already; child processes inherit it."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.CPU_KV_CACHE_GIB))
    if (os.cpu_count() or 1) <= FEW_CORES:
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads: it must not fork
    os.environ.setdefault("VLLM_LOGGING_LEVEL", VLLM_LOG_LEVELS[settings.LOG_LEVEL])
    if " " in sys.prefix:  # torch gives its own folder to the compiler unquoted: what vLLM compiles would fail
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # documents are private: nothing is reported
