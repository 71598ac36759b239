"""Long commands check at their start that every package they need is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run_without(package: str, module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` as if `package` were not installed."""
    code = (
        "import runpy, sys\n"
        "package, module, *arguments = sys.argv[1:]\n"
        "sys.modules[package] = None\n"
        "if package == 'py-spy': sys.executable = '/no/such/python'\n"
        "sys.argv = [module, *arguments]\n"
        "runpy.run_module(module, run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, package, module, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("bench images", "matplotlib"),
        ("bench --quick guard", "psutil"),
        ("bench --quick profile", "py-spy"),
        ("bench", "tqdm"),
        ("nano.train --out run", "rapidfuzz"),
        ("nano.train --out run", "tqdm"),
        ("nano.evaluate", "rapidfuzz"),
        ("nano.evaluate --base-url http://127.0.0.1:9/v1", "openai"),
        ("nano.average out a b", "safetensors"),
    ],
)
def test_missing_package_is_reported_before_the_work_begins(command: str, package: str, tmp_path: Path) -> None:
    module, *arguments = command.split()
    done = run_without(package, module, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: python -m {module} needs {package}, which is not installed.\n")
    assert re.search(rf"-m pip install {package}==\d", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "package"), [("bench", "vllm"), ("nano.train --out run", "torch")])
def test_message_about_a_missing_engine_names_the_set_up_script(command: str, package: str, tmp_path: Path) -> None:
    module, *arguments = command.split()
    done = run_without(package, module, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert f"needs {package}" in done.stderr
    assert "./start_server.sh" in done.stderr
