"""A short run of each fuzzing target; `python -m tests.fuzz` runs them for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = 500


@pytest.mark.parametrize("target", ["grounding", "pdf", "picture", "url"])
def test_a_short_run_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", target, "--runs", str(CASES)]
    run = subprocess.run(
        command, cwd=ROOT, env={"TMPDIR": str(tmp_path)}, capture_output=True, timeout=280, check=False
    )
    output = run.stderr.decode("utf-8", "replace")
    assert run.returncode == 0, output[-3000:]
    assert f"{target}: {CASES} cases in" in output
