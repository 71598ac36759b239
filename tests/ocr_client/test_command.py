"""The command line itself: help, version, shell completion, and the flags of `serve`."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.ocr_client.conftest import ROOT, environment, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["read", "serve", "doctor", "--install-completion"]),
        (
            ["read", "--help"],
            ["FILES", "--out", "--retry-failed", "--patience", "DEEPSEEK_OCR_BASE_URL", "130 interrupted"],
        ),
        (["doctor", "-h"], ["--model", "--port", "--json"]),
        (["serve", "--help"], ["--max-model-len", "--gpu-memory-utilization", "--api-keys-file"]),
    ],
)
def test_help(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.code == 0, done.error
    assert all(word in done.out for word in words), done.out


def test_help_is_shown_if_there_is_no_command(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.code == 2
    assert "doctor" in done.out + done.error


def test_version(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = run("--version", cwd=tmp_path)
    assert (done.code, done.out) == (0, f"deepseek-ocr {project['version']}\n")


def test_entry_point() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["deepseek-ocr"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, tmp_path: Path) -> None:
    done = run(cwd=tmp_path, variables={"_DEEPSEEK_OCR_COMPLETE": f"source_{shell}"})
    assert done.code == 0
    assert "deepseek-ocr" in done.out
    assert "_DEEPSEEK_OCR_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("typed", "completions"), [("deepseek-ocr d", {"doctor"}), ("deepseek-ocr read --retry", {"--retry-failed"})]
)
def test_completion(typed: str, completions: set[str], tmp_path: Path) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_DEEPSEEK_OCR_COMPLETE": "complete_bash"}
    assert set(run(cwd=tmp_path, variables=words).out.split()) == completions


def test_serve_passes_its_flags_to_the_server(tmp_path: Path) -> None:
    done = run("serve", "--port", "99999", cwd=tmp_path)
    assert done.code == 2
    assert "PORT" in done.error


def test_the_client_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, ocr_client.main, ocr_client.doctor\n"
        "heavy = {'ocr_server.app', 'deepseek_ocr', 'config', 'torch', 'vllm', 'fastapi', 'pydantic'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
