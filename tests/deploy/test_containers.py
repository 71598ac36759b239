"""The images, the compose file and the Helm chart are valid and consistent with the program."""

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import jsonschema
import pytest
import yaml

from config import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "deepseek-ocr"
DOCKERFILES = ["Dockerfile", "Dockerfile.cpu"]
FILES = [
    path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml", ".cpu", ".tpl") or path.name == "Dockerfile"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_environment_variables_are_settings(path: Path) -> None:
    names = set(re.findall(rf"{ENV_PREFIX}([A-Z0-9_]+)", path.read_text()))
    assert names <= set(Settings.model_fields) | {""}


def test_settings_of_the_ray_deployment_exist() -> None:
    application = yaml.safe_load((DEPLOY / "ray_serve.yaml").read_text())["applications"][0]
    assert set(application["args"]["settings"]) <= set(Settings.model_fields)


def test_the_ray_deployment_listens_on_this_machine_only() -> None:
    configuration = yaml.safe_load((DEPLOY / "ray_serve.yaml").read_text())
    assert configuration["http_options"]["host"] == "127.0.0.1"
    assert configuration["applications"][0]["args"]["metrics_host"] == "127.0.0.1"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_the_linter(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DEPLOY / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_as_an_unprivileged_user_and_have_a_health_check(name: str) -> None:
    text = (DEPLOY / name).read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_can_be_built_from_one_exact_base_image(name: str) -> None:
    bases = re.findall(r"^FROM (\S+)", (DEPLOY / name).read_text(), re.MULTILINE)
    assert bases == ["${BASE}", "${BASE}"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_packages_of_the_images_are_checked_against_their_hashes(name: str) -> None:
    installs = re.findall(r"pip install ([^&\n\\]+)", (DEPLOY / name).read_text())
    from_index = [each for each in installs if not each.rstrip().endswith("-e .") and "torch==" not in each]
    assert len(from_index) == 1
    assert "--require-hashes" in from_index[0]


def test_actions_of_the_workflows_are_pinned_to_commits() -> None:
    used = [
        line.split("uses:")[1].split()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    for action, *version in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)
        assert version[0] == "#"


def test_needed_files_are_not_excluded_from_the_image() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = [
        name
        for name in tracked
        if name.startswith(("deepseek_ocr/", "ocr_server/", "ocr_client/", "nano/checkpoint/", "examples/"))
        or ("/" not in name and name.endswith((".py", ".toml")))
        or name.startswith(("requirements_", "locks/"))
    ]
    assert needed
    left_out = [name for name in needed if not any(fnmatch(name, one) or name.startswith(f"{one}/") for one in allowed)]
    assert left_out == []


def test_versions_in_the_images_are_the_locked_ones() -> None:
    torch = re.search(r"torch==\S+", (DEPLOY / "Dockerfile.cpu").read_text())
    assert torch is not None
    assert torch[0] in (ROOT / "requirements_cpu.txt").read_text()


class TestCompose:
    def test_mounted_files_exist(self) -> None:
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        for service in compose["services"].values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (DEPLOY / source).exists()
                else:
                    assert source in compose["volumes"]
            if "build" in service:
                assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()

    def test_ports_are_published_on_this_machine_only(self) -> None:
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        published = [port for service in compose["services"].values() for port in service.get("ports", [])]
        assert published
        for port in published:
            assert port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:"))

    def test_prometheus_scrapes_the_server(self) -> None:
        prometheus = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        target = prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0]
        assert target.split(":")[0] in compose["services"]
        assert int(target.split(":")[1]) == Settings.model_fields["PORT"].default


class TestChart:
    def test_the_values_match_their_schema(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        jsonschema.validate(values, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values | {"replica": 2}, schema)

    def test_values_are_used_and_used_values_exist(self) -> None:
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        there = set()
        for name, value in values.items():
            deep = isinstance(value, dict) and value and name not in ("resources",)
            there |= {f"{name}.{each}" for each in value} if deep else {name}
        text = "".join(path.read_text() for path in (CHART / "templates").iterdir())
        used = set(re.findall(r"\.Values\.([\w.]+)", text))
        assert used - there <= {"nameOverride", "fullnameOverride", "resources.requests", "resources.limits"}
        assert there - used == {"resources"}

    def test_the_chart_passes_the_linter(self) -> None:
        helm = shutil.which("helm")
        if helm is None:
            pytest.skip("helm is not installed")
        done = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
