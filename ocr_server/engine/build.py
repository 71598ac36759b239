"""Engines as the settings ask for them. Importing this module imports neither torch nor vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr_server.engine.environment import set_up
from ocr_server.engine.process import begin_imports

if TYPE_CHECKING:
    from config import Settings
    from ocr_server.engine.supervisor import Supervisor
    from ocr_server.engine.vllm_engine import VllmEngine


def prepare_process(settings: Settings) -> None:
    """Set the environment that torch and vLLM need, and start the process that an engine is forked from.

    Call it once, before torch or vLLM is imported.
    """
    set_up(settings)
    begin_imports()


def dedicated_engine(settings: Settings) -> Supervisor:
    """The engine of a process that exists to serve it: the server, a Ray replica, a Ray reader.

    It is restarted when it dies or hangs, the garbage collector leaves the loaded model alone, and torch uses a single
    thread for each of the resizes, many of which run side by side.
    """
    import torch

    from ocr_server.engine.sampling import sampling_params
    from ocr_server.engine.supervisor import Supervisor
    from ocr_server.engine.vllm_engine import VllmEngine

    torch.set_num_threads(1)
    return Supervisor(
        lambda: VllmEngine(settings, dedicated=True),
        check=sampling_params,
        stall_timeout=settings.engine_stall_timeout,
        most_restarts=settings.ENGINE_RESTARTS,
    )


def guest_engine(settings: Settings) -> VllmEngine:
    """The engine of somebody else's program (the library): the process stays as it is, and nothing is restarted."""
    from ocr_server.engine.vllm_engine import VllmEngine

    return VllmEngine(settings, dedicated=False)
