"""The package: what it installs, the requirements of its client, and its version."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ocr_client
import ocr_server

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = {"deepseek_ocr", "ocr_client", "ocr_server"}
PURE = {"ocr_server", "ocr_server.intake.page_selection"}
"""The modules of the server that the client uses. They import only the standard library."""
DOCTOR = {"checks.py", "machine.py"}
"""The modules of the client that inspect an installed server."""


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names of the modules that these statements import when they are executed, without calling functions."""
    for statement in body:
        match statement:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=orelse):
                yield from imported(orelse)
            case ast.If(body=body, orelse=orelse):
                yield from imported([*body, *orelse])
            case ast.Try(body=body, handlers=handlers):
                yield from imported([*body, *(each for handler in handlers for each in handler.body)])
            case ast.With(body=body) | ast.ClassDef(body=body):
                yield from imported(body)


def third_party(names: Iterator[str]) -> set[str]:
    """Return the third-party packages among these modules."""
    return {name.partition(".")[0] for name in set(names) - PURE} - set(sys.stdlib_module_names) - {"ocr_client"}


def client_modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module of the client, by file name."""
    return {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ocr_client").rglob("*.py")}


def test_client_extra_has_exactly_the_packages_that_the_client_imports() -> None:
    extra = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"]["client"]}
    assert set().union(*(third_party(imported(tree.body)) for tree in client_modules().values())) == extra


def test_only_the_doctor_command_imports_other_packages() -> None:
    extra = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"]["client"]}
    for name, tree in client_modules().items():
        everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert name in DOCTOR or third_party(imported(list(everywhere))) <= extra, name


def test_server_modules_used_by_the_client_need_no_packages() -> None:
    for name in PURE:
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert third_party(imported(ast.parse(path.read_text(encoding="utf-8")).body)) == set(), name


def test_client_extra_has_the_same_versions_as_the_server() -> None:
    locked = (ROOT / "requirements_api.txt").read_text(encoding="utf-8").splitlines()
    assert set(PROJECT["optional-dependencies"]["client"]) <= set(locked)


def test_all_packages_have_the_same_version() -> None:
    assert ocr_server.__version__ == ocr_client.__version__ == PROJECT["version"]


def test_version_is_known_in_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "ocr_server").mkdir()
    shutil.copy2(ROOT / "ocr_server" / "__init__.py", tmp_path / "ocr_server")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.8.7"\n')
    code = "import sys; sys.path.insert(0, sys.argv[1]); import ocr_server; print(ocr_server.__version__)"
    # -S: without site-packages, so that nothing is installed.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "9.8.7\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built in a copy of its tracked files."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in [*PACKAGES, "bench", "deploy", "nano"]:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "LICENSE"]:
        shutil.copy2(path, folder)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder / "dist"], cwd=folder, capture_output=True, check=True)
    (file,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


def test_general_names_are_not_installed(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_all_files_of_the_packages_are_installed(wheel: zipfile.ZipFile) -> None:
    """These include Python files, the web page, and the licences of the libraries that the page includes."""
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(expected - set(wheel.namelist())) == []


def test_metadata_is_complete(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    for line in ("License-Expression: MIT", "License-File: LICENSE", "License-File: THIRD_PARTY_LICENSES.md"):
        assert f"\n{line}\n" in metadata
    assert "\nProvides-Extra: client\n" in metadata
    for text in metadata.split("\n\n")[0].splitlines():
        if text.startswith("Requires-Dist:"):
            assert 'extra == "client"' in text
