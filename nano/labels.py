"""Where the letters of a page come to lie in the encoder's views, as targets for patches and vision tokens.

On the next-token loss alone a small model does not begin to read; taught what stands under each patch and
in each vision token, it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from deepseek_ocr.modes import CropGrid, ResolutionMode
from nano.render import Box, Glyph, Piece

PATCH = 16
CELL = 64
"""Pixels a side of a patch and of a vision token, in a view."""
LEAN = 16
"""Pixels of a view by which what a vision token is asked for begins above its square, and left of it: the compressor's
two strides see three patches before the first of the square and three after it."""
EDGE = 95
"""What stands beside a line's first character, and beside its last."""
CLASSES = 96
"""0 is nothing; 1 to 94 are the printable ASCII characters from `!` to `~`."""
PER_LINE = 8
"""Most characters taught of a line in one vision token."""
SLOTS = PER_LINE + 2
"""What is asked of a line in one vision token: the character before the token's first, its own, and the one after its
last. Two tokens that see a letter between them can agree then on whose it is, and on whether it is one or two."""
PLACES = 128
"""Columns, and rows, in which the decoder has to say where it reads on: 8 pixels, the narrowest letters, in the default
mode."""
LINES = 48
"""Lines that are told apart by their numbers; those that follow have the last one's."""
NOTHING = -100
"""Where no answer is asked."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ViewMap:
    """How page coordinates become those of one view: `x · scale_x + shift_x`."""

    size: int
    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float


def view_maps(width: int, height: int, mode: ResolutionMode, grid: CropGrid) -> Iterator[ViewMap]:
    """The global view, then the tiles row by row, as `prepare_image` makes them."""
    base = mode.base_size
    if mode.squashes:
        yield ViewMap(base, base / width, base / height, 0, 0)
    else:
        scale = base / max(width, height)
        yield ViewMap(base, scale, scale, (base - width * scale) / 2, (base - height * scale) / 2)
    size = mode.image_size
    if grid.tiles:
        for row in range(grid.tall):
            for column in range(grid.wide):
                yield ViewMap(size, size * grid.wide / width, size * grid.tall / height, -size * column, -size * row)


@dataclass(frozen=True)
class Sign:
    """A character where it lies in a view, in its pixels."""

    kind: int
    """Its class."""
    box: tuple[float, float, float, float]
    x: float
    y: float
    """The middle of its own width, and of its line's low letters."""
    line: int
    spaced: bool
    """Whether a space stands before it."""


def view_labels(glyphs: list[Glyph], view: ViewMap) -> tuple[Labels, Labels, Labels, Labels]:
    """Targets for one view: those of `patch_labels`, and the three of `token_labels`."""
    signs = list(signs_in(glyphs, view))
    return patch_labels(signs, view.size), *token_labels(signs, view.size)


def signs_in(glyphs: list[Glyph], view: ViewMap) -> Iterator[Sign]:
    """The characters that have a class and whose middles lie in the view."""
    for glyph in glyphs:
        kind = ord(glyph.char) - 32
        left, right, x = (each * view.scale_x + view.shift_x for each in (glyph.box[0], glyph.box[2], glyph.middle[0]))
        top, bottom, y = (each * view.scale_y + view.shift_y for each in (glyph.box[1], glyph.box[3], glyph.middle[1]))
        if 0 < kind < EDGE and 0 <= x < view.size and 0 <= y < view.size:
            yield Sign(kind, (left, top, right, bottom), x, y, glyph.line, glyph.spaced)


def patch_labels(signs: list[Sign], size: int) -> Labels:
    """[size / 16, size / 16]: which character covers the patch, 0 for none.

    A patch is the character's if its centre lies within; narrow ones keep the patch of their own centre.
    """
    side = size // PATCH
    patches = np.zeros((side, side), np.int64)
    for sign in signs:
        left, top, right, bottom = (max(0, round(each / PATCH)) for each in sign.box)
        patches[top : max(top + 1, bottom), left : max(left + 1, right)] = sign.kind
        middle = (sign.box[1] + sign.box[3]) / 2
        patches[min(max(0, int(middle / PATCH)), side - 1), int(sign.x / PATCH)] = sign.kind
    return patches


def token_labels(signs: list[Sign], size: int) -> tuple[Labels, Labels, Labels]:
    """What the vision tokens of a view are asked for.

    Returns:
        cells [(size / 64)², 2, SLOTS]: of the first and of the last line in the token's square, `LEAN` higher up and
        further left, the characters whose middles lie in it, from left to right, with the one before them and the one
        after them, then zeros. A line is a token's as a whole, however its characters reach up and down; where there
        is but one, the last has no characters.
        spaces [(size / 64)², 2, SLOTS]: 1 for those of these characters that a space stands before, 0 for the
        others; `NOTHING` where there is no character, and for the one before the token's own.
        lines [(size / 64)², 2]: the numbers of these two lines, out of `LINES`; `NOTHING` without any.
    """
    cells_a_side = size // CELL
    printed: dict[int, list[tuple[float, int, int, bool]]] = {}
    for sign in signs:
        row, column = (min(int((each + LEAN) / CELL), cells_a_side - 1) for each in (sign.y, sign.x))
        printed.setdefault(sign.line, []).append((sign.x, row * cells_a_side + column, sign.kind, sign.spaced))
    cells: dict[int, dict[int, tuple[list[int], list[int]]]] = {}
    for line, unsorted in printed.items():
        ordered = sorted(unsorted)
        kinds = [EDGE, *(kind for *_, kind, _ in ordered), EDGE]
        spaces = [NOTHING, *(int(spaced) for *_, spaced in ordered), NOTHING]
        for cell, group in groupby(enumerate(ordered), lambda each: each[1][1]):
            first, *others = (place for place, _ in group)
            own = min(1 + len(others), PER_LINE)
            end = first + own + 1
            asked = cells.setdefault(cell, {})
            asked[line] = kinds[first : end + 1], [NOTHING, *spaces[first + 1 : end + 1]]
    in_cells = np.zeros((cells_a_side**2, 2, SLOTS), np.int64)
    in_spaces = np.full(in_cells.shape, NOTHING)
    lines = np.full((cells_a_side**2, 2), NOTHING)
    for cell, found in cells.items():
        top_line, bottom_line = min(found), max(found)
        lines[cell] = min(top_line, LINES - 1), min(bottom_line, LINES - 1)
        for place, line in enumerate(sorted({top_line, bottom_line})):
            kinds, spaces = found[line]
            in_cells[cell, place, : len(kinds)], in_spaces[cell, place, : len(spaces)] = kinds, spaces
    return in_cells, in_spaces, lines


def token_places(views: list[ViewMap], grid: CropGrid) -> Labels:
    """Where on the page each vision token lies, in the decoder's order (`DeepEncoder.assemble`).

    Args:
        views: those of `view_maps`.
        grid: how the tiles lie.

    Returns:
        [tokens, 2]: column and row of its square's middle in the global view, out of `PLACES`; `NOTHING` for what is
        no square.
    """
    whole, *tiles = views
    grids = [_squares(whole, whole)]
    if tiles:  # one grid: that of the first tile, gone on with
        grids.insert(0, _squares(tiles[0], whole, grid.wide, grid.tall))
    return in_order(grids)


def token_lines(numbers: list[Labels], grid: CropGrid) -> Labels:
    """The numbers of lines of each vision token, in the decoder's order, as `token_places` has their places.

    Args:
        numbers: for each view what `view_labels` says, in the order of `view_maps`.
        grid: how the tiles lie.

    Returns:
        [tokens, 2]: `NOTHING` for what is no square, and for squares without characters.
    """
    whole, *tiles = (each.reshape(math.isqrt(len(each)), -1, 2) for each in numbers)
    grids = [whole]
    if tiles:
        side = len(tiles[0])
        stacked = np.stack(tiles).reshape(grid.tall, grid.wide, side, side, 2)
        grids.insert(0, stacked.swapaxes(1, 2).reshape(grid.tall * side, grid.wide * side, 2))
    return in_order(grids)


def in_order(grids: list[Labels]) -> Labels:
    """[tokens, 2] of grids [rows, columns, 2]: a newline after every row, the separator at the end."""
    lines = [np.pad(each, ((0, 0), (0, 1), (0, 0)), constant_values=NOTHING).reshape(-1, 2) for each in grids]
    return np.concatenate([*lines, np.full((1, 2), NOTHING)])


def _squares(view: ViewMap, whole: ViewMap, wide: int = 1, tall: int = 1) -> Labels:
    """[rows, columns, 2]: the places of the tokens of `wide` × `tall` views, of which `view` is the first."""
    columns = (np.arange(CELL / 2, wide * view.size, CELL) - view.shift_x) / view.scale_x
    rows = (np.arange(CELL / 2, tall * view.size, CELL) - view.shift_y) / view.scale_y
    return np.array([[place(x, y, whole) for x in columns] for y in rows])


def answer_labels(
    pieces: list[Piece], tokenizer: Tokenizer, view: ViewMap
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """What the decoder has to say, and where on the page it has to look for it.

    Returns:
        The answer's ids, and as many places (column, row) in the global view, out of `PLACES`: of the sign that
        an id writes; of the corner that it gives; or, for what is neither, of the next sign. And as many numbers of
        lines, out of `LINES`: of the line in which an id is printed, `NOTHING` for ids that are not.
    """
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    lines: list[int] = []
    following = (NOTHING, NOTHING)
    for piece in reversed(pieces):
        signs = iter(reversed(piece.glyphs))
        tokens = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += reversed(tokens)
        lines += [min(piece.glyphs[0].line, LINES - 1) if piece.glyphs else NOTHING] * len(tokens)
        if piece.located is not None:
            places += reversed(list(corners(tokens, piece.located, tokenizer, view)))
            continue
        for token in reversed(tokens):
            if piece.glyphs and tokenizer.decode([token]) != " ":
                following = place(*next(signs).middle, view)
            places.append(following)
    return ids[::-1], places[::-1], lines[::-1]


def corners(tokens: list[int], box: Box, tokenizer: Tokenizer, view: ViewMap) -> Iterator[tuple[int, int]]:
    """For each token of a box as text: the place of its first corner until that has been given, then of the second."""
    commas = 0
    for token in tokens:
        yield place(*(box[:2] if commas < 2 else box[2:]), view)
        commas += tokenizer.decode([token]) == ","


def place(x: float, y: float, view: ViewMap) -> tuple[int, int]:
    """A point of the page as column and row of the view."""
    seen = (x * view.scale_x + view.shift_x, y * view.scale_y + view.shift_y)
    column, row = (min(PLACES - 1, max(0, int(each / view.size * PLACES))) for each in seen)
    return column, row
