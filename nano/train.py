"""Train the embedded checkpoint.

    python -m nano.train --out runs/nano                                          # without a GPU
    python -m nano.train --out runs/nano --scale 16 --workers 14                  # with one
    python -m nano.train --out runs/more --start nano/checkpoint --batches 1800   # continue from a checkpoint

Training can be stopped at any time, and the same command resumes it, because the number of a batch determines its
pages. On SIGTERM or Ctrl-C, the current batch is completed first. For the cost and the results, see nano/README.md.

In addition to the next-token loss, there are auxiliary losses, without which the model does not learn to read: each
patch of SAM is asked which character covers it, each vision token which characters of which lines are in its area, and
the decoder in which line and where on the page it reads next (see nano/labels.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano.packages import require_packages

if __name__ == "__main__":  # before the imports below, and because rapidfuzz is not imported until the first save
    require_packages(
        "python -m nano.train", "torch", "numpy", "pillow", "rapidfuzz", "safetensors", "tokenizers", "tqdm"
    )

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm, trange

from deepseek_ocr.encoder.deep_encoder import views_by_size
from deepseek_ocr.images import normalize
from deepseek_ocr.memory import keep_memory
from nano import tokenizer
from nano.fonts import ADVICE, missing
from nano.labels import CLASSES, IGNORED, LINES, PLACES, SLOTS
from nano.model import CONFIG, NanoOcr, load
from nano.muon import Muon, multiplies_bf16
from nano.samples import GUNDAM, STAGES, Batch, Pages

WARM_UP = 100
"""Number of batches until the learning rate has its full value."""
LINE_START_WEIGHT = 6.0
"""Loss weight of the first character of a line: the model reads letters correctly long before it finds the next
line."""
LINE_END_WEIGHT = 3.0
"""Loss weight of the tokens that decide whether another line follows: the newline and eos. With more weight for eos
alone, answers ended early; without it, last lines were repeated."""
UNPRINTED_WEIGHT = 0.75
"""Loss weight of tokens that are not printed. Most of these are coordinates, whose last digits cannot be predicted."""
TWO_LINES_WEIGHT = 2.0
"""Loss weight of the characters in vision tokens with two lines, which are misread most often."""
LINE_NUMBER_WEIGHT = 0.4
"""Weight of the loss for line numbers: the text written last does not distinguish two lines that begin alike."""
LINE_NUMBER_LAYER = 2
"""The layer of the decoder from whose input the line numbers of vision tokens and of text tokens are predicted."""
TOKEN_PLACE_WEIGHT = 0.2
"""Weight of the loss for the places of vision tokens."""
AVERAGE_DECAY = 0.998
"""Decay of the moving average of the weights, which is what the checkpoint contains. Individual states sometimes
skipped a line that the states before and after them read."""
HEAD_BATCHES = 110
"""Number of batches in which the heads, which are not part of a checkpoint, are trained alone when a run starts from a
checkpoint."""
RESTART_RATE = 0.3
"""Share of the full learning rate in a run that starts from a checkpoint."""
FREEZE_SAM_AFTER = 0.3
"""Share of such a run after which SAM's layers are frozen. From then on, a batch takes seven tenths of the time."""
DECAY_AFTER = 0.15
"""Share of the run after which the learning rate begins to fall."""

LINE_STARTS = torch.tensor([tokenizer.make().token_to_id(token) for token in ("Ċ", "<|ref|>", "<td>")])
"""Ids of the tokens after which a line begins; the first one is the newline."""
LINE_ENDS = torch.tensor([LINE_STARTS[0], tokenizer.EOS])
"""Ids of the tokens that decide whether another line follows."""


@dataclass
class Losses:
    """The loss of a batch, and what is displayed about it."""

    total: torch.Tensor
    """The weighted sum of all losses, which is minimized."""
    text: float
    """The mean next-token loss."""
    patches: float
    """Share of the patches with a character for which this character is predicted."""
    cells: float
    """Share of the characters of vision tokens that are predicted in the right order."""
    line_starts: float
    """Share of the first characters of lines that are predicted."""


class Trainer(nn.Module):
    """The model, and the heads for the auxiliary losses."""

    def __init__(self) -> None:
        super().__init__()
        self.model = NanoOcr()
        self.patch_head = nn.Linear(self.model.encoder.sam_model.pos_embed.shape[-1], CLASSES)
        self.cell_head = nn.Linear(CONFIG["language_config"]["hidden_size"], 2 * SLOTS * CLASSES)
        self.space_head = nn.Linear(CONFIG["language_config"]["hidden_size"], 2 * SLOTS)
        self.place_head = nn.Linear(CONFIG["language_config"]["hidden_size"], 2 * PLACES)
        self.cell_line_head = nn.Linear(CONFIG["language_config"]["hidden_size"], 2 * LINES)
        self.token_line_head = nn.Linear(CONFIG["language_config"]["hidden_size"], 2 * LINES)
        self.line_head = nn.Linear(CONFIG["language_config"]["hidden_size"], LINES)

    def heads(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the heads, which are used only in training."""
        for name, head in self.named_children():
            if name != "model":
                yield from head.parameters()

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a batch. If the batch does not train the decoder, only those of the encoder."""
        encoder = self.model.encoder
        encoded: dict[int, Iterator[torch.Tensor]] = {}
        total = torch.zeros((), device=batch.tokens.device)
        patch_accuracy: list[float] = []
        cell_accuracy: list[float] = []
        by_size = views_by_size(batch.images)
        for (size, views), patches, cells, spaces, lines in zip(
            by_size.items(), batch.patches, batch.cells, batch.cell_spaces, batch.cell_lines, strict=True
        ):
            patch_features = encoder.sam_model.patches(normalize(views, torch.float32))
            features = encoder.project(encoder.sam_model.compress(patch_features))
            encoded[size] = iter(features)
            cell_weights = torch.where(lines[..., 0] == lines[..., 1], 1.0, TWO_LINES_WEIGHT)
            for head, inputs, targets, weights, accuracy in (
                (
                    self.patch_head,
                    patch_features,
                    patches,
                    torch.ones_like(patches, dtype=torch.float32),
                    patch_accuracy,
                ),
                (self.cell_head, features, cells, cell_weights[..., None, None].expand_as(cells), cell_accuracy),
            ):
                logits = head(inputs).float().reshape(-1, CLASSES)
                targets, weights = targets.flatten(), weights.flatten()
                loss = weights * F.cross_entropy(logits, targets, reduction="none")
                characters = targets > 0
                total = total + 0.5 * loss[characters].sum() / weights[characters].sum().clamp(min=1)
                total = total + 0.25 * mean(loss[~characters])
                accuracy.append(mean((logits.argmax(-1) == targets)[characters].float()).item())
            counted = spaces != IGNORED
            logits = self.space_head(features).float().view_as(spaces)[counted]
            total = total + mean(F.binary_cross_entropy_with_logits(logits, spaces[counted].float(), reduction="none"))
            total = total + LINE_NUMBER_WEIGHT * line_number_loss(first_and_last(self.cell_line_head(features)), lines)
        text = line_start_accuracy = 0.0
        if batch.read:
            images = encoder.assemble_all(batch.images, encoded)
            logits = self.model(images, batch.tokens, batch.questions).float()
            counted = batch.targets != IGNORED
            starts = torch.isin(batch.tokens, LINE_STARTS.to(batch.tokens.device))[counted]
            ends = torch.isin(batch.targets, LINE_ENDS.to(batch.tokens.device))[counted]
            logits, targets = logits[counted], batch.targets[counted]
            weights = torch.where(batch.lines[counted] == IGNORED, UNPRINTED_WEIGHT, 1.0)
            loss = F.cross_entropy(logits, targets, reduction="none")
            text = loss.mean().item()
            weights = torch.where(starts, LINE_START_WEIGHT, torch.where(ends, LINE_END_WEIGHT, weights))
            total = total + (loss * weights).sum() / weights.sum() + 0.01 * self.model.decoder.balance()
            line_start_accuracy = mean((logits.argmax(-1) == targets)[starts].float()).item()
            layer_inputs = self.model.decoder.layer_inputs
            _, of_image, of_text = layer_inputs[LINE_NUMBER_LAYER].split(
                [1, batch.token_lines.shape[1], batch.tokens.shape[1]], dim=1
            )
            token_lines = first_and_last(self.token_line_head(of_image))
            total = total + LINE_NUMBER_WEIGHT * line_number_loss(token_lines, batch.token_lines)
            total = total + LINE_NUMBER_WEIGHT * line_number_loss(self.line_head(of_text), batch.lines)
            places = self.place_head(layer_inputs[-1]).float().unflatten(-1, (PLACES, 2))
            placed = batch.places[counted][:, 0] != IGNORED
            if placed.any():
                of_text = places[:, -batch.tokens.shape[1] :]
                loss = place_loss(of_text[counted][placed], batch.places[counted][placed])
                total = total + (loss * weights[placed]).sum() / weights[placed].sum()
            squares = batch.token_places[..., 0] != IGNORED
            of_image = places[:, 1 : -batch.tokens.shape[1]]
            total = total + TOKEN_PLACE_WEIGHT * place_loss(of_image[squares], batch.token_places[squares]).mean()
        return Losses(total, text, mean_of(patch_accuracy), mean_of(cell_accuracy), line_start_accuracy)


def line_number_loss(logits: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of line numbers.

    Args:
        logits: [..., LINES].
        lines: [...], the correct numbers. Where they are `IGNORED`, there is no loss.
    """
    counted = lines != IGNORED
    return mean(F.cross_entropy(logits[counted].float(), lines[counted], reduction="none"))


def first_and_last(logits: torch.Tensor) -> torch.Tensor:
    """Reshape [..., 2 · LINES] to [..., 2, LINES]: the logits of the first and of the last line in a vision token."""
    return logits.unflatten(-1, (2, LINES))


def place_loss(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of places [N], the mean of that of columns and of rows.

    Args:
        logits: [N, PLACES, 2].
        places: [N, 2], the correct columns and rows.
    """
    return F.cross_entropy(logits, places, reduction="none").mean(-1)


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean, or 0 if there are no values."""
    return values.mean() if values.numel() else values.sum()


def optimizers(trainer: Trainer) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices, and AdamW for all other parameters.

    Here, Muon learns several times faster than AdamW does.
    """
    others = ("embed", "lm_head", "mlp.gate.weight", "head", "pos", "patch_embed")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in trainer.named_parameters():
        (matrices if parameter.ndim == 2 and not any(part in name for part in others) else rest).append(parameter)
    return [
        Muon(matrices, lr=0.01, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=8e-4, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate(number: int, done: float) -> float:
    """Return the factor of the learning rate: a warm-up, a constant part, then a linear decay to 0.02.

    Args:
        number: number of the batch.
        done: share of the run that is completed, from 0 to 1.
    """
    warm_up = min(1.0, (number + 1) / WARM_UP)
    return warm_up * (1 if done < DECAY_AFTER else max(0.02, 1 - (done - DECAY_AFTER) / (1 - DECAY_AFTER)))


class Run:
    """A training run, with all the state that is needed to resume it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.trainer = Trainer().to(device)
        self.average = AveragedModel(self.trainer.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
        self.optimizers = optimizers(self.trainer)
        self._full_rates = [group["lr"] for group in self._groups()]
        self.batches, self.pages, self.seconds = 0, 0, 0.0
        """The number of batches and pages so far, and the time that they took."""

    def start(self, checkpoint: Path, pages: Iterable[Batch]) -> None:
        """Load the weights of a checkpoint, and train the heads on `pages` without changing the weights."""
        model = self.trainer.model
        for each in (model, self.average.module):
            each.load_state_dict(load(checkpoint).state_dict())
        optimizer = torch.optim.AdamW(self.trainer.heads(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, HEAD_BATCHES)
        model.requires_grad_(False)
        for batch in pages:
            self._losses(batch).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        model.requires_grad_(True)

    def freeze_sam(self) -> None:
        """Freeze SAM's layers. Its compressor is still trained."""
        sam = self.trainer.model.encoder.sam_model
        for part in (sam.patch_embed, sam.blocks):
            part.requires_grad_(False)
        sam.pos_embed.requires_grad_(False)

    def freeze_encoder(self) -> None:
        """Freeze the encoder, except for the embeddings of the newline and of the separator of views."""
        encoder = self.trainer.model.encoder
        encoder.requires_grad_(False)
        for embedding in (encoder.image_newline, encoder.view_seperator):
            embedding.requires_grad_(True)

    def step(self, batch: Batch, share: float) -> Losses:
        """Train on a batch, with the given share of the full learning rate."""
        for group, lr in zip(self._groups(), self._full_rates, strict=True):
            group["lr"] = lr * share
        losses = self._losses(batch)
        losses.total.backward()
        nn.utils.clip_grad_norm_(self.trainer.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.trainer.model)
        self.batches += 1
        self.pages += len(batch.images)
        return losses

    def _losses(self, batch: Batch) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=multiplies_bf16(self.device)):
            losses: Losses = self.trainer(batch.to(self.device))
        return losses

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def save(self, folder: Path) -> None:
        """Write the state to `run.pt`. If the process is killed while writing, the previous state remains."""
        state = {
            "trainer": self.trainer.state_dict(),
            "average": self.average.state_dict(),
            "steppers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batch": self.batches,
            "seconds": self.seconds,
            "pages": self.pages,
        }
        unfinished = folder / "run.pt.part"
        torch.save(state, unfinished)
        os.replace(unfinished, folder / "run.pt")

    def load(self, folder: Path) -> None:
        """Read the state of the run in `folder`, to resume it."""
        state = torch.load(folder / "run.pt", map_location=self.device, weights_only=True)
        self.trainer.load_state_dict(state["trainer"])
        self.average.load_state_dict(state["average"])
        for optimizer, each in zip(self.optimizers, state["steppers"], strict=True):
            optimizer.load_state_dict(each)
        self.batches, self.pages, self.seconds = state["batch"], state["pages"], state["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the state of the run and the checkpoint")
    parser.add_argument("--batches", type=int, default=8_000, help="number of batches (default: %(default)s)")
    parser.add_argument("--start", type=Path, help="start from this checkpoint, in the last stage of the curriculum")
    parser.add_argument("--decoder-alone", action="store_true", help="freeze the encoder from the beginning")
    parser.add_argument(
        "--scale", type=int, default=1, help="factor for the pages in a batch, for devices with enough memory"
    )
    parser.add_argument(
        "--length", type=float, help="minutes of training after which the run ends even if there are batches left"
    )
    parser.add_argument("--minutes", type=float, help="stop this call after so many minutes; the next one resumes")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes that render pages (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and pages (default: %(default)s)")
    parser.add_argument(
        "--save-every", type=float, default=5, help="minutes between saved states (default: %(default)s)"
    )
    parser.add_argument("--few-fonts", action="store_true", help="train even if some of the fonts are not installed")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device (default: %(default)s)"
    )
    options = parser.parse_args()
    if not options.few_fonts and (absent := missing()):
        parser.error(
            f"these fonts are not installed: {', '.join(absent)}. To train with all fonts, {ADVICE}; to train without "
            "these, use --few-fonts."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    keep_memory()
    # oneDNN caches a compiled product for each shape. With its default capacity, memory grew by 7 MB per batch.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    stop_signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop_signals.append(number))

    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    run = Run(device)
    stages = STAGES[-1:] if options.start else STAGES
    pages = Pages(options.batches, options.seed, options.scale, stages)
    if (options.out / "run.pt").exists():
        run.load(options.out)
    elif options.start:
        run.start(options.start, (pages[number] for number in trange(HEAD_BATCHES, desc="heads", unit="batch")))
    if options.decoder_alone:
        run.freeze_encoder()
    full_rate = RESTART_RATE if options.start else 1.0

    def done() -> float:
        """Return the share of the run that is completed, by batches or by time, whichever is greater."""
        return max(run.batches / options.batches, run.seconds / 60 / (options.length or float("inf")))

    if done() >= 1:
        print("This run is already finished.")
        return

    loader = DataLoader(
        Subset(pages, range(run.batches, options.batches)),
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
        pin_memory=device.type == "cuda",
    )
    started = saved = last = time.monotonic()
    bar = tqdm(loader, initial=run.batches, total=options.batches, unit="batch", smoothing=0.05)
    recent: deque[tuple[float, float, float, float]] = deque(maxlen=50)
    for batch in bar:
        if options.start and done() >= FREEZE_SAM_AFTER:
            run.freeze_sam()
        losses = run.step(batch, full_rate * rate(run.batches, done()))
        if batch.read:
            recent.append((losses.text, losses.patches, losses.cells, losses.line_starts))
        now = time.monotonic()
        run.seconds += now - last
        last = now
        if run.batches % 10 == 0 and recent:
            text, patches, cells, starts = (mean_of(list(each)) for each in zip(*recent, strict=True))
            accuracies = f"patches {patches:.3f} cells {cells:.3f} line starts {starts:.3f}"
            bar.set_postfix_str(f"{run.pages / run.seconds:.1f} pages/s text loss {text:.3f} {accuracies}")
        out_of_time = options.minutes is not None and now - started > options.minutes * 60
        stops = out_of_time or bool(stop_signals) or done() >= 1
        if now - saved > options.save_every * 60 or stops:
            run.save(options.out)
            saved = now
            error = f", character error {quick_error(run.average.module, device):.3f}" if batch.read else ""
            bar.write(f"batch {run.batches}: {run.pages} pages{error}")
        if stops:
            break
    export(run.average.module, options.out / "checkpoint")
    checkpoint = options.out / "checkpoint"
    print(f"{run.pages} pages in {run.seconds / 60:.0f} minutes on {device}; the checkpoint is in {checkpoint}")


def quick_error(model: NanoOcr, device: torch.device, pages: int = 8) -> float:
    """Return the character error on a few clean evaluation pages. For precise figures, use nano/evaluate.py."""
    from nano.evaluate import ROWS, answer, measure

    model.eval()
    metrics = measure(ROWS[0], lambda questions, _: answer(model, device, questions, GUNDAM, most=1000), pages)
    model.train()
    return metrics["character error"]


def export(model: NanoOcr, folder: Path) -> None:
    """Write a checkpoint in the layout in which DeepSeek-OCR is published: weights, config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state(), str(folder / "model.safetensors"), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n")
    tokenizer.save(folder)


if __name__ == "__main__":
    main()
