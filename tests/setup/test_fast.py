"""The fast part of the tests runs without vLLM and does not import deselected test files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAST = "not live and not engine and not browser and not slow"


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    """A folder of tests with this project's settings and conftest.py, and a fake vLLM that reports its import."""
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("print('vLLM was imported')")
    return tmp_path / "tests"


def run(tests: Path, *arguments: str, fast: bool = True) -> subprocess.CompletedProcess[str]:
    """Run pytest on these tests, as the fast part (`fast`) or as the whole suite."""
    environment = {name: value for name, value in os.environ.items() if name != "OCR_TESTS_FAST"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", *arguments],
        cwd=tests.parent,
        env=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OCR_TESTS_FAST": "1" if fast else "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_vllm_fails_with_a_clear_message(tests: Path) -> None:
    (tests / "test_one.py").write_text("def test_one():\n    import vllm.sampling_params\n")
    done = run(tests)
    assert done.returncode == 1
    assert "vllm was imported in the fast part of the tests" in done.stdout
    assert "pytestmark = pytest.mark.engine" in done.stdout


def test_vllm_can_be_imported_outside_the_fast_part(tests: Path) -> None:
    (tests / "test_one.py").write_text("def test_one():\n    import vllm\n")
    done = run(tests, fast=False)
    assert done.returncode == 0, done.stdout


def test_deselected_files_are_not_imported(tests: Path) -> None:
    marks = [
        "pytestmark = pytest.mark.engine",
        "pytestmark = [pytest.mark.live, pytest.mark.timeout(9)]",
        "pytestmark: object = pytest.mark.slow",
        "pytestmark = (pytest.mark.timeout(9), pytest.mark.browser)",
    ]
    for number, mark in enumerate(marks):
        (tests / f"test_{number}.py").write_text(
            f"import pytest\nimport vllm\n\n{mark}\n\ndef test_it():\n    assert False\n"
        )
    (tests / "test_kept.py").write_text(
        "import pytest\npytestmark = pytest.mark.timeout(9)\ndef test_it():\n    pass\n"
    )
    done = run(tests, "-m", FAST)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_single_tests_can_be_deselected(tests: Path) -> None:
    (tests / "test_one.py").write_text(
        "import pytest\n\n@pytest.mark.engine\ndef test_one():\n    import vllm\n\ndef test_two():\n    pass\n"
    )
    done = run(tests, "-m", FAST)
    assert "1 passed, 1 deselected" in done.stdout
