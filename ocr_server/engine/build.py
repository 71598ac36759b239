"""Builds engines from the settings. Importing this module imports neither torch nor vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr_server.engine.environment import set_up
from ocr_server.engine.process import begin_imports

if TYPE_CHECKING:
    from config import Settings
    from ocr_server.engine.supervisor import Supervisor
    from ocr_server.engine.vllm_engine import VllmEngine


def prepare_process(settings: Settings) -> None:
    """Set the environment variables that torch and vLLM need, and start the process from which an engine is forked.

    Call it once, before torch or vLLM is imported.
    """
    set_up(settings)
    begin_imports()


def dedicated_engine(settings: Settings) -> Supervisor:
    """Return the engine for a process that exists to serve it: the server, a Ray replica or a Ray reader.

    The engine is restarted when it crashes or hangs. The garbage collector skips what was allocated while the model
    was loaded. Torch uses a single thread for each resize, since many of them run at the same time.
    """
    import torch

    from ocr_server.engine.checks import DecodingCheck
    from ocr_server.engine.supervisor import Supervisor
    from ocr_server.engine.vllm_engine import VllmEngine

    torch.set_num_threads(1)
    check = DecodingCheck(settings)
    return Supervisor(
        lambda: VllmEngine(settings, check, dedicated=True),
        check=check,
        stall_timeout=settings.ENGINE_STALL_TIMEOUT,
        most_restarts=settings.ENGINE_RESTARTS,
    )


def guest_engine(settings: Settings) -> VllmEngine:
    """Return the engine for a program that has other work too (the library).

    The process's settings are left as they are, and an engine that crashes is not restarted.
    """
    from ocr_server.engine.checks import DecodingCheck
    from ocr_server.engine.vllm_engine import VllmEngine

    return VllmEngine(settings, DecodingCheck(settings), dedicated=False)
