"""Environment variables that vLLM and torch read. Set them before either is imported."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Settings

VLLM_LOG_LEVELS = {"debug": "INFO", "info": "ERROR", "warning": "ERROR", "error": "ERROR"}
"""Our log level → vLLM's. vLLM logs much at level INFO, which helps only to investigate a problem."""

FEW_CORES = 4
"""On machines with at most this many cores, vLLM's build for the CPU reserves none for itself, as it does by default.
Measured on 2 cores: the model reads 1.7 times as many pages with both."""


def set_up(settings: Settings) -> None:
    """Set the variables that are not set already. Child processes inherit them."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.CPU_KV_CACHE_GIB))
    if (os.cpu_count() or 1) <= FEW_CORES:
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads, so it must not fork
    os.environ.setdefault("VLLM_LOGGING_LEVEL", VLLM_LOG_LEVELS[settings.LOG_LEVEL])
    if " " in sys.prefix:  # torch does not quote its path for the C++ compiler, which would fail
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # documents are private: report nothing
