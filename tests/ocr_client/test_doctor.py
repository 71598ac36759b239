"""`deepseek-ocr doctor`: its findings and its advice."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from ocr_client import checks, machine
from ocr_client.checks import (
    CHECKS,
    Finding,
    check_decoders,
    check_gpu,
    check_memory,
    check_model,
    check_packages,
    check_port,
)
from ocr_client.machine import Gpu, Machine
from ocr_server.intake import sandbox
from tests.ocr_client.conftest import ROOT, FakeServer, free_port, run

pytestmark = pytest.mark.slow


@pytest.fixture
def here() -> Machine:
    """This machine, with a free port."""
    return Machine(model=None, port=free_port())


def assert_finding(finding: Finding, status: str, *words: str) -> None:
    """Assert the status of a finding, and that its texts contain all of `words`."""
    assert finding.status == status, finding
    text = f"{finding.found} {finding.advice}"
    assert all(word in text for word in words), text


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    done = run("doctor", "--port", str(free_port()), cwd=tmp_path)
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    found = {line.split()[1]: line for line in lines if line[:2] in ("✓ ", "! ", "✗ ")}
    assert list(found) == list(CHECKS)
    assert found["GPU"].startswith("! ")
    assert "no NVIDIA GPU" in found["GPU"]
    assert "deepseek-ocr serve" in lines[-1]


def test_errors_come_with_advice(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("doctor", "--model", tmp_path / "model", "--port", port, "--json", cwd=tmp_path)
    assert done.code == 1
    found = json.loads(done.out)
    assert found["ok"] is False
    errors = {check["check"]: check for check in found["checks"] if check["status"] == "error"}
    assert sorted(errors) == ["model", "port"]
    assert "config.json" in errors["model"]["found"]
    assert "another --port" in errors["port"]["advice"]


def test_a_broken_environment(tmp_path: Path) -> None:
    """Invalid settings and a broken vLLM are reported as findings, and do not end the command."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise ImportError('libtorch is from another planet')")
    variables = {"DEEPSEEK_OCR_MAX_CROPS": "many", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = run("doctor", "--json", cwd=tmp_path, variables=variables)
    assert done.code == 1
    errors = {check["check"]: check for check in json.loads(done.out)["checks"] if check["status"] == "error"}
    assert "MAX_CROPS" in errors["settings"]["found"]
    assert "another planet" in errors["imports"]["found"]


class TestDecoders:
    def test_a_kernel_that_restricts_everything(self, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "probe", list)
        assert_finding(check_decoders(here), "ok", "files", "network")

    def test_an_old_kernel(self, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "probe", lambda: ["files"])
        assert_finding(check_decoders(here), "warning", "Landlock", "5.13", "container")


class TestPort:
    def test_free_port(self, here: Machine) -> None:
        assert check_port(here).status == "ok"

    def test_a_running_server(self, server: FakeServer) -> None:
        finding = check_port(Machine(model=None, port=server.port))
        assert_finding(finding, "ok", "a server is running", "deepseek-ocr")

    def test_a_server_that_is_loading(self, server: FakeServer) -> None:
        server.engine.reason = "The model is being loaded."
        assert_finding(check_port(Machine(model=None, port=server.port)), "warning", "being loaded")


class TestGpu:
    def machine(self, folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int = 0) -> Machine:
        """Return a machine with a fake nvidia-smi, which prints `line` and exits with `code`."""
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setattr(Machine, "vllm", "gpu")
        return Machine(model=None, port=free_port())

    def test_a_supported_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.machine(tmp_path, monkeypatch, "NVIDIA A100, 40GB, 580.65.06, 40000, 40960")
        assert fake.gpu == Gpu("NVIDIA A100, 40GB", "580.65.06", 40000 / 1024, 40.0)
        assert check_gpu(fake).status == "ok"
        assert "39.1 of 40.0 GiB of GPU memory free" in check_memory(fake).found

    def test_an_old_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.machine(tmp_path, monkeypatch, "NVIDIA A100, 535.1, 40000, 40960")
        assert_finding(check_gpu(fake), "error", "535.1", "580")

    def test_too_little_free_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.machine(tmp_path, monkeypatch, "NVIDIA A100, 580.1, 1000, 40960")
        monkeypatch.setattr(Machine, "model_folder", lambda _: ROOT / "nano" / "checkpoint")
        assert_finding(check_memory(fake), "error", "1.0 of 40.0 GiB", "gpu-memory-utilization")

    def test_a_driver_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.machine(tmp_path, monkeypatch, "Failed to initialize NVML", code=9)
        assert_finding(check_gpu(fake), "error", "Failed to initialize NVML", "SETUP_KIND=cpu")

    def test_a_gpu_with_the_cpu_build(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.machine(tmp_path, monkeypatch, "NVIDIA A100, 580.1, 40000, 40960")
        monkeypatch.setattr(Machine, "vllm", "cpu")
        assert_finding(check_gpu(fake), "warning", "SETUP_KIND=gpu")


class TestPackages:
    def change_versions(self, monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> Any:
        """Change the installed versions of packages. None stands for a package that is not installed."""
        actual = checks.version

        def version(package: str) -> str | None:
            return changed[package] if package in changed else actual(package)

        monkeypatch.setattr(checks, "version", version)

    def test_a_missing_package(self, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.change_versions(monkeypatch, fastapi=None)
        assert_finding(check_packages(here), "error", "missing: fastapi", "pip install")

    def test_a_package_in_another_version(self, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.change_versions(monkeypatch, fastapi="0.1")
        assert_finding(check_packages(here), "warning", "fastapi 0.1 instead of")


class TestModel:
    def test_a_model_that_is_not_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert_finding(check_model(Machine(model="nobody/nothing", port=None)), "warning", "not downloaded")

    def test_a_folder_with_a_missing_file(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "nano" / "checkpoint", tmp_path / "model")
        (tmp_path / "model" / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}})
        )
        finding = check_model(Machine(model=str(tmp_path / "model"), port=None))
        assert_finding(finding, "error", "is missing model-00002.safetensors")

    def test_a_folder_that_does_not_exist(self) -> None:
        assert_finding(check_model(Machine(model="/no/such/model", port=None)), "error", "/no/such/model")


def test_a_check_that_raises_an_error_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Machine) -> Finding:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(checks, "CHECKS", {"broken": fails})
    ((name, finding),) = checks.run_checks(model=None, port=free_port())
    assert name == "broken"
    assert_finding(finding, "warning", "unforeseen")


def test_invalid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_OCR_PORT", "http")
    found = machine.Machine(model=None, port=None)
    assert found.settings is None
    assert "PORT" in found.settings_trouble
