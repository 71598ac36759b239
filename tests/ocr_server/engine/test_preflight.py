"""What is checked before the model loads, and how what goes wrong is said."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from config import EMBEDDED_CHECKPOINT, ROOT, Settings
from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.engine.preflight import (
    GIB,
    GpuMemory,
    LoadError,
    check_architecture,
    check_memory,
    explained,
    local_model,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that passes."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [DEEPSEEK_OCR.architecture]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def refusal(name: str | Path) -> str:
    with pytest.raises(LoadError) as caught:
        local_model(str(name))
    return str(caught.value)


class TestLocalModel:
    def test_a_good_folder(self, checkpoint: Path) -> None:
        assert local_model(str(checkpoint)) == (checkpoint, DEEPSEEK_OCR)
        assert local_model(str(EMBEDDED_CHECKPOINT)) == (EMBEDDED_CHECKPOINT, DEEPSEEK_OCR)

    @pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "~/no-such-folder", "name", "a/b/c"])
    def test_no_folder(self, name: str) -> None:
        said = refusal(name)
        assert repr(name) in said
        assert "--model" in said

    def test_an_empty_name_is_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert refusal("") == "'' is not a checkpoint: it has no config.json."

    def test_neither_a_folder_nor_an_id(self) -> None:
        assert "neither a folder nor a valid Hugging Face id" in refusal("not a/sound id")

    def test_a_file(self, checkpoint: Path) -> None:
        assert "does not exist" in refusal(checkpoint / "config.json")

    def test_no_config(self, checkpoint: Path) -> None:
        (checkpoint / "config.json").unlink()
        assert "no config.json" in refusal(checkpoint)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'"text"'])
    def test_a_damaged_config(self, checkpoint: Path, content: bytes) -> None:
        (checkpoint / "config.json").write_bytes(content)
        assert "config.json" in refusal(checkpoint)
        assert "cannot be read" in refusal(checkpoint)

    @pytest.mark.parametrize(
        "found", [["LlamaForCausalLM"], [], None, [DEEPSEEK_OCR.architecture, "Other"], DEEPSEEK_OCR.architecture]
    )
    def test_another_model(self, checkpoint: Path, found: Any) -> None:
        (checkpoint / "config.json").write_text(json.dumps({"architectures": found}))
        assert f"its architectures are {found}" in refusal(checkpoint)

    def test_no_architectures(self, checkpoint: Path) -> None:
        (checkpoint / "config.json").write_text("{}")
        assert "not a DeepSeek-OCR checkpoint" in refusal(checkpoint)

    def test_no_weights(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").rename(checkpoint / "model.bin")
        assert "no *.safetensors" in refusal(checkpoint)


class TestMemory:
    def with_cache(self, gib: int) -> Settings:
        return Settings(CPU_KV_CACHE_GIB=gib)

    def test_enough(self) -> None:
        check_memory(EMBEDDED_CHECKPOINT, self.with_cache(1), gpu=None)

    def test_too_little_for_the_cache(self, checkpoint: Path) -> None:
        with pytest.raises(LoadError, match="--cpu-kv-cache-gib") as caught:
            check_memory(checkpoint, self.with_cache(100_000), gpu=None)
        needed, free = map(float, re.findall(r"([\d.]+) GiB", str(caught.value)))
        assert needed == 100_002
        assert 0 < free < 100_000

    def test_weights_count(self, checkpoint: Path) -> None:
        with (checkpoint / "more.safetensors").open("wb") as file:
            file.truncate(30_000 * GIB // 3)  # a sparse file, which uses no disk space
        (checkpoint / "other.bin").write_bytes(b"")
        with pytest.raises(LoadError) as caught:
            check_memory(checkpoint, self.with_cache(1), gpu=None)
        assert "10003.0 GiB" in str(caught.value)


class TestRevision:
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def hub(self, tmp_path: Path) -> Path:
        """The cache of an earlier download: two commits, of which `main` and a tag are the newer and the older one."""
        model = tmp_path / "hub" / "models--team--ocr"
        for commit, name in ((self.COMMIT, "v1"), (self.COMMIT[::-1], "main")):
            snapshot = model / "snapshots" / commit
            snapshot.mkdir(parents=True)
            (snapshot / "config.json").write_text(json.dumps({"architectures": [DEEPSEEK_OCR.architecture]}))
            (snapshot / "model.safetensors").write_bytes(b"")
            (model / "refs").mkdir(exist_ok=True)
            (model / "refs" / name).write_text(commit)
        return tmp_path

    @pytest.mark.parametrize(
        ("revision", "commit"), [("", COMMIT[::-1]), ("main", COMMIT[::-1]), ("v1", COMMIT), (COMMIT, COMMIT)]
    )
    def test_the_revision_is_loaded(self, hub: Path, revision: str, commit: str) -> None:
        code = f"from ocr_server.engine.preflight import local_model; print(local_model('team/ocr', {revision!r})[0])"
        environment = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        environment.pop("HF_HUB_CACHE", None)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).name == commit

    def test_a_folder_has_none(self, checkpoint: Path) -> None:
        with pytest.raises(LoadError, match="--model-revision"):
            local_model(str(checkpoint), "v1")


class TestGpuMemory:
    @pytest.fixture
    def published(self, checkpoint: Path) -> Path:
        """Weights of the real model's size."""
        with (checkpoint / "model.safetensors").open("wb") as file:
            file.truncate(6_672_212_480)  # a sparse file, which uses no disk space
        return checkpoint

    def test_enough(self, published: Path) -> None:
        check_memory(published, Settings(), GpuMemory(free=23.5, total=24))

    def test_something_else_runs_there(self, published: Path) -> None:
        with pytest.raises(LoadError) as caught:
            check_memory(published, Settings(), GpuMemory(free=9.5, total=24))
        assert "0.9 asks for 21.6 GiB of GPU memory, but only 9.5 GiB are free" in str(caught.value)
        assert "nvidia-smi" in str(caught.value)

    def test_the_gpu_is_too_small(self, published: Path) -> None:
        with pytest.raises(LoadError, match=r"needs about 8\.2 GiB of memory, but only 7\.2 GiB are available"):
            check_memory(published, Settings(), GpuMemory(free=7.9, total=8))

    def test_two_small_ones_together_are_enough(self, published: Path) -> None:
        check_memory(published, Settings(TENSOR_PARALLEL_SIZE=2), GpuMemory(free=7.9, total=8))


class TestExplained:
    def explanation(self, error: Exception) -> LoadError:
        with pytest.raises(LoadError) as caught, explained():
            raise error
        return caught.value

    @pytest.mark.parametrize(
        "text", ["No available memory for the cache blocks. Try …", "CUDA out of memory. Tried …", "Out of memory"]
    )
    def test_too_little_memory(self, text: str) -> None:
        error = ValueError(text)
        explained_error = self.explanation(error)
        assert "--max-model-len" in str(explained_error)
        assert "--gpu-memory-utilization" in str(explained_error)
        assert explained_error.__cause__ is error

    def test_the_engines_process(self) -> None:
        said = str(self.explanation(RuntimeError("Engine core initialization failed. See root cause above.")))
        assert "engine process could not start" in said

    def test_anything_else(self) -> None:
        assert str(self.explanation(RuntimeError("odd"))) == "vLLM could not load the model: odd"

    def test_what_is_explained_already(self) -> None:
        error = LoadError("as it is")
        assert self.explanation(error) is error

    def test_nothing_wrong(self) -> None:
        with explained():
            pass

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
    def test_an_interruption_stays_one(self, error: BaseException) -> None:
        with pytest.raises(type(error)), explained():
            raise error


class Foreign(nn.Module):
    """Another package's model class with the same name as ours."""


@pytest.mark.engine
class TestArchitecture:
    CONFIG = SimpleNamespace(model_impl="auto", convert_type="none", runner_type="generate")

    @pytest.fixture
    def register(self) -> Iterator[Callable[[type[nn.Module]], None]]:
        """Registers a class for our architecture; restores vLLM's registry, which the process shares, afterwards."""
        from vllm import ModelRegistry

        architecture = DEEPSEEK_OCR.architecture
        before = ModelRegistry.models[architecture]
        yield lambda model_class: ModelRegistry.register_model(architecture, model_class)
        ModelRegistry.models[architecture] = before

    def test_our_class(self, register: Callable[[type[nn.Module]], None]) -> None:
        module, _, name = DEEPSEEK_OCR.model_class.partition(":")
        # A stand-in with our class's full name: only the name to which the registry resolves is checked.
        register(type(name, (nn.Module,), {"__module__": module}))
        check_architecture(self.CONFIG, DEEPSEEK_OCR)

    def test_a_class_of_another_package(self, register: Callable[[type[nn.Module]], None]) -> None:
        register(Foreign)
        with pytest.raises(LoadError, match="pip install -e") as caught:
            check_architecture(self.CONFIG, DEEPSEEK_OCR)
        assert f"{Foreign.__module__}:Foreign" in str(caught.value)

    def test_a_class_with_the_same_name_in_another_module(self, register: Callable[[type[nn.Module]], None]) -> None:
        _, _, name = DEEPSEEK_OCR.model_class.partition(":")
        register(type(name, (nn.Module,), {"__module__": "elsewhere"}))
        with pytest.raises(LoadError, match=r"elsewhere:DeepseekOCRForCausalLM"):
            check_architecture(self.CONFIG, DEEPSEEK_OCR)
