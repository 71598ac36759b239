"""Checks before and while the model loads, so that what goes wrong is said with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil  # type: ignore[import-untyped]

from deepseek_ocr.families import FAMILIES, Family

if TYPE_CHECKING:
    from config import Settings

GIB = 1024**3
WORKING_GIB = 2
"""For activations and all else beside the weights."""
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


class LoadError(Exception):
    """The model can't be served; the message says why and what to do."""


def local_model(name: str) -> tuple[Path, Family]:
    """The folder of a model, downloaded first if `name` is a Hugging Face id, and its family.

    Raises:
        LoadError: there is no such model, it is not a DeepSeek-OCR, or it can't be downloaded.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise LoadError(
                f"There is no folder {name!r}. Give --model a folder with a checkpoint or a Hugging Face id."
            )
        folder = _download(name)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise LoadError(f"{name!r} has no config.json, so it is not a checkpoint.")
    try:
        architectures = json.loads(config_file.read_text(encoding="utf-8")).get("architectures")
    except (ValueError, AttributeError) as error:
        raise LoadError(f"The config.json of {name!r} can't be read: {error}") from error
    family = FAMILIES.get(architectures[0]) if isinstance(architectures, list) and len(architectures) == 1 else None
    if family is None:
        raise LoadError(f"{name!r} is not a DeepSeek-OCR checkpoint: its architectures are {architectures}.")
    if not any(folder.glob("*.safetensors")):
        raise LoadError(f"{name!r} has no *.safetensors weights.")
    return folder, family


class GpuMemory(NamedTuple):
    """GiB."""

    free: float
    total: float


def gpu_memory() -> GpuMemory | None:
    """Of the first GPU that vLLM will use; None if the driver can't say.

    It asks the driver, not CUDA, whose context in this process would take memory from the engine.
    """
    from vllm.platforms import current_platform
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(current_platform.device_id_to_physical_device_id(0))
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        return GpuMemory(memory.free / GIB, memory.total / GIB)
    except (pynvml.NVMLError, ValueError, IndexError):
        return None


def check_memory(folder: Path, settings: Settings, gpu: GpuMemory | None) -> None:
    """Refuse to start where the weights and a little beside them can't fit.

    Args:
        gpu: None where the model runs on the CPU.

    Raises:
        LoadError: with the figures, and what to do.
    """
    needed = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / GIB + WORKING_GIB
    if gpu is None:
        needed += settings.CPU_KV_CACHE_GIB
        available = psutil.virtual_memory().available / GIB
        advice = "Lower --cpu-kv-cache-gib, close other programs or use a machine with more memory."
    else:
        share = gpu.total * settings.GPU_MEMORY_UTILIZATION
        available = share * settings.TENSOR_PARALLEL_SIZE
        advice = "Raise --gpu-memory-utilization, or use a larger GPU."
        if gpu.free < share:
            raise LoadError(
                f"--gpu-memory-utilization {settings.GPU_MEMORY_UTILIZATION:g} asks for {share:.1f} GiB of GPU memory, "
                f"but {gpu.free:.1f} GiB are free. Lower it, or stop what else runs on the GPU (see nvidia-smi)."
            )
    if available < needed:
        raise LoadError(
            f"Loading this model needs about {needed:.1f} GiB of memory, but there are {available:.1f} GiB. {advice}"
        )


def check_architecture(model_config: Any, family: Family) -> None:
    """Prove that vLLM will run our model class, and not its own of the same name.

    Raises:
        LoadError: the plugin is not installed, or another one took its place.
    """
    from vllm import ModelRegistry

    model_class, _ = ModelRegistry.resolve_model_cls([family.architecture], model_config)
    resolved = f"{model_class.__module__}:{model_class.__qualname__}"
    if resolved != family.model_class:
        raise LoadError(
            f"vLLM resolves {family.architecture} to {resolved}, not to {family.model_class}. Install this package "
            "into vLLM's environment, so that vLLM finds the plugin: pip install -e . --no-deps"
        )


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of vLLM's start that users can do something about into a LoadError."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        text = str(error)
        if "No available memory for the cache blocks" in text or "out of memory" in text.lower():
            raise LoadError(
                "There is too little memory for the model and its KV cache. Lower --max-model-len or "
                "--max-concurrency, or raise --gpu-memory-utilization."
            ) from error
        if "Engine core initialization failed" in text:
            raise LoadError(
                "vLLM's engine process could not start; the reason stands above, in its own log."
            ) from error
        raise LoadError(f"vLLM could not load the model: {text}") from error


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=MODEL_FILES))
    except HFValidationError as error:
        raise LoadError(f"{repository!r} is neither a folder nor a Hugging Face id.") from error
    except HfHubHTTPError as error:
        raise LoadError(f"Hugging Face has no model {repository!r} that can be downloaded: {error}") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise LoadError(
            f"{repository!r} could not be downloaded ({error.__class__.__name__}). Check the network and the free disk "
            "space; set HF_ENDPOINT to a mirror, HF_TOKEN if one is needed, or give --model a folder that has it."
        ) from error
