"""Batches of pages for training, each decided by its number alone, so that training can stop and go on anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from torch.utils.data import Dataset

from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES, ResolutionMode
from nano.labels import NOTHING, ViewMap, answer_labels, token_lines, token_places, view_labels, view_maps
from nano.render import Page, Sheet, Task, render
from nano.tokenizer import EOS, PAD, make


@dataclass(frozen=True)
class Recipe:
    """One kind of batch."""

    sheet: Sheet
    mode: ResolutionMode
    pages: int
    """Pages in a batch."""
    tasks: tuple[Task, ...] = ("free",)
    """What is asked of every page: to show it to the encoder costs more than to ask again."""
    weight: float = 1.0
    read: bool = True
    """Whether the decoder is trained."""


MISREAD = 0.5
"""Share of the answers that the decoder is shown with mistakes, as if it had made them: where it reads on has to follow
from where it is on the page, not from the letters that it wrote last."""


ALIGNED = 64
"""The tokens of a question are padded to a multiple of it: a CPU compiles its products of bf16 matrices for each
shape."""


def square(size: int) -> ResolutionMode:
    """Pages of size × size exactly as they are."""
    return ResolutionMode(base_size=size, image_size=size, crop_mode=False)


GUNDAM = MODES["gundam"]
BIG_PRINT: dict[str, Any] = {"min_print": 34, "max_print": 58}
"""Print in pixels of the model's view, where pages are not resized."""
PAGE = Sheet(blank=0.02, alike=0.15)
"""What the model is for; the default mode shows it 1.6 times as large."""
SMALL = Sheet(width=160, height=160, max_lines=5, full=True)
"""A sixteenth of it, seen at the same scale in a view of 256 pixels."""
SMALL_DIRECT = Sheet(width=256, height=256, full=True, **BIG_PRINT)
"""The same as tiles show print: as it is."""
MEDIUM = Sheet(width=320, height=320, max_lines=8)
"""A quarter of a page, for a view of 512 pixels."""
TILED = Sheet(width=640, height=900, max_lines=18, min_print=34, max_print=70)
A4 = Sheet(width=1240, height=1754, min_print=37, max_print=56, max_lines=40)
"""As large in a tile as print of 24 px and more is on a page of 640 × 640."""
SHAPES = {
    640: tuple((640, height) for height in (200, 240, 280, 320, 360, 400, 480, 560, 640)),
    A4.width: (*[(1240, 1754)] * 4, (1754, 1240), (1240, 620), (620, 1240), (1240, 1240)),
}
"""By the width of sheets: pages of other shapes in their place, one in a batch."""
OTHER_SHAPES = 0.6
"""Share of the batches that have them."""
SMALL_TILES = ResolutionMode(base_size=512, image_size=320)
"""Gundam's layout at half of its sizes, for cheap lessons in it."""


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum, until `end` of all batches."""

    end: float
    recipes: tuple[Recipe, ...]
    read: bool = True
    """Whether the decoder is trained."""


DENSE = replace(MEDIUM, full=True)
FULL_PAGE = replace(PAGE, full=True)
FINE_PRINT: dict[str, Any] = {"max_print": 30, "narrow": 1}
PLAIN = replace(PAGE, noise=False, alike=0.25)
"""What documents say: no random signs."""
CLEAN = replace(PLAIN, clean=True)
CLOSE: dict[str, Any] = {"max_print": 29, "min_lines": 7, "narrow": 2}
"""Much fine print, where what was misread on clean pages stood."""
CLOSEST: dict[str, Any] = {"max_print": 26, "min_lines": 8, "narrow": 5}
"""The narrowest of it, where most of what was still misread stood: ten characters of two lines in a vision token."""
LARGE: dict[str, Any] = {"min_print": 30, "max_print": 46, "max_lines": 8}
"""What signs and receipts say, as in the examples."""
PLAIN_A4 = replace(A4, noise=False, alike=0.15)
CLEAN_A4 = replace(PLAIN_A4, clean=True)
DOCUMENT = replace(CLEAN, structured=True, ragged=0.5)
LETTER = replace(DOCUMENT, kinds=("text",), titled=0.4, ragged=1.0)
"""Paragraphs alone, as in letters and notices."""
HANDLED = replace(PLAIN, alike=0.1, **LARGE)
"""Signs and receipts as cameras give them."""
LESSONS = (
    Recipe(CLEAN, GUNDAM, 4, ("free", "markdown"), weight=4),
    Recipe(CLEAN, GUNDAM, 4, ("lines", "markdown"), weight=3),
    Recipe(replace(CLEAN, **LARGE), GUNDAM, 5, ("free", "markdown"), weight=3),
    Recipe(replace(CLEAN, **LARGE), GUNDAM, 5, ("lines", "markdown", "ocr"), weight=3),
    Recipe(HANDLED, GUNDAM, 5, ("lines", "markdown"), weight=3),
    Recipe(replace(CLEAN, **CLOSE), GUNDAM, 4, ("free", "markdown"), weight=3),
    Recipe(replace(CLEAN, **CLOSE), GUNDAM, 4, ("lines", "ocr"), weight=2),
    Recipe(replace(CLEAN, tight=True, **CLOSE), GUNDAM, 4, ("lines", "markdown"), weight=4),
    Recipe(replace(CLEAN, **CLOSEST), GUNDAM, 4, ("lines",), weight=1.5),
    Recipe(replace(CLEAN, tight=True, **CLOSEST), GUNDAM, 4, ("free", "lines"), weight=1.5),
    Recipe(replace(PLAIN, **FINE_PRINT), GUNDAM, 4, ("lines", "markdown")),
    Recipe(replace(CLEAN, full=True, **FINE_PRINT), GUNDAM, 3, ("free", "markdown")),
    Recipe(PAGE, GUNDAM, 4, ("lines", "locate"), weight=1.5),
    Recipe(CLEAN, GUNDAM, 4, ("markdown", "locate"), weight=1.5),
    Recipe(LETTER, GUNDAM, 4, ("markdown", "free"), weight=3),
    Recipe(replace(LETTER, **LARGE), GUNDAM, 4, ("markdown", "document"), weight=2),
    Recipe(DOCUMENT, GUNDAM, 4, ("markdown",), weight=6),
    Recipe(DOCUMENT, GUNDAM, 4, ("markdown", "document"), weight=3),
    Recipe(replace(DOCUMENT, max_print=30), GUNDAM, 4, ("markdown",), weight=3),
    Recipe(replace(PAGE, structured=True, ragged=0.5), GUNDAM, 4, ("free", "markdown"), weight=2),
    Recipe(CLEAN_A4, GUNDAM, 1, weight=2),
    Recipe(replace(CLEAN_A4, min_lines=20, halved=0.45), GUNDAM, 1, weight=3),
    Recipe(replace(CLEAN_A4, max_lines=20), GUNDAM, 1, ("free", "markdown"), weight=3),
    Recipe(replace(CLEAN_A4, max_lines=12, structured=True, ragged=0.5), GUNDAM, 1, ("markdown",), weight=3),
    Recipe(TILED, SMALL_TILES, 4, ("free", "lines")),
    Recipe(replace(TILED, clean=True, noise=False), GUNDAM, 2, ("free", "markdown"), weight=1.4),
    Recipe(PAGE, MODES["large"], 2, weight=0.7),
    Recipe(CLEAN, MODES["base"], 4, ("free", "markdown"), weight=1),
    Recipe(replace(PAGE, min_print=46, max_print=70, max_lines=6), MODES["tiny"], 10, ("free", "lines"), weight=0.7),
    Recipe(replace(PAGE, min_print=38, max_print=60, max_lines=8), MODES["small"], 7, ("free", "lines"), weight=0.7),
)
"""Everything that it is to know."""
STAGES = (
    Stage(0.175, (Recipe(SMALL, square(256), 40), Recipe(SMALL_DIRECT, square(256), 40)), read=False),
    Stage(
        0.30,
        (
            Recipe(SMALL, square(256), 40),
            Recipe(MEDIUM, square(512), 10),
            Recipe(DENSE, square(512), 10, weight=2),
            Recipe(replace(SMALL_DIRECT, width=512, height=512), square(512), 10, weight=0.7),
            Recipe(replace(SMALL, full=False), square(256), 24, ("lines",)),
        ),
    ),
    Stage(
        0.50,
        (
            Recipe(DENSE, square(512), 10, ("free", "locate"), weight=2),
            Recipe(MEDIUM, square(512), 8, ("free", "lines")),
            Recipe(FULL_PAGE, GUNDAM, 4, weight=2),
            Recipe(PAGE, GUNDAM, 4, ("free", "lines", "locate"), weight=3),
        ),
    ),
    Stage(1.0, LESSONS),
)


@dataclass
class Batch:
    pictures: list[Views]
    """B of them."""
    tokens: torch.Tensor
    """[B, T]: for each question newline, prompt, answer, eos, padding."""
    questions: list[int]
    """How many of the T are of each question."""
    targets: torch.Tensor
    """[B, T]: what must come after each of `tokens`, −100 where nothing is asked."""
    places: torch.Tensor
    """[B, T, 2]: column and row of the page at which to read that, −100 where nothing is asked."""
    lines: torch.Tensor
    """[B, T]: the number of the line in which that stands, −100 where nothing is asked."""
    token_places: torch.Tensor
    """[B, vision tokens, 2]: column and row of the page at which each of them lies, −100 for what is no square."""
    token_lines: torch.Tensor
    """[B, vision tokens, 2]: the numbers of the first and the last line in each of them, −100 where no character is."""
    patches: list[torch.Tensor]
    """For each view size, in the order of `view_sizes`: [views, side, side]."""
    cells: list[torch.Tensor]
    cell_spaces: list[torch.Tensor]
    cell_lines: list[torch.Tensor]
    read: bool = True
    """Whether the decoder is trained."""

    def to(self, device: torch.device) -> Batch:
        move: Callable[[torch.Tensor], torch.Tensor] = lambda each: each.to(device, non_blocking=True)  # noqa: E731
        return replace(
            self,
            pictures=[Views(move(one.global_view), move(one.tiles), one.grid) for one in self.pictures],
            tokens=move(self.tokens),
            targets=move(self.targets),
            places=move(self.places),
            token_places=move(self.token_places),
            token_lines=move(self.token_lines),
            patches=[move(each) for each in self.patches],
            lines=move(self.lines),
            cells=[move(each) for each in self.cells],
            cell_spaces=[move(each) for each in self.cell_spaces],
            cell_lines=[move(each) for each in self.cell_lines],
        )


class Pages(Dataset[Batch]):
    """Batch number → batch. `scale` multiplies the pages of a batch, for devices that can take more."""

    def __init__(self, batches: int, seed: int, scale: int = 1, stages: Sequence[Stage] = STAGES) -> None:
        self.batches, self.seed, self.scale, self.stages = batches, seed, scale, stages
        self._tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> Batch:
        rng = random.Random(f"{self.seed}/{number}")
        stage = next(stage for stage in self.stages if number < stage.end * self.batches or stage is self.stages[-1])
        recipe = rng.choices(stage.recipes, [each.weight for each in stage.recipes])[0]
        sheet = recipe.sheet
        if sheet.width in SHAPES and rng.random() < OTHER_SHAPES:
            width, height = rng.choice(SHAPES[sheet.width])
            sheet = replace(sheet, width=width, height=height)
        pages = [render(sheet, rng) for _ in range(recipe.pages * self.scale)]
        return replace(self.batch(pages, recipe, rng), read=stage.read and recipe.read)

    def batch(self, pages: list[Page], recipe: Recipe, rng: random.Random) -> Batch:
        self._tokenizer = self._tokenizer or make()
        pictures, global_views, lying, numbered = [], [], [], []
        patches: dict[int, list[torch.Tensor]] = {}
        cells: dict[int, list[torch.Tensor]] = {}
        cell_spaces: dict[int, list[torch.Tensor]] = {}
        cell_lines: dict[int, list[torch.Tensor]] = {}
        for page in pages:
            prepared = prepare_image(page.image, recipe.mode)
            pictures.append(Views(prepared.global_view, prepared.tiles, prepared.grid))
            glyphs = page.glyphs()
            views = list(view_maps(*page.image.size, recipe.mode, prepared.grid))
            global_views.append(views[0])
            lying.append(torch.from_numpy(token_places(views, prepared.grid)))
            seen = [view_labels(glyphs, view) for view in views]
            numbered.append(torch.from_numpy(token_lines([lines for *_, lines in seen], prepared.grid)))
            for view, found in zip(views, seen, strict=True):
                for labels, each in zip((patches, cells, cell_spaces, cell_lines), found, strict=True):
                    labels.setdefault(view.size, []).append(torch.from_numpy(each))
        questions = []
        for task in recipe.tasks:
            rows = [self._question(page, view, task, rng) for page, view in zip(pages, global_views, strict=True)]
            asked, *wanted = zip(*rows, strict=True)
            questions.append((aligned(asked, PAD), *(aligned(each, NOTHING) for each in wanted)))
        tokens, targets, places, lines = (torch.cat(each, dim=1) for each in zip(*questions, strict=True))
        return Batch(
            pictures,
            tokens,
            [asked.shape[1] for asked, *_ in questions],
            targets,
            places,
            lines,
            torch.stack(lying),
            torch.stack(numbered),
            stacked(patches),
            stacked(cells),
            stacked(cell_spaces),
            stacked(cell_lines),
        )

    def _question(self, page: Page, view: ViewMap, task: Task, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """Tokens, targets, places and lines of a question about a page, not padded."""
        assert self._tokenizer is not None
        prompt, pieces = page.pieces(task, rng)
        asked = self._tokenizer.encode("\n" + prompt, add_special_tokens=False).ids
        given, where, lines = answer_labels(pieces, self._tokenizer, view)
        silent = len(asked) - 1
        shown = self._misread(given, lines, rng) if task != "locate" and rng.random() < MISREAD else given
        return (
            torch.tensor([*asked, *shown, EOS]),
            torch.tensor([*[NOTHING] * silent, *given, EOS, NOTHING]),
            torch.tensor([*[(NOTHING, NOTHING)] * silent, *where, *[(NOTHING, NOTHING)] * 2]),
            torch.tensor([*[NOTHING] * silent, *lines, *[NOTHING] * 2]),
        )

    def _misread(self, given: list[int], lines: list[int], rng: random.Random) -> list[int]:
        """The answer with one in ten of its printed characters replaced by others of it; the rest stays."""
        printed = [place for place, line in enumerate(lines) if line != NOTHING]
        shown = list(given)
        for place in printed:
            if rng.random() < 0.1:
                shown[place] = given[rng.choice(printed)]
        return shown


def stacked(labels: dict[int, list[torch.Tensor]]) -> list[torch.Tensor]:
    """The labels of all views of a size → one tensor for each size, in the order in which the sizes were met."""
    return [torch.stack(each) for each in labels.values()]


def aligned(rows: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    """[B, T, …] of rows [≤ T, …]; T is a multiple of `ALIGNED`."""
    longest = max(map(len, rows))
    return torch.stack(
        [
            F.pad(row, (0, 0) * (row.ndim - 1) + (0, -longest % ALIGNED + longest - len(row)), value=padding)
            for row in rows
        ]
    )
