"""The fast part of the tests (./run_tests.sh --fast) runs without vLLM, whether or not vLLM is installed."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

FAST = os.environ.get("OCR_TESTS_FAST") == "1"
"""Set by `./run_tests.sh --fast`."""
EXCLUDED = frozenset({"live", "engine", "browser", "slow"})
"""The markers of tests that the fast part leaves out."""


class RefuseVllm:
    """An import hook that refuses vLLM, so that a fast test that needs it fails with a clear message."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "vllm" or name.startswith("vllm."):
            raise ImportError(
                f"{name} was imported in the fast part of the tests, which runs without vLLM. Either mark the test "
                "with @pytest.mark.engine (a whole file: pytestmark = pytest.mark.engine), or import vLLM only in "
                "the function that uses it.",
                name=name,
            )
        return None


if FAST:
    sys.meta_path.insert(0, RefuseVllm)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Do not import files in which every test is left out: they may import vLLM at their beginning."""
    if FAST and collection_path.suffix == ".py" and EXCLUDED & markers_of_file(collection_path):
        return True
    return None


def markers_of_file(path: Path) -> set[str]:
    """The names of the markers that a file sets for all of its tests with `pytestmark`. The file is not imported."""
    found: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id="pytestmark"), value=ast.expr() as value):
                pass
            case _:
                continue
        for node in ast.walk(value):  # pytest.mark.NAME: alone, called, or in a list
            match node:
                case ast.Attribute(value=ast.Attribute(attr="mark"), attr=name):
                    found.add(name)
    return found
