"""Targets lie where the encoder sees the letters."""

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
    EDGE,
    LEAN,
    LINES,
    NOTHING,
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
def test_a_spot_on_the_page_lies_in_the_views_where_the_maps_say(mode: str, size: tuple[int, int]) -> None:
    x, y = 0.31 * size[0], 0.62 * size[1]
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((x - 8, y - 8, x + 8, y + 8), fill="black")
    prepared = prepare_image(picture, MODES[mode])
    views = [prepared.global_view, *prepared.tiles]
    maps = list(view_maps(*size, MODES[mode], prepared.grid))
    assert len(views) == len(maps)
    seen = 0
    for view, each in zip(views, maps, strict=True):
        assert view.shape[0] == each.size
        there = (x * each.scale_x + each.shift_x, y * each.scale_y + each.shift_y)
        if not all(12 < place < each.size - 12 for place in there):
            continue
        seen += 1
        rows, columns = np.nonzero(view.numpy()[..., 0] < 60)
        assert abs(columns.mean() - there[0]) < 1.5
        assert abs(rows.mean() - there[1]) < 1.5
    assert seen >= 1


def test_characters_are_taught_in_their_patch_and_in_their_token_line_by_line() -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    glyphs = [
        Glyph("b", (84, 62, 100, 88), (92, 80)),
        Glyph("a", (66, 72, 82, 88), (74, 80)),
        Glyph("c", (66, 94, 80, 110), (73, 102), line=1),
        Glyph("d", (200, 10, 216, 36), (208, 28), line=2),
    ]
    glyphs[0].spaced = True
    patches, cells, spaces, _ = view_labels(glyphs, view)
    assert said(cells, 64, 64) == ["|ab|", "|c|"]
    assert said(cells, 192, 0) == ["|d|", ""]
    assert spaces[5, :, :4].tolist() == [[NOTHING, 0, 1, NOTHING], [NOTHING, 0, NOTHING, NOTHING]]
    assert (spaces != NOTHING).sum() == 4
    assert chr(patches[84 // PATCH, 74 // PATCH] + 32) == "a"
    assert chr(patches[22 // PATCH, 208 // PATCH] + 32) == "d"
    assert patches[0, 0] == 0


def test_a_token_is_asked_for_the_characters_beside_its_own_in_their_line() -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    glyphs = [
        Glyph(char, (x - 8, 72, x + 8, 88), (x, 80), spaced=char == "d")
        for char, x in zip("anndf", (68, 86, 104, 122, 186), strict=True)
    ]
    glyphs += [Glyph("z", (186 - 8, 94, 186 + 8, 110), (186, 102), line=1)]
    _, cells, spaces, _ = view_labels(glyphs, view)
    assert said(cells, 64, 64) == ["|annd", ""]
    assert said(cells, 128, 64) == ["ndf", ""]
    assert said(cells, 192, 64) == ["df|", "|z|"]
    assert spaces[5, 0, :5].tolist() == [NOTHING, 0, 0, 0, 1]


@pytest.mark.parametrize(("middle", "column"), [(64 - LEAN - 2, 0), (64 - LEAN + 2, 64), (254, 192)])
def test_a_character_is_one_tokens_where_the_compressor_sees_it_best(middle: float, column: int) -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    _, cells, _, _ = view_labels([Glyph("a", (middle - 8, 72, middle + 8, 88), (middle, 80))], view)
    assert said(cells, column, 64) == ["|a|", ""]
    assert (cells > 0).sum() == 3


@pytest.mark.parametrize(("middle", "row"), [(64 - LEAN - 2, 0), (64 - LEAN + 2, 64), (254, 192)])
def test_a_line_is_one_tokens_however_its_characters_reach(middle: float, row: int) -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    reaching = {"l": (-18, 8), "g": (-8, 18), ",": (4, 12), "x": (-8, 8)}
    glyphs = [
        Glyph(char, (50 + 14 * place, middle + top, 62 + 14 * place, middle + bottom), (56 + 14 * place, middle))
        for place, (char, (top, bottom)) in enumerate(reaching.items())
    ]
    for glyph in glyphs:
        glyph.line = 7
    _, cells, _, lines = view_labels(glyphs, view)
    assert said(cells, 64, row) == ["|lg,x|", ""]
    assert (cells > 0).sum() == 6
    assert lines[row // CELL * (256 // CELL) + 1].tolist() == [7, 7]
    assert (lines != NOTHING).sum() == 2


def test_a_token_is_told_the_first_and_the_last_of_the_lines_in_it() -> None:
    view = ViewMap(size=256, scale_x=1, scale_y=1, shift_x=0, shift_y=0)
    glyphs = [
        Glyph(char, (66, y - 8, 80, y + 8), (73, y), line)
        for line, (char, y) in enumerate([("a", 64), ("b", 84), ("c", 104), ("d", 240)], start=3)
    ]
    _, cells, _, lines = view_labels(glyphs, view)
    assert said(cells, 64, 64) == ["|a|", "|c|"]
    assert lines[5].tolist() == [3, 5]
    assert lines[lines != NOTHING].tolist() == [3, 5, 6, 6]


def said(cells: Labels, x: int, y: int) -> list[str]:
    """The characters of the first and of the last line in the token whose square begins at (x, y), in a view of 256,
    with those beside them; | for a line's beginning and its end."""
    found = cells[y // CELL * (256 // CELL) + x // CELL]
    return ["".join("|" if kind == EDGE else chr(kind + 32) for kind in line if kind) for line in found]


@pytest.mark.parametrize("task", ["free", "lines", "markdown", "locate", "ocr", "document"])
def test_the_decoder_is_told_where_each_sign_it_writes_stands(task: Task) -> None:
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
    numbers = {"".join(glyph.char for glyph in line.glyphs): place for place, line in enumerate(page.lines())}
    told = [line for line in lines if line != NOTHING]
    if task in ("free", "lines"):
        assert told == [numbers[text.replace(" ", "")] for text in (line.text for line in page.lines()) for _ in text]
    assert len(told) == sum(len(piece.text) for piece in pieces if piece.glyphs)


def test_the_decoder_is_told_where_the_corners_lie() -> None:
    page = render(replace(PAGE, structured=True, clean=True), random.Random(4))
    tokenizer = make()
    (view,) = view_maps(*page.image.size, MODES["base"], NO_TILES)
    _, pieces = page.pieces("lines", random.Random(0))
    ids, places, _ = answer_labels(pieces, tokenizer, view)
    box = page.lines()[0].box
    text = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    start, end = text.index("<|det|>"), text.index("<|/det|>")
    second = [at for at in range(start, end) if text[at] == ","][1]
    assert set(places[start : second + 1]) == {place(*box[:2], view)}
    assert set(places[second + 1 : end + 1]) == {place(*box[2:], view)}


@pytest.mark.parametrize("size", [(640, 480), (640, 900), (1000, 400)])
def test_vision_tokens_are_told_where_they_lie_in_the_order_of_the_encoder(size: tuple[int, int]) -> None:
    mode, encoder = MODES["gundam"], NanoOcr().encoder
    x, y = 0.31 * size[0], 0.62 * size[1]
    grid = mode.crop_grid(*size)
    views = list(view_maps(*size, mode, grid))
    shown = []
    for view in views:
        side = view.size // CELL
        column, row = int((x * view.scale_x + view.shift_x) // CELL), int((y * view.scale_y + view.shift_y) // CELL)
        tokens = torch.zeros(side, side, encoder.image_newline.numel())
        if 0 <= column < side and 0 <= row < side:
            tokens[row, column] = 1
        shown.append(tokens.flatten(0, 1))
    embedded = encoder.assemble(shown[0], shown[1:] or None, grid)

    places = token_places(views, grid)
    assert len(places) == len(embedded) == mode.vision_tokens(grid)
    spots = places[(embedded == 1).all(dim=1).numpy()]
    assert len(spots) == 1 + bool(grid.tiles)
    assert np.abs(spots - place(x, y, views[0])).max() <= PLACES * CELL / views[0].size / 2
    assert np.array_equal(
        places[:, 0] == NOTHING, (embedded != 0).all(dim=1).numpy() & ~(embedded == 1).all(dim=1).numpy()
    )


@pytest.mark.parametrize("size", [(640, 480), (640, 900), (1000, 400)])
def test_vision_tokens_are_told_their_lines_in_the_order_of_the_encoder(size: tuple[int, int]) -> None:
    mode, encoder = MODES["gundam"], NanoOcr().encoder
    grid = mode.crop_grid(*size)
    rng = np.random.default_rng(0)
    numbers = [rng.integers(1, LINES, ((view.size // CELL) ** 2, 2)) for view in view_maps(*size, mode, grid)]
    shown = [torch.from_numpy(each).float().repeat(1, encoder.image_newline.numel() // 2) for each in numbers]
    with torch.no_grad():
        embedded = encoder.assemble(shown[0], shown[1:] or None, grid)[:, :2].numpy()
    lines = token_lines(numbers, grid)
    assert np.array_equal(lines != NOTHING, embedded >= 1)
    assert np.array_equal(lines[lines != NOTHING], embedded[embedded >= 1])
