"""The curriculum: batches of training pages. The number of a batch determines it, so that training can be resumed."""

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
from nano.labels import IGNORED, ViewMap, answer_labels, token_lines, token_places, view_labels, view_maps
from nano.render import Page, Sheet, Task, render
from nano.tokenizer import EOS, PAD, make


@dataclass(frozen=True)
class Recipe:
    """A kind of batch."""

    sheet: Sheet
    """The kind of pages."""
    mode: ResolutionMode
    """The resolution mode in which the encoder sees the pages."""
    pages: int
    """Number of pages in a batch."""
    tasks: tuple[Task, ...] = ("free",)
    """The questions about every page. A further question costs less than encoding another page."""
    weight: float = 1.0
    """Relative probability of the recipe in its stage."""
    read: bool = True
    """Whether the decoder is trained."""


MISREAD = 0.5
"""Share of answers that the decoder is shown with wrong letters, as if it had misread them. Where it reads next must
depend on where it is on the page, not on the letters that it wrote last."""
ALIGNED = 64
"""The tokens of a question are padded to a multiple of this number: on CPUs, products of bf16 matrices are compiled for
each shape."""


def square(size: int) -> ResolutionMode:
    """Return a mode in which the encoder sees a page of `size` × `size` pixels without resizing."""
    return ResolutionMode(base_size=size, image_size=size, crop_mode=False)


GUNDAM = MODES["gundam"]
BIG_PRINT: dict[str, Any] = {"min_print": 34, "max_print": 58}
"""Font sizes for pages that are not resized, in pixels of the view."""
PAGE = Sheet(blank=0.02, alike=0.15)
"""The pages that the model is made for. The default mode enlarges them 1.6 times."""
SMALL = Sheet(width=160, height=160, max_lines=5, full=True)
"""A sixteenth of a page, at the same scale in a view of 256 pixels."""
SMALL_DIRECT = Sheet(width=256, height=256, full=True, **BIG_PRINT)
"""The same without resizing, which is how tiles show print."""
MEDIUM = Sheet(width=320, height=320, max_lines=8)
"""A quarter of a page, for a view of 512 pixels."""
TILED = Sheet(width=640, height=900, max_lines=18, min_print=34, max_print=70)
"""A page that is split into tiles."""
A4 = Sheet(width=1240, height=1754, min_print=37, max_print=56, max_lines=40)
"""An A4 page. In a tile, its smallest print is as large as print of 24 px on a page of 640 × 640."""
SHAPES = {
    640: tuple((640, height) for height in (200, 240, 280, 320, 360, 400, 480, 560, 640)),
    A4.width: (*[(1240, 1754)] * 4, (1754, 1240), (1240, 620), (620, 1240), (1240, 1240)),
}
"""Other page sizes (width, height), by the width of the sheet that they replace. All pages of a batch have one size."""
OTHER_SHAPES = 0.6
"""Share of batches whose pages have another size, if there are other sizes for their sheet."""
SMALL_TILES = ResolutionMode(base_size=512, image_size=320)
"""The layout of the gundam mode at half its size, so that it can be practised cheaply."""


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum."""

    end: float
    """Share of all batches after which the stage ends."""
    recipes: tuple[Recipe, ...]
    """The kinds of batches, one of which is chosen at random for each batch."""
    read: bool = True
    """Whether the decoder is trained."""


DENSE = replace(MEDIUM, full=True)
FULL_PAGE = replace(PAGE, full=True)
FINE_PRINT: dict[str, Any] = {"max_print": 30, "narrow": 1}
PLAIN = replace(PAGE, noise=False, alike=0.25)
"""Text as in documents, without random characters."""
CLEAN = replace(PLAIN, clean=True)
CLOSE: dict[str, Any] = {"max_print": 29, "min_lines": 7, "narrow": 2}
"""Many lines of small, narrow print. On clean pages, this is what was misread."""
CLOSEST: dict[str, Any] = {"max_print": 26, "min_lines": 8, "narrow": 5}
"""The narrowest print, with ten characters of two lines in a vision token. Most of the remaining errors were in it."""
LARGE: dict[str, Any] = {"min_print": 30, "max_print": 46, "max_lines": 8}
"""A few lines of large print, as on signs and receipts and in the example images."""
PLAIN_A4 = replace(A4, noise=False, alike=0.15)
CLEAN_A4 = replace(PLAIN_A4, clean=True)
DOCUMENT = replace(CLEAN, structured=True, ragged=0.5)
LETTER = replace(DOCUMENT, kinds=("text",), titled=0.4, ragged=1.0)
"""Documents that consist only of paragraphs, like letters and notices."""
HANDLED = replace(PLAIN, alike=0.1, **LARGE)
"""Signs and receipts, degraded as by a camera."""
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
"""The recipes of the last stage: everything that the model has to learn."""
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
    """Pages, questions about them, and the targets. Targets are `IGNORED` where there is nothing to predict."""

    images: list[Views]
    """The views of the B pages."""
    tokens: torch.Tensor
    """[B, T]: for each question a newline, the prompt, the answer, eos, and padding."""
    questions: list[int]
    """The length of each question, including padding. They add up to T."""
    targets: torch.Tensor
    """[B, T]: the token that follows each of `tokens`."""
    places: torch.Tensor
    """[B, T, 2]: column and row of the page at which that token is read."""
    lines: torch.Tensor
    """[B, T]: the number of the line in which that token is printed."""
    token_places: torch.Tensor
    """[B, vision tokens, 2]: column and row of the page at which each vision token is."""
    token_lines: torch.Tensor
    """[B, vision tokens, 2]: the numbers of the first and the last line in each vision token."""
    patches: list[torch.Tensor]
    """The labels of `view_labels`, as one tensor for each size of views, in the order of `views_by_size`. For patches,
    [views, size / 16, size / 16]."""
    cells: list[torch.Tensor]
    """The same for the characters of vision tokens, [views, (size / 64)², 2, SLOTS]."""
    cell_spaces: list[torch.Tensor]
    """The same for the spaces before these characters, [views, (size / 64)², 2, SLOTS]."""
    cell_lines: list[torch.Tensor]
    """The same for the line numbers of vision tokens, [views, (size / 64)², 2]."""
    read: bool = True
    """Whether the decoder is trained."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        move: Callable[[torch.Tensor], torch.Tensor] = lambda each: each.to(device, non_blocking=True)  # noqa: E731
        return replace(
            self,
            images=[Views(move(image.global_view), move(image.tiles), image.grid) for image in self.images],
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
    """The batches of a training run, by number.

    Args:
        batches: number of batches in the run.
        seed: seed of the run.
        scale: factor for the number of pages in a batch, for devices with enough memory.
        stages: the curriculum.
    """

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
        """Return the batch of these pages with the questions of `recipe`."""
        self._tokenizer = self._tokenizer or make()
        images, global_views, places_of_tokens, lines_of_tokens = [], [], [], []
        patches: dict[int, list[torch.Tensor]] = {}
        cells: dict[int, list[torch.Tensor]] = {}
        cell_spaces: dict[int, list[torch.Tensor]] = {}
        cell_lines: dict[int, list[torch.Tensor]] = {}
        for page in pages:
            prepared = prepare_image(page.image, recipe.mode)
            images.append(Views(prepared.global_view, prepared.tiles, prepared.grid))
            glyphs = page.glyphs()
            views = list(view_maps(*page.image.size, recipe.mode, prepared.grid))
            global_views.append(views[0])
            places_of_tokens.append(torch.from_numpy(token_places(views, prepared.grid)))
            labels = [view_labels(glyphs, view) for view in views]
            lines_of_tokens.append(torch.from_numpy(token_lines([lines for *_, lines in labels], prepared.grid)))
            for view, labels_of_view in zip(views, labels, strict=True):
                for by_size, each in zip((patches, cells, cell_spaces, cell_lines), labels_of_view, strict=True):
                    by_size.setdefault(view.size, []).append(torch.from_numpy(each))
        questions = []
        for task in recipe.tasks:
            rows = [self._question(page, view, task, rng) for page, view in zip(pages, global_views, strict=True)]
            inputs, *outputs = zip(*rows, strict=True)
            questions.append((aligned(inputs, PAD), *(aligned(each, IGNORED) for each in outputs)))
        tokens, targets, places, lines = (torch.cat(each, dim=1) for each in zip(*questions, strict=True))
        return Batch(
            images,
            tokens,
            [inputs.shape[1] for inputs, *_ in questions],
            targets,
            places,
            lines,
            torch.stack(places_of_tokens),
            torch.stack(lines_of_tokens),
            stacked(patches),
            stacked(cells),
            stacked(cell_spaces),
            stacked(cell_lines),
        )

    def _question(self, page: Page, view: ViewMap, task: Task, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """Return the tokens, targets, places and lines of a question about a page, without padding."""
        assert self._tokenizer is not None
        prompt, pieces = page.pieces(task, rng)
        question = self._tokenizer.encode("\n" + prompt, add_special_tokens=False).ids
        answer, places, lines = answer_labels(pieces, self._tokenizer, view)
        ignored = len(question) - 1
        shown = self._misread(answer, lines, rng) if task != "locate" and rng.random() < MISREAD else answer
        return (
            torch.tensor([*question, *shown, EOS]),
            torch.tensor([*[IGNORED] * ignored, *answer, EOS, IGNORED]),
            torch.tensor([*[(IGNORED, IGNORED)] * ignored, *places, *[(IGNORED, IGNORED)] * 2]),
            torch.tensor([*[IGNORED] * ignored, *lines, *[IGNORED] * 2]),
        )

    def _misread(self, answer: list[int], lines: list[int], rng: random.Random) -> list[int]:
        """Return the answer with a tenth of its printed characters replaced by random other characters of it."""
        printed = [index for index, line in enumerate(lines) if line != IGNORED]
        shown = list(answer)
        for index in printed:
            if rng.random() < 0.1:
                shown[index] = answer[rng.choice(printed)]
        return shown


def stacked(labels: dict[int, list[torch.Tensor]]) -> list[torch.Tensor]:
    """Return one tensor for each size of views, in the order in which the sizes first occurred."""
    return [torch.stack(each) for each in labels.values()]


def aligned(rows: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    """Pad rows [≤ T, …] to one tensor [B, T, …], where T is the smallest possible multiple of `ALIGNED`."""
    longest = max(map(len, rows))
    return torch.stack(
        [
            F.pad(row, (0, 0) * (row.ndim - 1) + (0, -longest % ALIGNED + longest - len(row)), value=padding)
            for row in rows
        ]
    )
