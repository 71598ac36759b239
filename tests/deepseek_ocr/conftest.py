"""Fixtures for the tests of the vLLM plugin.

`ocr_builders` (inputs) and `ocr_oracles` (independent implementations) are plain modules beside this
file; they are put on the path here, since tests are imported without a package around them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
sys.path.append(str(HERE))

# On a machine with other work, a slow example is not a failure.
settings.register_profile(
    "deepseek_ocr", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.load_profile("deepseek_ocr")

torch.set_num_threads(1)  # the tensors are small: more threads would be slower


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def published_config() -> dict[str, Any]:
    """The published model's `config.json`."""
    config: dict[str, Any] = json.loads((HERE / "data" / "config.json").read_text())
    return config


@pytest.fixture(scope="session")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """Run a task of `vllm_process.py` and return its result."""

    def run(task: str, job: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(task)
        job_file, result_file = folder / "job.json", folder / "result.json"
        job_file.write_text(json.dumps({**job, "result": str(result_file)}))
        # vLLM inspects a model's class in a further process, which has to find our package too.
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(HERE / "vllm_process.py"), task, str(job_file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result

    return run
