"""Train the embedded checkpoint, from nothing.

    python -m nano.train --out runs/nano                      # the CPU recipe
    python -m nano.train --out runs/nano --scale 16 --workers 14   # with a GPU
    python -m nano.train --out runs/more --start nano/checkpoint --batches 1800   # on from what there is

Can be stopped at any moment and goes on where it was: batches follow from their number. SIGTERM and Ctrl-C
stop it after the batch it is at. What it costs and what it reaches stands in nano/README.md.

More losses than the next token's make it learn to read: each patch of SAM says which character covers it, each
vision token which characters of which lines stand in its square, and the decoder, on its way to the next token, in
which line and where on the page it reads on (nano/labels.py).
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

if __name__ == "__main__":  # before the imports below: rapidfuzz is first used when the run is saved
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
from nano.labels import CLASSES, LINES, NOTHING, PLACES, SLOTS
from nano.model import CONFIG, NanoOcr, load
from nano.muon import Muon, multiplies_bf16
from nano.samples import GUNDAM, STAGES, Batch, Pages

WARM_UP = 100
"""Batches until the learning rate is full."""
TURN = 6.0
"""The weight of a line's first sign: letters are read rightly long before the next line is found."""
END = 3.0
"""The weight of what says whether a line follows, the newline and the end alike: with more for the end alone answers
ended early, without it last lines came twice."""
UNPRINTED = 0.75
"""The weight of what is not printed, most of it the corners of boxes: their last digits can't be foreseen."""
CROWDED = 2.0
"""The weight of the characters in vision tokens with two lines, which are misread most."""
COUNT = 0.4
"""The weight of the lines' numbers: what was written last does not tell apart two lines that begin alike."""
COUNTED = 2
"""The decoder's layer before which it has to know the numbers of the lines in vision tokens and of the one it reads."""
LIE = 0.2
"""The weight of where the vision tokens lie."""
KEEP = 0.998
"""What is written is a moving average of the weights; a batch leaves so much of it. Single states now and then skipped
a line that the states before and after them read."""
SETTLE = 110
"""Batches in which the heads that no checkpoint has learn from one that stands still, before it learns with them."""
GO_ON = 0.3
"""The share of the full learning rate for a run that starts with a checkpoint."""
STAND = 0.3
"""The share of such a run after which SAM's layers stay as they are: a batch takes seven tenths of the time then."""
HOLD = 0.15
"""The share of the run after which it begins to fall."""

LINE_STARTS = torch.tensor([tokenizer.make().token_to_id(token) for token in ("Ċ", "<|ref|>", "<td>")])
"""The tokens after which a line begins; the first is the newline."""
LINE_ENDS = torch.tensor([LINE_STARTS[0], tokenizer.EOS])


@dataclass
class Losses:
    total: torch.Tensor
    text: float
    patches: float
    """Share of the patches with a character that name it."""
    cells: float
    """Share of the characters that the vision tokens name, in their places."""
    turns: float
    """Share of the lines' first signs that are foreseen."""


class Trainer(nn.Module):
    """The model, and the heads that only training needs."""

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
        """What only training needs."""
        for name, head in self.named_children():
            if name != "model":
                yield from head.parameters()

    def forward(self, batch: Batch) -> Losses:
        encoder = self.model.encoder
        encoded: dict[int, Iterator[torch.Tensor]] = {}
        total = torch.zeros((), device=batch.tokens.device)
        named: list[float] = []
        right_cells: list[float] = []
        by_size = views_by_size(batch.pictures)
        for (size, views), patches, cells, spaces, lines in zip(
            by_size.items(), batch.patches, batch.cells, batch.cell_spaces, batch.cell_lines, strict=True
        ):
            seen = encoder.sam_model.patches(normalize(views, torch.float32))
            features = encoder.project(encoder.sam_model.compress(seen))
            encoded[size] = iter(features)
            crowded = torch.where(lines[..., 0] == lines[..., 1], 1.0, CROWDED)[..., None, None].expand_as(cells)
            for head, given, wanted, weights, right in (
                (self.patch_head, seen, patches, torch.ones_like(patches, dtype=torch.float32), named),
                (self.cell_head, features, cells, crowded, right_cells),
            ):
                logits = head(given).float().reshape(-1, CLASSES)
                wanted, weights = wanted.flatten(), weights.flatten()
                loss = weights * F.cross_entropy(logits, wanted, reduction="none")
                letters = wanted > 0
                total = total + 0.5 * loss[letters].sum() / weights[letters].sum().clamp(min=1)
                total = total + 0.25 * mean(loss[~letters])
                right.append(mean((logits.argmax(-1) == wanted)[letters].float()).item())
            asked = spaces != NOTHING
            spaced = self.space_head(features).float().view_as(spaces)[asked]
            total = total + mean(F.binary_cross_entropy_with_logits(spaced, spaces[asked].float(), reduction="none"))
            total = total + COUNT * miscounted(in_two(self.cell_line_head(features)), lines)
        text = right_turns = 0.0
        if batch.read:
            images = encoder.assemble_all(batch.pictures, encoded)
            logits = self.model(images, batch.tokens, batch.questions).float()
            asked = batch.targets != NOTHING
            turns = torch.isin(batch.tokens, LINE_STARTS.to(batch.tokens.device))
            ends = torch.isin(batch.targets, LINE_ENDS.to(batch.tokens.device))[asked]
            logits, targets, turns = logits[asked], batch.targets[asked], turns[asked]
            weights = torch.where(batch.lines[asked] == NOTHING, UNPRINTED, 1.0)
            spoken = F.cross_entropy(logits, targets, reduction="none")
            text = spoken.mean().item()
            weights = torch.where(turns, TURN, torch.where(ends, END, weights))
            total = total + (spoken * weights).sum() / weights.sum() + 0.01 * self.model.decoder.balance()
            right_turns = mean((logits.argmax(-1) == targets)[turns].float()).item()
            between = self.model.decoder.between
            _, pictured, written = between[COUNTED].split([1, batch.token_lines.shape[1], batch.tokens.shape[1]], dim=1)
            total = total + COUNT * miscounted(in_two(self.token_line_head(pictured)), batch.token_lines)
            total = total + COUNT * miscounted(self.line_head(written), batch.lines)
            where = self.place_head(between[-1]).float().unflatten(-1, (PLACES, 2))
            placed = batch.places[asked][:, 0] != NOTHING
            if placed.any():
                missed = misplaced(where[:, -batch.tokens.shape[1] :][asked][placed], batch.places[asked][placed])
                total = total + (missed * weights[placed]).sum() / weights[placed].sum()
            squares = batch.token_places[..., 0] != NOTHING
            lying = where[:, 1 : -batch.tokens.shape[1]][squares]
            total = total + LIE * misplaced(lying, batch.token_places[squares]).mean()
        return Losses(total, text, mean_of(named), mean_of(right_cells), right_turns)


def miscounted(numbers: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """The loss of what is said of the numbers of lines, [..., LINES] logits, where [...] asks for one."""
    asked = lines != NOTHING
    return mean(F.cross_entropy(numbers[asked].float(), lines[asked], reduction="none"))


def in_two(numbers: torch.Tensor) -> torch.Tensor:
    """[..., 2 · LINES] → [..., 2, LINES]: the logits of the first line of a vision token, and of its last."""
    return numbers.unflatten(-1, (2, LINES))


def misplaced(where: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The loss [N] of what is said of columns and rows, [N, PLACES, 2] logits, where it should be [N, 2] places."""
    return F.cross_entropy(where, places, reduction="none").mean(-1)


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean() if values.numel() else values.sum()


def optimizers(trainer: Trainer) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, several times faster here than AdamW, which takes the rest."""
    other = ("embed", "lm_head", "mlp.gate.weight", "head", "pos", "patch_embed")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in trainer.named_parameters():
        (matrices if parameter.ndim == 2 and not any(part in name for part in other) else rest).append(parameter)
    return [
        Muon(matrices, lr=0.01, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=8e-4, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate(number: int, done: float) -> float:
    """The share of the full learning rate at a batch, when that share of the run is done."""
    return min(1.0, (number + 1) / WARM_UP) * (1 if done < HOLD else max(0.02, 1 - (done - HOLD) / (1 - HOLD)))


class Run:
    """A run, with all that it takes to go on with it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.trainer = Trainer().to(device)
        self.average = AveragedModel(self.trainer.model, multi_avg_fn=get_ema_multi_avg_fn(KEEP))
        self.steppers = optimizers(self.trainer)
        self._full = [group["lr"] for group in self._groups()]
        self.batches, self.pages, self.seconds = 0, 0, 0.0
        """So far."""

    def start(self, checkpoint: Path, pages: Iterable[Batch]) -> None:
        """Begin with a checkpoint's weights; the heads learn from `pages` meanwhile."""
        model = self.trainer.model
        for each in (model, self.average.module):
            each.load_state_dict(load(checkpoint).state_dict())
        stepper = torch.optim.AdamW(self.trainer.heads(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
        falling = torch.optim.lr_scheduler.LinearLR(stepper, 1.0, 0.0, SETTLE)
        model.requires_grad_(False)
        for batch in pages:
            self._losses(batch).total.backward()
            stepper.step()
            stepper.zero_grad()
            falling.step()
        model.requires_grad_(True)

    def let_sam_stand(self) -> None:
        """From now on, SAM's layers stay as they are; its compressor still learns."""
        sam = self.trainer.model.encoder.sam_model
        for part in (sam.patch_embed, sam.blocks):
            part.requires_grad_(False)
        sam.pos_embed.requires_grad_(False)

    def let_encoder_stand(self) -> None:
        """From now on, only the decoder learns, and what stands between the encoder's tokens."""
        encoder = self.trainer.model.encoder
        encoder.requires_grad_(False)
        for between in (encoder.image_newline, encoder.view_seperator):
            between.requires_grad_(True)

    def step(self, batch: Batch, share: float) -> Losses:
        """Learn from a batch, at that share of the full learning rate."""
        for group, lr in zip(self._groups(), self._full, strict=True):
            group["lr"] = lr * share
        losses = self._losses(batch)
        losses.total.backward()
        nn.utils.clip_grad_norm_(self.trainer.parameters(), 1.0)
        for stepper in self.steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        self.average.update_parameters(self.trainer.model)
        self.batches += 1
        self.pages += len(batch.pictures)
        return losses

    def _losses(self, batch: Batch) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=multiplies_bf16(self.device)):
            losses: Losses = self.trainer(batch.to(self.device))
        return losses

    def _groups(self) -> list[dict[str, Any]]:
        return [group for stepper in self.steppers for group in stepper.param_groups]

    def save(self, folder: Path) -> None:
        """Write the state; a kill in the middle leaves the one before."""
        state = {
            "trainer": self.trainer.state_dict(),
            "average": self.average.state_dict(),
            "steppers": [stepper.state_dict() for stepper in self.steppers],
            "batch": self.batches,
            "seconds": self.seconds,
            "pages": self.pages,
        }
        unfinished = folder / "run.pt.part"
        torch.save(state, unfinished)
        os.replace(unfinished, folder / "run.pt")

    def load(self, folder: Path) -> None:
        """Go on with the run in `folder`."""
        state = torch.load(folder / "run.pt", map_location=self.device, weights_only=True)
        self.trainer.load_state_dict(state["trainer"])
        self.average.load_state_dict(state["average"])
        for stepper, each in zip(self.steppers, state["steppers"], strict=True):
            stepper.load_state_dict(each)
        self.batches, self.pages, self.seconds = state["batch"], state["pages"], state["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and the finished checkpoint")
    parser.add_argument("--batches", type=int, default=8_000, help="length of the run (default: %(default)s)")
    parser.add_argument("--start", type=Path, help="begin with this checkpoint's weights, in the last stage")
    parser.add_argument("--decoder-alone", action="store_true", help="the encoder stays as it is, from the start")
    parser.add_argument("--scale", type=int, default=1, help="times the pages of a batch, for a device that can")
    parser.add_argument("--length", type=float, help="minutes that the run takes, if its batches take longer")
    parser.add_argument("--minutes", type=float, help="stop after this time; the next call goes on")
    parser.add_argument("--workers", type=int, default=1, help="processes that render pages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--few-fonts", action="store_true", help="go on although fonts are missing on this machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if not options.few_fonts and (absent := missing()):
        parser.error(f"no font of {', '.join(absent)} on this machine: {ADVICE}, or train without them (--few-fonts)")
    options.out.mkdir(parents=True, exist_ok=True)
    keep_memory()
    # oneDNN keeps what it has compiled for each shape of a product; with its own default memory grew by 7 MB a batch.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))

    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    run = Run(device)
    stages = STAGES[-1:] if options.start else STAGES
    pages = Pages(options.batches, options.seed, options.scale, stages)
    if (options.out / "run.pt").exists():
        run.load(options.out)
    elif options.start:
        run.start(options.start, (pages[number] for number in trange(SETTLE, desc="heads", unit="batch")))
    if options.decoder_alone:
        run.let_encoder_stand()
    full = GO_ON if options.start else 1.0

    def done() -> float:
        """The share of the run, by batches or by time, whichever is further."""
        return max(run.batches / options.batches, run.seconds / 60 / (options.length or float("inf")))

    if done() >= 1:
        print("This run is finished.")
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
        if options.start and done() >= STAND:
            run.let_sam_stand()
        losses = run.step(batch, full * rate(run.batches, done()))
        if batch.read:
            recent.append((losses.text, losses.patches, losses.cells, losses.turns))
        now = time.monotonic()
        run.seconds += now - last
        last = now
        if run.batches % 10 == 0 and recent:
            text, patches, cells, turns = (mean_of(list(each)) for each in zip(*recent, strict=True))
            speed = f"{run.pages / run.seconds:.1f} pages/s"
            bar.set_postfix_str(f"{speed} text {text:.3f} patches {patches:.3f} cells {cells:.3f} turns {turns:.3f}")
        out_of_time = options.minutes is not None and now - started > options.minutes * 60
        stops = out_of_time or bool(stopped) or done() >= 1
        if now - saved > options.save_every * 60 or stops:
            run.save(options.out)
            saved = now
            error = f", error {quick_error(run.average.module, device):.3f}" if batch.read else ""
            bar.write(f"batch {run.batches}: {run.pages} pages{error}")
        if stops:
            break
    export(run.average.module, options.out / "checkpoint")
    print(f"{run.pages} pages in {run.seconds / 60:.0f} minutes on {device}; {options.out / 'checkpoint'}")


def quick_error(model: NanoOcr, device: torch.device, pages: int = 8) -> float:
    """Character error on a few clean pages of words it has not seen; evaluate.py measures properly."""
    from nano.evaluate import ROWS, answer, measure

    model.eval()
    figures = measure(ROWS[0], lambda asked, _: answer(model, device, asked, GUNDAM, most=1000), pages)
    model.train()
    return figures["character error"]


def export(model: NanoOcr, folder: Path) -> None:
    """Write a checkpoint as DeepSeek-OCR publishes its own: weights, config, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state(), str(folder / "model.safetensors"), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n")
    tokenizer.save(folder)


if __name__ == "__main__":
    main()
