"""Make the hash-checked locks in `locks/` from the requirement files that pin the versions.

python scripts/lock_hashes.py           rewrites the files in locks/
python scripts/lock_hashes.py --check   exits with 1 if one of them does not have the versions of its requirement file

Writing needs `uv` on the PATH and a package index; only metadata is downloaded. Checking needs neither. Builds of torch
for the CPU are left out: they are on an index of their own, which does not publish a hash for each file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    name: (ROOT / f"requirements_{name}.txt", ROOT / "locks" / f"{name}.txt") for name in ("cpu", "gpu", "dev", "sbom")
}
HEADER = """\
# The versions of {source}, each with the hashes of its files. Made by scripts/lock_hashes.py.
# Install them with:
#
#     pip install --no-deps --require-hashes -r locks/{name}.txt
#
"""


def pinned(source: Path) -> list[str]:
    """Return the requirements of a file that are locked with hashes, without comments, in the file's order."""
    lines = [line.split("#", 1)[0].strip() for line in source.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-") and "+cpu" not in line]


def locked(lock: Path) -> dict[str, set[str]]:
    """Return the requirements of a lock, each with its hashes."""
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    found = {}
    for entry in re.split(r"(?<!\\)\n", text):
        if entry.strip() and not entry.startswith("#"):
            requirement, *hashes = re.split(r"\s*\\\n\s*--hash=", entry)
            found[requirement] = set(hashes)
    return found


def difference(source: Path, lock: Path) -> set[str]:
    """Return the requirements that only one of the files has, or that have no hash."""
    wanted = {_normal(line) for line in pinned(source)}
    there = {_normal(line): hashes for line, hashes in locked(lock).items()}
    return wanted ^ there.keys() | {line for line, hashes in there.items() if not hashes}


def _normal(requirement: str) -> str:
    """Return a requirement as both files can write it: names, and spaces and quotes in markers, may differ."""
    name, _, rest = re.sub(r"\s+", "", requirement).replace("'", '"').partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={rest}"


def write(name: str) -> None:
    """Write the lock of a requirement file."""
    source, lock = LOCKS[name]
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "requirements.txt"
        given.write_text("\n".join(pinned(source)), encoding="utf-8")
        options = "--universal --python-version 3.11 --no-deps --generate-hashes --no-header --no-annotate --quiet"
        done = subprocess.run(
            ["uv", "pip", "compile", str(given), *options.split()], capture_output=True, text=True, check=True
        )
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(HEADER.format(source=source.name, name=name) + done.stdout, encoding="utf-8")


def main() -> int:
    if "--check" not in sys.argv:
        for name in LOCKS:
            write(name)
    problems = {lock.name: difference(source, lock) for source, lock in LOCKS.values()}
    for name, lines in problems.items():
        for line in sorted(lines):
            print(f"locks/{name}: {line} is not locked like this; run python scripts/lock_hashes.py.", file=sys.stderr)
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
