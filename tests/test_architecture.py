"""The structure of the code: who may import whom, and how long a file may be."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 400
CLIENT = sorted((ROOT / "ocr_client").rglob("*.py"))
SERVER = [*sorted((ROOT / "ocr_server").rglob("*.py")), ROOT / "config.py", ROOT / "openai_api_server.py"]


def test_the_import_rules_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert len(contracts) >= 3
    assert f"{len(contracts)} kept, 0 broken" in checked.stdout


@pytest.mark.parametrize("file", [*SERVER, *CLIENT], ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_there_are_files() -> None:
    assert len(SERVER) > 20
    assert len(CLIENT) > 5
