"""The training targets agree with what the encoder sees."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES, NO_TILES
from nano.labels import (
    CELL,
    CELL_OFFSET,
    IGNORED,
    LINE_EDGE,
    LINES,
    PATCH,
    PLACES,
    Labels,
    ViewMap,
    answer_labels,
    place,
    token_lines,
    token_places,
    view_labels,
    view_maps,
)
from nano.model import NanoOcr
from nano.render import Glyph, Task, render
from nano.samples import PAGE
from nano.tokenizer import make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(640, 480), (640, 640), (1240, 1754), (1700, 900)])
def test_view_maps_agree_with_the_prepared_views(mode: str, size: tuple[int, int]) -> None:
    x, y = 0.31 * size[0], 0.62 * size[1]
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((x - 8, y - 8, x + 8, y + 8), fill="black")
    prepared = prepare_image(image, MODES[mode])
    views = [prepared.global_view, *prepared.tiles]
    maps = list(view_maps(*size, MODES[mode], prepared.grid))
    assert len(views) == len(maps)
    seen = 0
    for view, each in zip(views, maps, strict=True):
        assert view.shape[0] == each.size
        expected = (x * each.scale_x + each.shift_x, y * each.scale_y + each.shift_y)
        if not all(12 < coordinate < each.size - 12 for coordinate in expected):
            continue
        seen += 1
        rows, columns = np.nonzero(view.numpy()[..., 0] < 60)
        assert abs(columns.mean() - expected[0]) < 1.5
        assert abs(rows.mean() - expected[1]) < 1.5
    assert seen >= 1


def test_characters_are_targets_of_their_patches_and_line_by_line_of_their_vision_token() -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    glyphs = [
        Glyph("b", (84, 62, 100, 88), (92, 80)),
        Glyph("a", (66, 72, 82, 88), (74, 80)),
        Glyph("c", (66, 94, 80, 110), (73, 102), line=1),
        Glyph("d", (200, 10, 216, 36), (208, 28), line=2),
    ]
    glyphs[0].spaced = True
    patches, cells, spaces, _ = view_labels(glyphs, view)
    assert decoded(cells, 64, 64) == ["|ab|", "|c|"]
    assert decoded(cells, 192, 0) == ["|d|", ""]
    assert spaces[5, :, :4].tolist() == [[IGNORED, 0, 1, IGNORED], [IGNORED, 0, IGNORED, IGNORED]]
    assert (spaces != IGNORED).sum() == 4
    assert chr(patches[84 // PATCH, 74 // PATCH] + 32) == "a"
    assert chr(patches[22 // PATCH, 208 // PATCH] + 32) == "d"
    assert patches[0, 0] == 0


def test_vision_token_is_asked_for_the_neighbours_of_its_characters_in_the_line() -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    glyphs = [
        Glyph(char, (x - 8, 72, x + 8, 88), (x, 80), spaced=char == "d")
        for char, x in zip("anndf", (68, 86, 104, 122, 186), strict=True)
    ]
    glyphs += [Glyph("z", (186 - 8, 94, 186 + 8, 110), (186, 102), line=1)]
    _, cells, spaces, _ = view_labels(glyphs, view)
    assert decoded(cells, 64, 64) == ["|annd", ""]
    assert decoded(cells, 128, 64) == ["ndf", ""]
    assert decoded(cells, 192, 64) == ["df|", "|z|"]
    assert spaces[5, 0, :5].tolist() == [IGNORED, 0, 0, 0, 1]


@pytest.mark.parametrize(("middle", "column"), [(64 - CELL_OFFSET - 2, 0), (64 - CELL_OFFSET + 2, 64), (254, 192)])
def test_character_belongs_to_one_vision_token_by_its_centre(middle: float, column: int) -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    _, cells, _, _ = view_labels([Glyph("a", (middle - 8, 72, middle + 8, 88), (middle, 80))], view)
    assert decoded(cells, column, 64) == ["|a|", ""]
    assert (cells > 0).sum() == 3


@pytest.mark.parametrize(("middle", "row"), [(64 - CELL_OFFSET - 2, 0), (64 - CELL_OFFSET + 2, 64), (254, 192)])
def test_line_belongs_to_one_row_of_vision_tokens_regardless_of_ascenders_and_descenders(
    middle: float, row: int
) -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    extents = {"l": (-18, 8), "g": (-8, 18), ",": (4, 12), "x": (-8, 8)}
    glyphs = [
        Glyph(char, (50 + 14 * index, middle + top, 62 + 14 * index, middle + bottom), (56 + 14 * index, middle))
        for index, (char, (top, bottom)) in enumerate(extents.items())
    ]
    for glyph in glyphs:
        glyph.line = 7
    _, cells, _, lines = view_labels(glyphs, view)
    assert decoded(cells, 64, row) == ["|lg,x|", ""]
    assert (cells > 0).sum() == 6
    assert lines[row // CELL * (256 // CELL) + 1].tolist() == [7, 7]
    assert (lines != IGNORED).sum() == 2


def test_vision_token_is_asked_for_its_first_and_last_line() -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    glyphs = [
        Glyph(char, (66, y - 8, 80, y + 8), (73, y), line)
        for line, (char, y) in enumerate([("a", 64), ("b", 84), ("c", 104), ("d", 240)], start=3)
    ]
    _, cells, _, lines = view_labels(glyphs, view)
    assert decoded(cells, 64, 64) == ["|a|", "|c|"]
    assert lines[5].tolist() == [3, 5]
    assert lines[lines != IGNORED].tolist() == [3, 5, 6, 6]


def decoded(cells: Labels, x: int, y: int) -> list[str]:
    """Return the characters of the first and of the last line in a vision token, with their neighbours.

    The square of the token begins at (x, y) in a view of 256 pixels. The beginning and the end of a line are written as
    a vertical bar.
    """
    found = cells[y // CELL * (256 // CELL) + x // CELL]
    return ["".join("|" if kind == LINE_EDGE else chr(kind + 32) for kind in line if kind) for line in found]


@pytest.mark.parametrize("task", ["free", "lines", "markdown", "locate", "ocr", "document"])
def test_decoder_targets_have_the_place_and_line_of_each_character(task: Task) -> None:
    page = render(replace(PAGE, structured=True, clean=True), random.Random(4))
    tokenizer = make()
    (view,) = view_maps(*page.image.size, MODES["base"], NO_TILES)
    _, pieces = page.pieces(task, random.Random(0))
    ids, places, lines = answer_labels(pieces, tokenizer, view)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "".join(piece.text for piece in pieces)
    printed = [place(*glyph.middle, view) for piece in pieces for glyph in piece.glyphs]
    boxes = [piece.located for piece in pieces if piece.located]
    assert set(places) <= {*printed, *(place(*box[i : i + 2], view) for box in boxes for i in (0, 2)), (-100, -100)}
    assert places[0] == printed[0]
    numbers = {"".join(glyph.char for glyph in line.glyphs): number for number, line in enumerate(page.lines())}
    line_numbers = [line for line in lines if line != IGNORED]
    if task in ("free", "lines"):
        assert line_numbers == [
            numbers[text.replace(" ", "")] for text in (line.text for line in page.lines()) for _ in text
        ]
    assert len(line_numbers) == sum(len(piece.text) for piece in pieces if piece.glyphs)


def test_decoder_targets_have_the_places_of_the_corners_of_boxes() -> None:
    page = render(replace(PAGE, structured=True, clean=True), random.Random(4))
    tokenizer = make()
    (view,) = view_maps(*page.image.size, MODES["base"], NO_TILES)
    _, pieces = page.pieces("lines", random.Random(0))
    ids, places, _ = answer_labels(pieces, tokenizer, view)
    box = page.lines()[0].box
    text = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    start, end = text.index("<|det|>"), text.index("<|/det|>")
    second_comma = [index for index in range(start, end) if text[index] == ","][1]
    assert set(places[start : second_comma + 1]) == {place(*box[:2], view)}
    assert set(places[second_comma + 1 : end + 1]) == {place(*box[2:], view)}


@pytest.mark.parametrize("size", [(640, 480), (640, 900), (1000, 400)])
def test_places_of_vision_tokens_are_in_the_order_of_the_encoder(size: tuple[int, int]) -> None:
    mode, encoder = MODES["gundam"], NanoOcr().encoder
    x, y = 0.31 * size[0], 0.62 * size[1]
    grid = mode.crop_grid(*size)
    views = list(view_maps(*size, mode, grid))
    embeddings = []
    for view in views:
        side = view.size // CELL
        column, row = int((x * view.scale_x + view.shift_x) // CELL), int((y * view.scale_y + view.shift_y) // CELL)
        tokens = torch.zeros(side, side, encoder.image_newline.numel())
        if 0 <= column < side and 0 <= row < side:
            tokens[row, column] = 1
        embeddings.append(tokens.flatten(0, 1))
    embedded = encoder.assemble(embeddings[0], embeddings[1:] or None, grid)

    places = token_places(views, grid)
    assert len(places) == len(embedded) == mode.vision_tokens(grid)
    marked = places[(embedded == 1).all(dim=1).numpy()]
    assert len(marked) == 1 + bool(grid.tiles)
    assert np.abs(marked - place(x, y, views[0])).max() <= PLACES * CELL / views[0].size / 2
    assert np.array_equal(
        places[:, 0] == IGNORED, (embedded != 0).all(dim=1).numpy() & ~(embedded == 1).all(dim=1).numpy()
    )


@pytest.mark.parametrize("size", [(640, 480), (640, 900), (1000, 400)])
def test_line_numbers_of_vision_tokens_are_in_the_order_of_the_encoder(size: tuple[int, int]) -> None:
    mode, encoder = MODES["gundam"], NanoOcr().encoder
    grid = mode.crop_grid(*size)
    rng = np.random.default_rng(0)
    numbers = [rng.integers(1, LINES, ((view.size // CELL) ** 2, 2)) for view in view_maps(*size, mode, grid)]
    embeddings = [torch.from_numpy(each).float().repeat(1, encoder.image_newline.numel() // 2) for each in numbers]
    with torch.no_grad():
        embedded = encoder.assemble(embeddings[0], embeddings[1:] or None, grid)[:, :2].numpy()
    lines = token_lines(numbers, grid)
    assert np.array_equal(lines != IGNORED, embedded >= 1)
    assert np.array_equal(lines[lines != IGNORED], embedded[embedded >= 1])
