"""Run real clients of the OpenAI and Mistral APIs against a server, each in an environment of its own.

A client is a small script in its own language: `python/NAME/read.py`, with its locked packages beside it, or
`javascript/NAME.mjs`; those share one lock. The script gets the paths of an example picture and an example PDF as
arguments and the server's base URL in `OCR_BASE_URL`. It reads them with the client's defaults and prints a line of
JSON for each answer: which of the two was read, in which way, with which prompt, and the text.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "clients"
PICTURE = ROOT / "examples" / "sign.png"
PDF = ROOT / "examples" / "papers.pdf"
PAGES = ("receipt", "letter", "sign")
"""The examples that the pages of the PDF show, in order."""

EXACT = "Free OCR."
"""The prompt that the embedded checkpoint follows best."""
LIKENESS = 0.6
"""How much of a page the embedded checkpoint reads at least with its other prompts."""

INSTALL_SECONDS = 900.0
READ_SECONDS = 240.0
"""Limits that only guard against hanging."""

SLOW = frozenset({"dify", "docling", "litellm", "llama-index", "markitdown", "open-webui", "zerox"})
"""Clients that take long to install or to start. They are run by the command only, not in CI."""

UNREACHABLE = re.compile(
    r"dns error|error sending request|failed to lookup|tcp connect error|operation timed out"
    r"|EAI_AGAIN|ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|network request",
    re.IGNORECASE,
)


class CannotInstall(Exception):
    """The packages of a client can't be had here: no network, or no tool for the language."""


@dataclass(frozen=True)
class Client:
    """A client and the script that reads with it."""

    name: str
    script: Path
    packages: tuple[str, ...]
    """The packages to report, with their locked versions, as `name version`."""

    @property
    def in_ci(self) -> bool:
        return self.name not in SLOW


@dataclass(frozen=True)
class Reading:
    """One answer that a client got."""

    document: str
    """`picture` or `pdf`; `fields` for structured values of the picture, whose types the client has checked."""
    how: str
    prompt: str
    """What the client asked; empty if it only sent the document."""
    text: str


def clients() -> list[Client]:
    """Return all clients, in the order of their names."""
    found = [
        Client(folder.name, folder / "read.py", tuple(_locked_python(folder)))
        for folder in (HERE / "python").iterdir()
        if (folder / "read.py").is_file()
    ]
    lock = json.loads((HERE / "javascript" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    for script in (HERE / "javascript").glob("*.mjs"):
        imported = re.findall(r'from "((?:@[\w-]+/)?[\w-]+)"', script.read_text(encoding="utf-8"))
        packages = tuple(
            f"{name} {lock[path]['version']}" for name in imported if (path := f"node_modules/{name}") in lock
        )
        found.append(Client(script.stem, script, packages))
    return sorted(found, key=lambda client: client.name)


def read(client: Client, base_url: str, pdf: Path = PDF) -> list[Reading]:
    """Install a client if it is not yet, run its script and return its answers.

    Args:
        base_url: the server's URL with `/v1`.
        pdf: the PDF to read.

    Raises:
        CannotInstall: the client can't be installed here.
        AssertionError: the script failed; the message has its output.
    """
    if client.script.suffix == ".py":
        return answers([str(_python_environment(client.script.parent)), "-P", str(client.script)], base_url, pdf)
    return answers(["node", str(_javascript_environment() / client.script.name)], base_url, pdf)


def answers(command: list[str], base_url: str, pdf: Path = PDF) -> list[Reading]:
    """Run a script and return what it read. Raises AssertionError with its output if it failed."""
    done = subprocess.run(
        [*command, str(PICTURE), str(pdf)],
        env=_environment() | {"OCR_BASE_URL": base_url, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=READ_SECONDS,
    )
    output = f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, f"{command[-1]} failed with {done.returncode}:\n{output}"
    return [Reading(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def complaint(reading: Reading, pages: Sequence[str] = PAGES) -> str | None:
    """Return what is wrong with a client's answer, or None.

    The embedded checkpoint reads every letter with "Free OCR." and most of the page with other prompts.

    Args:
        pages: the examples that the pages of the PDF show.
    """
    names = pages if reading.document == "pdf" else (PICTURE.stem,)
    truth = [(ROOT / "examples" / f"{name}.txt").read_text(encoding="utf-8") for name in names]
    text = _words(reading.text or "")
    if left := re.findall(r"<\|/?(?:ref|det|grounding)\|>", text):
        return f"the model's markers are in the text: {left[0]}"
    if reading.document == "fields":  # the embedded checkpoint cannot choose among values
        return None if text else "there is no value"
    if reading.prompt == EXACT:
        position = 0
        for line in "\n".join(truth).splitlines():
            found = text.find(_words(line), position)
            if found < 0:
                return f"{line!r} is not in the text: {text!r}"
            position = found + 1
        return None
    likeness = difflib.SequenceMatcher(None, _words(" ".join(truth)), text, autojunk=False).ratio()
    return None if likeness >= LIKENESS else f"only {likeness:.0%} like the page: {text!r}"


def _words(text: str) -> str:
    """Return a text without markdown and with single spaces, which clients are free to change."""
    return " ".join(re.sub(r"[#*\\]", "", text).split())


def _environment() -> dict[str, str]:
    """Return the environment of this process without keys and addresses of other servers."""
    others = ("OPENAI_", "MISTRAL_", "ANTHROPIC_", "LITELLM_", "VIRTUAL_ENV", "PYTHONPATH", "DEEPSEEK_OCR_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


def _locked_python(folder: Path) -> Iterator[str]:
    locked = dict(
        re.findall(r"^([\w.-]+)==([^\s;\\]+)", (folder / "requirements.txt").read_text(encoding="utf-8"), re.M)
    )
    named = re.search(r"^[\w-]+", (folder / "requirements.in").read_text(encoding="utf-8"), re.M)
    assert named, f"{folder.name} names no package"
    yield f"{named[0]} {locked[named[0]]}"


def _python_environment(folder: Path) -> Path:
    """Return the interpreter of a client's environment, which is made if it is missing or its lock has changed."""
    lock = folder / "requirements.txt"
    target = CACHE / f"{folder.name}-{_digest(lock)}"
    python = target / "bin" / "python"
    if not (target / "ready").exists():
        uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
        if uv is None:
            raise CannotInstall("uv is not installed; it is one of the packages in requirements_dev.txt")
        _discard(folder.name)
        _install([uv, "venv", "--quiet", "--python", sys.executable, str(target)])
        options = ("--quiet", "--no-deps", "--require-hashes", "--python", str(python))
        _install([uv, "pip", "install", *options, "-r", str(lock)])
        (target / "ready").touch()
    return python


def _javascript_environment() -> Path:
    """Return a folder with the scripts and the packages that they import."""
    source = HERE / "javascript"
    target = CACHE / f"javascript-{_digest(source / 'package-lock.json')}"
    if not (target / "ready").exists():
        npm = shutil.which("npm")
        if npm is None:
            raise CannotInstall("Node.js and npm are not installed")
        _discard("javascript")
        target.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, target)
        _install(
            [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--prefix", str(target)]
        )
        (target / "ready").touch()
    for script in source.glob("*.mjs"):
        shutil.copy(script, target)
    return target


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


def _discard(name: str) -> None:
    """Delete the environments of earlier locks, and one whose installation was interrupted."""
    for old in CACHE.glob(f"{name}-{'[0-9a-f]' * 12}"):
        shutil.rmtree(old)


def _install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, env=_environment())
    if done.returncode:
        if UNREACHABLE.search(done.stderr):
            raise CannotInstall(f"the package registry can't be reached:\n{done.stderr[-500:]}")
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
