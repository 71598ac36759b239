"""Check at the start of a long command that every package it will use is installed."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements_dev.txt", "requirements_cpu.txt")
"""The requirement files in which versions are looked up. The locked set for GPUs has the same versions."""
MODULES = {"pillow": "PIL"}
"""Import names of the packages whose import name differs from their name in the package index."""
ENGINE = frozenset({"torch", "transformers", "vllm"})
"""Packages whose builds differ between GPUs and CPUs, so that the set-up script has to choose the right one."""


def require_packages(command: str, *packages: str) -> None:
    """Exit with an error message if a package is missing. The packages are not imported.

    Args:
        command: the command as the user types it, for the message.
        packages: names in the package index, as in the requirement files.

    Raises:
        SystemExit: a package is not installed. The message names the packages and the command that installs them.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if not missing:
        return
    if ENGINE.intersection(missing):
        advice = "Set up the environment of the server with ./start_server.sh, and use its Python: .venv/bin/python"
    else:
        install = [sys.executable, "-m", "pip", "install", *map(_pinned, missing)]
        advice = f"Install {'it' if len(missing) == 1 else 'them'} with: {shlex.join(install)}"
    verb = "is" if len(missing) == 1 else "are"
    raise SystemExit(f"error: {command} needs {', '.join(missing)}, which {verb} not installed.\n{advice}")


def _is_installed(package: str) -> bool:
    if package == "py-spy":  # a program without an importable module
        return Path(sys.executable).with_name("py-spy").is_file()
    return find_spec(MODULES.get(package, package)) is not None


def _pinned(package: str) -> str:
    """Return `package==version` from the requirement files, or only the name if none of them lists the package."""
    for lock in LOCKS:
        found = re.search(rf"^{re.escape(package)}==[^\s;]+", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[0]
    return package
