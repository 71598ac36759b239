"""Folders and files that only the server's user can read."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER, FILE = 0o700, 0o600


def make_folder(path: Path, own_names: re.Pattern[str]) -> None:
    """Create a folder with its parents, or repair the modes of an existing one and of the server's files in it.

    The mode of an existing folder is changed only if all that it contains is the server's: it may be `/tmp`.

    Args:
        path: The folder.
        own_names: Names of what the server has in it.
    """
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(FOLDER, exist_ok=True)
    own, others = list[Path](), False
    for entry in os.scandir(path):
        if entry.is_symlink() or not own_names.fullmatch(entry.name):
            others = True
        elif entry.is_file(follow_symlinks=False):
            own.append(Path(entry.path))
    for file in own:
        restrict(file, FILE)
    if not others:
        restrict(path, FOLDER)
    elif path.stat().st_mode & 0o077:
        logger.warning("%s can be read by other users of this machine; the server's files in it cannot", path)


def restrict(path: Path, mode: int) -> None:
    """Remove the permissions that `mode` does not have. A file that belongs to another user is left as it is."""
    try:
        present = path.stat().st_mode & 0o777
        if present & ~mode:
            path.chmod(present & mode)
    except FileNotFoundError:
        pass
    except PermissionError:
        logger.warning("the permissions of %s cannot be restricted, since it belongs to another user", path)
