"""Training targets that follow from where the characters of a page are in the encoder's views.

With the next-token loss alone, a small model does not begin to read. It does if it is also taught which character is
under each patch and which characters are in each vision token.
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
"""Side of a patch, in pixels of a view."""
CELL = 64
"""Side of the square of a vision token, in pixels of a view."""
CELL_OFFSET = 16
"""Offset, in pixels of a view, by which the area whose characters a vision token is asked for lies above its square and
to the left of it. The two convolutions with stride 2 in the compressor see three patches before the first one of the
square and three after it."""
LINE_EDGE = 95
"""The class that precedes the first character of a line and follows the last one."""
CLASSES = 96
"""Number of classes: 0 is no character, 1 to 94 are the printable ASCII characters from `!` to `~`, and 95 is
`LINE_EDGE`."""
PER_LINE = 8
"""Maximum number of characters of one line that a vision token is asked for, without the neighbouring ones."""
SLOTS = PER_LINE + 2
"""Maximum number of classes that a vision token is asked for in one line: the character before its first one, its own
characters, and the one after its last. With their neighbours, two tokens that both see a letter on their border can
agree on which of them it belongs to, and on whether it is one letter or two."""
PLACES = 128
"""Number of columns, and of rows, in which the decoder states where it reads next. In the default mode, each is 8
pixels of the view, which is the width of the narrowest letters."""
LINES = 48
"""Number of lines that are distinguished by their numbers; all further lines have the number of the last one."""
IGNORED = -100
"""The target where there is nothing to predict; the default `ignore_index` of torch's cross entropy."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ViewMap:
    """The mapping from page coordinates to those of a view: `x · scale_x + shift_x`, and the same for y."""

    size: int
    """Side of the view, in pixels."""
    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float


def view_maps(width: int, height: int, mode: ResolutionMode, grid: CropGrid) -> Iterator[ViewMap]:
    """Yield the mappings of the global view and of the tiles, row by row, in the order of `prepare_image`.

    Args:
        width: width of the page, in pixels.
        height: height of the page, in pixels.
        mode: the resolution mode.
        grid: the crop grid of the page.
    """
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
class Character:
    """A character in a view, in pixels of the view."""

    kind: int
    """Its class."""
    box: tuple[float, float, float, float]
    x: float
    """Its horizontal centre."""
    y: float
    """The vertical centre of the lowercase letters of its line."""
    line: int
    """Index of its line."""
    spaced: bool
    """Whether a space precedes it."""


def view_labels(glyphs: list[Glyph], view: ViewMap) -> tuple[Labels, Labels, Labels, Labels]:
    """Return all targets of one view: that of `patch_labels`, and the three of `token_labels`."""
    characters = list(characters_in(glyphs, view))
    return patch_labels(characters, view.size), *token_labels(characters, view.size)


def characters_in(glyphs: list[Glyph], view: ViewMap) -> Iterator[Character]:
    """Yield the characters that have a class and whose centres are in the view."""
    for glyph in glyphs:
        kind = ord(glyph.char) - 32
        left, right, x = (each * view.scale_x + view.shift_x for each in (glyph.box[0], glyph.box[2], glyph.middle[0]))
        top, bottom, y = (each * view.scale_y + view.shift_y for each in (glyph.box[1], glyph.box[3], glyph.middle[1]))
        if 0 < kind < LINE_EDGE and 0 <= x < view.size and 0 <= y < view.size:
            yield Character(kind, (left, top, right, bottom), x, y, glyph.line, glyph.spaced)


def patch_labels(characters: list[Character], size: int) -> Labels:
    """Return the class of the character that covers each patch, or 0.

    A character covers the patches whose centres are in its box. Even a narrow character covers the patch that contains
    its own centre.

    Args:
        characters: the characters in the view.
        size: side of the view, in pixels.

    Returns:
        [size / 16, size / 16].
    """
    side = size // PATCH
    patches = np.zeros((side, side), np.int64)
    for character in characters:
        left, top, right, bottom = (max(0, round(each / PATCH)) for each in character.box)
        patches[top : max(top + 1, bottom), left : max(left + 1, right)] = character.kind
        middle = (character.box[1] + character.box[3]) / 2
        patches[min(max(0, int(middle / PATCH)), side - 1), int(character.x / PATCH)] = character.kind
    return patches


def token_labels(characters: list[Character], size: int) -> tuple[Labels, Labels, Labels]:
    """Return the targets of the vision tokens of a view.

    The area of a token is its square, moved up and to the left by `CELL_OFFSET`. A line as a whole belongs to one row
    of areas, regardless of how far its characters reach up and down. A token is asked for the first and the last line
    in its area.

    Args:
        characters: the characters in the view.
        size: side of the view, in pixels.

    Returns:
        cells [(size / 64)², 2, SLOTS]: the classes of the characters of these two lines whose centres are in the area,
        from left to right, with the one before them and the one after them, padded with zeros. If there is only one
        line, the second one is empty.
        spaces [(size / 64)², 2, SLOTS]: 1 for those of these characters that are preceded by a space, 0 for the others,
        and `IGNORED` where there is no character and for the one before the token's own characters.
        lines [(size / 64)², 2]: the numbers of the two lines, limited to `LINES` - 1; `IGNORED` if there is no line.
    """
    side = size // CELL
    by_line: dict[int, list[tuple[float, int, int, bool]]] = {}
    for each in characters:
        row, column = (min(int((centre + CELL_OFFSET) / CELL), side - 1) for centre in (each.y, each.x))
        by_line.setdefault(each.line, []).append((each.x, row * side + column, each.kind, each.spaced))
    by_cell: dict[int, dict[int, tuple[list[int], list[int]]]] = {}
    for line, unsorted in by_line.items():
        ordered = sorted(unsorted)
        kinds = [LINE_EDGE, *(kind for *_, kind, _ in ordered), LINE_EDGE]
        spaced = [IGNORED, *(int(spaced) for *_, spaced in ordered), IGNORED]
        for cell, group in groupby(enumerate(ordered), lambda each: each[1][1]):
            first, *others = (index for index, _ in group)
            own = min(1 + len(others), PER_LINE)
            end = first + own + 1
            by_cell.setdefault(cell, {})[line] = kinds[first : end + 1], [IGNORED, *spaced[first + 1 : end + 1]]
    cells = np.zeros((side**2, 2, SLOTS), np.int64)
    spaces = np.full(cells.shape, IGNORED)
    lines = np.full((side**2, 2), IGNORED)
    for cell, targets in by_cell.items():
        top_line, bottom_line = min(targets), max(targets)
        lines[cell] = min(top_line, LINES - 1), min(bottom_line, LINES - 1)
        for index, line in enumerate(sorted({top_line, bottom_line})):
            kinds, spaced = targets[line]
            cells[cell, index, : len(kinds)], spaces[cell, index, : len(spaced)] = kinds, spaced
    return cells, spaces, lines


def token_places(views: list[ViewMap], grid: CropGrid) -> Labels:
    """Return where on the page each vision token is, in the order of the decoder (`DeepEncoder.assemble`).

    Args:
        views: the mappings of `view_maps`.
        grid: the crop grid.

    Returns:
        [tokens, 2]: the place (`place`) of the centre of the token's square in the global view; `IGNORED` for newlines
        and the separator.
    """
    global_view, *tiles = views
    grids = [_token_grid(global_view, global_view)]
    if tiles:  # The tokens of all tiles form one grid, which begins in the first tile.
        grids.insert(0, _token_grid(tiles[0], global_view, grid.wide, grid.tall))
    return in_decoder_order(grids)


def token_lines(numbers: list[Labels], grid: CropGrid) -> Labels:
    """Return the line numbers of each vision token, in the order of the decoder.

    Args:
        numbers: the line numbers from `view_labels` for each view, in the order of `view_maps`.
        grid: the crop grid.

    Returns:
        [tokens, 2]: the numbers of the first and the last line; `IGNORED` for newlines, the separator, and tokens
        without characters.
    """
    global_view, *tiles = (each.reshape(math.isqrt(len(each)), -1, 2) for each in numbers)
    grids = [global_view]
    if tiles:
        side = len(tiles[0])
        stacked = np.stack(tiles).reshape(grid.tall, grid.wide, side, side, 2)
        grids.insert(0, stacked.swapaxes(1, 2).reshape(grid.tall * side, grid.wide * side, 2))
    return in_decoder_order(grids)


def in_decoder_order(grids: list[Labels]) -> Labels:
    """Flatten grids [rows, columns, 2] to [tokens, 2], with a newline after every row and the separator at the end."""
    lines = [np.pad(each, ((0, 0), (0, 1), (0, 0)), constant_values=IGNORED).reshape(-1, 2) for each in grids]
    return np.concatenate([*lines, np.full((1, 2), IGNORED)])


def _token_grid(view: ViewMap, global_view: ViewMap, wide: int = 1, tall: int = 1) -> Labels:
    """Return the places of the tokens of `wide` × `tall` views, of which `view` is the first, [rows, columns, 2]."""
    columns = (np.arange(CELL / 2, wide * view.size, CELL) - view.shift_x) / view.scale_x
    rows = (np.arange(CELL / 2, tall * view.size, CELL) - view.shift_y) / view.scale_y
    return np.array([[place(x, y, global_view) for x in columns] for y in rows])


def answer_labels(
    pieces: list[Piece], tokenizer: Tokenizer, view: ViewMap
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Return the targets of the decoder for an answer.

    Args:
        pieces: the answer, from `Page.pieces`.
        tokenizer: encodes each piece.
        view: the mapping of the global view.

    Returns:
        ids: the token ids of the answer.
        places: for each id, where on the page it is read, as (column, row) from `place`: the centre of the character
        that it writes; the corner whose coordinates it gives; for other ids, the same as the next character.
        lines: for each id, the number of the line in which it is printed, limited to `LINES` - 1; `IGNORED` for ids
        that are not printed.
    """
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    lines: list[int] = []
    following = (IGNORED, IGNORED)
    for piece in reversed(pieces):
        glyphs = iter(reversed(piece.glyphs))
        tokens = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += reversed(tokens)
        lines += [min(piece.glyphs[0].line, LINES - 1) if piece.glyphs else IGNORED] * len(tokens)
        if piece.located is not None:
            places += reversed(list(corners(tokens, piece.located, tokenizer, view)))
            continue
        for token in reversed(tokens):
            if piece.glyphs and tokenizer.decode([token]) != " ":
                following = place(*next(glyphs).middle, view)
            places.append(following)
    return ids[::-1], places[::-1], lines[::-1]


def corners(tokens: list[int], box: Box, tokenizer: Tokenizer, view: ViewMap) -> Iterator[tuple[int, int]]:
    """Yield a place for each token of the text of a box: its first corner up to the second comma, then its second."""
    commas = 0
    for token in tokens:
        yield place(*(box[:2] if commas < 2 else box[2:]), view)
        commas += tokenizer.decode([token]) == ","


def place(x: float, y: float, view: ViewMap) -> tuple[int, int]:
    """Return the column and row, each from 0 to `PLACES` - 1, in which a point of the page is in a view."""
    point = (x * view.scale_x + view.shift_x, y * view.scale_y + view.shift_y)
    column, row = (min(PLACES - 1, max(0, int(each / view.size * PLACES))) for each in point)
    return column, row
