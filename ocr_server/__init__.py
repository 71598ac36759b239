"""The HTTP server: OpenAI's API and others, for an engine that reads pages."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _version() -> str:
    """The version in pyproject.toml: from the metadata of the installation, or from the file in a plain checkout."""
    try:
        return version("deepseek-ocr-server")
    except PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        found: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
        return found


__version__ = _version()
