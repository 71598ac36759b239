"""Checks before and during the loading of the model. Their errors say what is wrong and what to do."""

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
"""Memory for activations and everything else besides the weights, in GiB."""
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


class LoadError(Exception):
    """The model cannot be served. The message says why and what to do."""


def local_model(name: str, revision: str = "") -> tuple[Path, Family]:
    """Return the folder of a model and its family. A model is downloaded first if it is not a folder.

    Args:
        name: A folder with a checkpoint, or a Hugging Face id.
        revision: Branch, tag or commit of the Hugging Face id; empty for the latest commit of `main`.

    Raises:
        LoadError: The model does not exist, is not a DeepSeek-OCR, or cannot be downloaded.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision:
            raise LoadError(f"{name!r} is a folder, which has no revision {revision!r}. Leave --model-revision empty.")
    else:
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise LoadError(
                f"The folder {name!r} does not exist. Set --model to a checkpoint's folder or to a Hugging Face id."
            )
        folder = _download(name, revision)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise LoadError(f"{name!r} is not a checkpoint: it has no config.json.")
    try:
        architectures = json.loads(config_file.read_text(encoding="utf-8")).get("architectures")
    except (ValueError, AttributeError) as error:
        raise LoadError(f"The config.json of {name!r} cannot be read: {error}") from error
    family = FAMILIES.get(architectures[0]) if isinstance(architectures, list) and len(architectures) == 1 else None
    if family is None:
        raise LoadError(f"{name!r} is not a DeepSeek-OCR checkpoint: its architectures are {architectures}.")
    if not any(folder.glob("*.safetensors")):
        raise LoadError(f"{name!r} has no weights: there is no *.safetensors file.")
    return folder, family


class GpuMemory(NamedTuple):
    """Memory of a GPU, in GiB."""

    free: float
    total: float


def gpu_memory() -> GpuMemory | None:
    """Return the memory of the first GPU that vLLM will use, or None if the driver does not report it.

    The driver is asked, not CUDA: a CUDA context in this process would take memory from the engine.
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
    """Check that the weights and the working memory fit.

    Args:
        folder: The checkpoint.
        settings: Gives the shares of memory that the model may use.
        gpu: Memory of the GPU; None if the model runs on the CPU.

    Raises:
        LoadError: There is not enough memory. The message has the figures, and says what to do.
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
                f"but only {gpu.free:.1f} GiB are free. Lower it, or stop other programs on the GPU (see nvidia-smi)."
            )
    if available < needed:
        raise LoadError(
            f"This model needs about {needed:.1f} GiB of memory, but only {available:.1f} GiB are available. {advice}"
        )


def check_architecture(model_config: Any, family: Family) -> None:
    """Check that vLLM will run our model class, and not its own class of the same name.

    Raises:
        LoadError: The plugin is not installed, or another plugin has replaced it.
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
    """Turn every exception in the block into a LoadError that says, where possible, what to do."""
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
            raise LoadError("vLLM's engine process could not start. The reason is in its log output above.") from error
        raise LoadError(f"vLLM could not load the model: {text}") from error


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=MODEL_FILES))
    except HFValidationError as error:
        raise LoadError(f"{repository!r} is neither a folder nor a valid Hugging Face id.") from error
    except RevisionNotFoundError as error:
        raise LoadError(
            f"{repository!r} has no revision {revision!r} on Hugging Face; see --model-revision."
        ) from error
    except HfHubHTTPError as error:
        raise LoadError(f"The model {repository!r} cannot be downloaded from Hugging Face: {error}") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise LoadError(
            f"{repository!r} could not be downloaded ({error.__class__.__name__}). Check the network and the free disk "
            "space; set HF_ENDPOINT to use a mirror and HF_TOKEN if a token is needed, or set --model to a folder."
        ) from error
