"""The corpus job before it starts anything on the cluster, and its documentation."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deploy.ray_corpus import main, reason

ROOT = Path(__file__).parents[2]
app = typer.Typer()
app.command()(main)


def test_the_documented_options_exist() -> None:
    known = {flag for parameter in typer.main.get_command(app).params for flag in parameter.opts}
    documented = [
        line
        for path in (ROOT / "docs" / "scaling.md", ROOT / "deploy" / "ray_corpus.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*python (-m deploy.ray_corpus|deploy/ray_corpus.py)", line)
    ]
    assert len(documented) >= 3
    for line in documented:
        assert {word for word in shlex.split(line) if word.startswith("--")} <= known


def test_options_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    done = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "out"), "--mode", "huge"])
    assert done.exit_code == 2
    assert "mode" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["MAX_CONCURENCY=3", "MAX_CONCURENCY"])
def test_invalid_settings_are_refused(tmp_path: Path, setting: str) -> None:
    done = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "out"), "--setting", setting])
    assert done.exit_code == 2
    assert setting.partition("=")[0] in done.output


def test_the_reason_of_an_error_without_a_message_is_its_type() -> None:
    assert reason(OSError()) == "OSError"
