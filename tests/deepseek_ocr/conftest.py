"""What the tests of the engine side share.

`ocr_builders` (inputs) and `ocr_oracles` (independent implementations) are plain modules beside this
file; they are put on the path here, since tests are imported without a package around them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
sys.path.append(str(HERE))

# Machines that share their cores are slow now and then; a slow example is not a wrong one.
settings.register_profile(
    "deepseek_ocr", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.load_profile("deepseek_ocr")

torch.set_num_threads(1)  # the tensors here are small: threads would cost more than they bring


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def published_config() -> dict[str, Any]:
    """The published model's `config.json`."""
    config: dict[str, Any] = json.loads((HERE / "data" / "config.json").read_text())
    return config
