"""Training can be resumed, and writes a checkpoint."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from deepseek_ocr.layout import published_layout
from nano.labels import IGNORED
from nano.model import load
from nano.render import Sheet, render
from nano.samples import GUNDAM, SMALL, Pages, Recipe, square
from nano.tokenizer import make
from nano.train import Run, main

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "nano" / "checkpoint"


def train(out: Path) -> str:
    """Train one batch of a long run, and return what is printed."""
    command = [sys.executable, "-m", "nano.train", "--few-fonts", "--out", str(out)]
    command += ["--batches", "5000", "--minutes", "1e-6", "--workers", "0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_run_is_resumed_and_writes_a_checkpoint(tmp_path: Path) -> None:
    first = train(tmp_path)
    second = train(tmp_path)
    assert "40 pages in" in first
    assert "80 pages in" in second
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert (state["batch"], state["pages"]) == (2, 80)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", "pt") as weights:
        written = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert written == published_layout(config)


def test_run_that_starts_from_a_checkpoint_trains_the_heads_first() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    recipe = Recipe(SMALL, square(256), 2)
    batch = Pages(1, seed=0).batch([render(SMALL, rng) for _ in range(2)], recipe, rng)
    run = Run(torch.device("cpu"))
    heads = [each.detach().clone() for each in run.trainer.heads()]
    run.start(CHECKPOINT, [batch])
    loaded = load(CHECKPOINT).state_dict()
    for model in (run.trainer.model, run.average.module):
        assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(a, b) for a, b in zip(heads, run.trainer.heads(), strict=True))

    run.step(batch, 1.0)
    changed = [not torch.equal(value, loaded[name]) for name, value in run.trainer.model.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)

    def unchanged() -> set[str]:
        """Return the parameters that a training step does not change."""
        before = {name: value.detach().clone() for name, value in run.trainer.model.named_parameters()}
        run.step(batch, 1.0)
        after = run.trainer.model.named_parameters()
        return {name for name, value in after if torch.equal(value, before[name])}

    run.freeze_sam()
    sam = {name for name in loaded if re.match(r"encoder\.sam_model\.(blocks|patch_embed|pos_embed)", name)}
    frozen = unchanged()
    assert sam <= frozen
    assert len(frozen) < len(sam) + 0.1 * len(loaded)

    run.freeze_encoder()
    encoder = {name for name in loaded if name.startswith("encoder.")}
    frozen = unchanged()
    assert encoder - frozen == {"encoder.image_newline", "encoder.view_seperator"}
    assert len(frozen - encoder) < 0.1 * len(loaded)


def test_training_with_missing_fonts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Lato-Regular.ttf").touch()
    monkeypatch.setattr("nano.fonts.FOLDERS", (tmp_path,))
    monkeypatch.setattr("sys.argv", ["nano.train", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().err
    assert "these fonts are not installed: DejaVuSans, " in message
    assert "Lato" not in message


def test_number_determines_the_batch() -> None:
    pages, again = Pages(1000, seed=0), Pages(1000, seed=0)
    _ = pages[3]
    one, other = pages[200], again[200]
    assert torch.equal(one.tokens, other.tokens)
    assert all(torch.equal(a.global_view, b.global_view) for a, b in zip(one.images, other.images, strict=True))
    assert not torch.equal(Pages(1000, seed=1)[200].images[0].global_view, one.images[0].global_view)


def test_misread_characters_are_in_the_input_but_not_in_the_targets_or_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano.samples.MISREAD", 1.0)
    rng = random.Random(0)
    recipe = Recipe(Sheet(max_lines=6), GUNDAM, 1, ("lines",))
    page = render(recipe.sheet, rng)
    batch = Pages(1, seed=0).batch([page], recipe, rng)
    targets = batch.targets[0, :-1]
    answer = targets != IGNORED
    shown, wanted = batch.tokens[0, 1:][answer], targets[answer]

    tokenizer = make()
    misread, truth = (tokenizer.decode(each.tolist(), skip_special_tokens=False) for each in (shown, wanted))
    line = re.compile(r"<\|ref\|>(.*?)<\|/ref\|>(<\|det\|>.*?<\|/det\|>)")
    assert [box for _, box in line.findall(misread)] == [box for _, box in line.findall(truth)]
    assert [text for text, _ in line.findall(truth)] == [line.text for line in page.lines()]
    assert 0.02 < (shown != wanted).float().mean() < 0.1
