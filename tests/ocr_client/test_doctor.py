"""`deepseek-ocr doctor`: what it finds, and what it advises."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from ocr_client import checks, machine
from ocr_client.checks import CHECKS, Finding, check_gpu, check_memory, check_model, check_packages, check_port
from ocr_client.machine import Gpu, Machine
from tests.ocr_client.conftest import ROOT, PlayedServer, free_port, run


@pytest.fixture
def here() -> Machine:
    """This machine, with a port that is free."""
    return Machine(model=None, port=free_port())


def assert_advised(finding: Finding, status: str, *words: str) -> None:
    assert finding.status == status, finding
    said = f"{finding.found} {finding.advice}"
    assert all(word in said for word in words), said


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


def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("doctor", "--model", tmp_path / "model", "--port", port, "--json", cwd=tmp_path)
    assert done.code == 1
    found = json.loads(done.out)
    assert found["ok"] is False
    wrong = {check["check"]: check for check in found["checks"] if check["status"] == "error"}
    assert sorted(wrong) == ["model", "port"]
    assert "config.json" in wrong["model"]["found"]
    assert "another --port" in wrong["port"]["advice"]


def test_an_environment_without_the_server(tmp_path: Path) -> None:
    """Wrong settings and a broken vLLM are findings too, not the end."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise ImportError('libtorch is from another planet')")
    variables = {"DEEPSEEK_OCR_MAX_CROPS": "many", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = run("doctor", "--json", cwd=tmp_path, variables=variables)
    assert done.code == 1
    wrong = {check["check"]: check for check in json.loads(done.out)["checks"] if check["status"] == "error"}
    assert "MAX_CROPS" in wrong["settings"]["found"]
    assert "another planet" in wrong["imports"]["found"]


class TestPort:
    def test_it_is_free(self, here: Machine) -> None:
        assert check_port(here).status == "ok"

    def test_our_server_has_it(self, server: PlayedServer) -> None:
        finding = check_port(Machine(model=None, port=server.port))
        assert_advised(finding, "ok", "a server runs", "deepseek-ocr")

    def test_our_server_has_it_and_loads(self, server: PlayedServer) -> None:
        server.engine.reason = "The model is being loaded."
        assert_advised(check_port(Machine(model=None, port=server.port)), "warning", "being loaded")


class TestGpu:
    def played(self, folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int = 0) -> Machine:
        """A machine whose nvidia-smi prints `line`."""
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setattr(Machine, "vllm", "gpu")
        return Machine(model=None, port=free_port())

    def test_a_good_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        played = self.played(tmp_path, monkeypatch, "NVIDIA A100, 40GB, 580.65.06, 40000, 40960")
        assert played.gpu == Gpu("NVIDIA A100, 40GB", "580.65.06", 40000 / 1024, 40.0)
        assert check_gpu(played).status == "ok"
        assert "39.1 of 40.0 GiB of GPU memory free" in check_memory(played).found

    def test_an_old_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        played = self.played(tmp_path, monkeypatch, "NVIDIA A100, 535.1, 40000, 40960")
        assert_advised(check_gpu(played), "error", "535.1", "580")

    def test_too_little_memory_is_free(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        played = self.played(tmp_path, monkeypatch, "NVIDIA A100, 580.1, 1000, 40960")
        monkeypatch.setattr(checks, "downloaded", lambda _: ROOT / "nano" / "checkpoint")
        assert_advised(check_memory(played), "error", "1.0 of 40.0 GiB", "gpu-memory-utilization")

    def test_the_driver_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        played = self.played(tmp_path, monkeypatch, "Failed to initialize NVML", code=9)
        assert_advised(check_gpu(played), "error", "Failed to initialize NVML", "SETUP_KIND=cpu")

    def test_the_cpu_build_beside_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        played = self.played(tmp_path, monkeypatch, "NVIDIA A100, 580.1, 40000, 40960")
        monkeypatch.setattr(Machine, "vllm", "cpu")
        assert_advised(check_gpu(played), "warning", "SETUP_KIND=gpu")


class TestPackages:
    def versions(self, monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> Any:
        true = checks.version

        def version(package: str) -> str | None:
            return changed[package] if package in changed else true(package)

        monkeypatch.setattr(checks, "version", version)

    def test_one_is_missing(self, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.versions(monkeypatch, fastapi=None)
        assert_advised(check_packages(here), "error", "missing: fastapi", "pip install")

    def test_one_is_another_version(self, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.versions(monkeypatch, fastapi="0.1")
        assert_advised(check_packages(here), "warning", "fastapi 0.1 instead of")


class TestModel:
    def test_a_model_that_is_not_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert_advised(check_model(Machine(model="nobody/nothing", port=None)), "warning", "not downloaded")

    def test_a_folder_that_lacks_a_part(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "nano" / "checkpoint", tmp_path / "model")
        (tmp_path / "model" / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}})
        )
        finding = check_model(Machine(model=str(tmp_path / "model"), port=None))
        assert_advised(finding, "error", "lacks model-00002.safetensors")

    def test_no_such_folder(self) -> None:
        assert_advised(check_model(Machine(model="/no/such/model", port=None)), "error", "/no/such/model")


def test_a_check_that_fails_itself_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Machine) -> Finding:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(checks, "CHECKS", {"odd": breaks})
    ((name, finding),) = checks.findings(model=None, port=free_port())
    assert name == "odd"
    assert_advised(finding, "warning", "unforeseen")


def test_settings_that_can_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_OCR_PORT", "http")
    found = machine.Machine(model=None, port=None)
    assert found.settings is None
    assert "PORT" in found.settings_trouble
