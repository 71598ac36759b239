"""nano.average writes the weighted mean of checkpoints as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nano import average
from nano.model import NanoOcr, load
from nano.train import export


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints with different random weights."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    for number, folder in enumerate(folders):
        torch.manual_seed(number)
        export(NanoOcr(), folder)
    return folders


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["average", *map(str, arguments)])
    average.main()


def test_weights_are_the_weighted_mean(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, tmp_path, 3, checkpoints[0], 1, checkpoints[1])
    states = [load(folder).state_dict() for folder in (*checkpoints, tmp_path)]
    for name, mean in states[2].items():
        torch.testing.assert_close(mean, 0.75 * states[0][name] + 0.25 * states[1][name], rtol=0.01, atol=1e-3)
    written, part = (load_file(str(folder / "model.safetensors")) for folder in (tmp_path, checkpoints[0]))
    assert {name: (each.shape, each.dtype) for name, each in written.items()} == {
        name: (each.shape, each.dtype) for name, each in part.items()
    }


def test_share_without_checkpoint_is_rejected(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, 3, checkpoints[0], 1)
    assert "give shares and checkpoints alternately" in capsys.readouterr().err
