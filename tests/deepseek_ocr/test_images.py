"""Views of a picture, compared with Pillow; the number of placeholders equals the number of embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ocr_builders import FAST, noisy_picture, random_encoder, smooth_picture
from PIL import Image, ImageOps

from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.images import PreparedImage, normalize, prepare_image
from deepseek_ocr.modes import MODES, NO_TILES, CropGrid, ResolutionMode

GREY = (127, 127, 127)
BICUBIC = Image.Resampling.BICUBIC
SIZES = [(1240, 1754), (1754, 1240), (641, 640), (90, 60), (60, 90), (2000, 250), (250, 2000), (1024, 1024), (7, 5)]


def pillow_views(picture: Image.Image, mode: ResolutionMode, grid: CropGrid) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the global view and the tiles, made with Pillow."""
    size = mode.image_size
    if not mode.crop_mode and size <= 640:
        picture = picture.resize((size, size), BICUBIC)
    view = ImageOps.pad(picture, (mode.base_size, mode.base_size), method=BICUBIC, color=GREY)
    tiles = []
    if grid != NO_TILES:
        whole = picture.resize((size * grid.wide, size * grid.tall), BICUBIC)
        tiles = [
            whole.crop((x * size, y * size, (x + 1) * size, (y + 1) * size))
            for y in range(grid.tall)
            for x in range(grid.wide)
        ]
    return np.asarray(view), [np.asarray(tile) for tile in tiles]


def assert_same_picture(ours: torch.Tensor, expected: np.ndarray) -> None:
    assert ours.dtype == torch.uint8
    assert tuple(ours.shape) == expected.shape
    difference = np.abs(ours.numpy().astype(int) - expected.astype(int))
    assert difference.max() <= 2
    assert (difference > 0).mean() <= 0.01


@pytest.mark.slow
def test_pixels_match_pillow_in_every_mode() -> None:
    cut = 0
    for name, mode in MODES.items():
        for size in SIZES if name in ("tiny", "gundam") else SIZES[::2]:
            picture = smooth_picture(*size)
            prepared = prepare_image(picture, mode)
            view, tiles = pillow_views(picture, mode, mode.crop_grid(*size))
            assert_same_picture(prepared.global_view, view)
            assert len(prepared.tiles) == len(tiles) == prepared.grid.tiles
            for ours, expected in zip(prepared.tiles, tiles, strict=True):
                assert_same_picture(ours, expected)
            cut += bool(tiles)
    assert cut == 8


@pytest.mark.parametrize("mode", [ResolutionMode(80, 80), ResolutionMode(1008, 336, max_crops=9)])
def test_pixels_match_pillow_at_sizes_without_a_name(mode: ResolutionMode) -> None:
    picture = smooth_picture(1500, 700)
    prepared = prepare_image(picture, mode)
    view, tiles = pillow_views(picture, mode, prepared.grid)
    assert_same_picture(prepared.global_view, view)
    assert tiles
    for ours, expected in zip(prepared.tiles, tiles, strict=True):
        assert_same_picture(ours, expected)


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (1, 1), (1, 3000)])
def test_a_picture_one_pixel_wide_keeps_at_least_one_pixel(size: tuple[int, int]) -> None:
    colour = (200, 30, 90)
    prepared = prepare_image(Image.new("RGB", size, colour), MODES["gundam"])
    drawn = (prepared.global_view != torch.tensor(GREY, dtype=torch.uint8)).any(-1)
    rows, columns = drawn.any(1).sum().item(), drawn.any(0).sum().item()
    expected = {(1, 900): (1024, 1), (900, 1): (1, 1024), (1, 1): (1024, 1024), (1, 3000): (1024, 1)}
    assert (rows, columns) == expected[size]
    assert (prepared.global_view[drawn] == torch.tensor(colour)).all()
    assert prepared.grid.tiles == (0 if size == (1, 1) else 6)
    assert (prepared.tiles == torch.tensor(colour)).all()


def test_a_global_view_is_centred_on_grey() -> None:
    prepared = prepare_image(Image.new("RGB", (400, 200), "white"), MODES["base"])
    view = prepared.global_view
    assert (view[:256] == 127).all()
    assert (view[256:768] == 255).all()
    assert (view[768:] == 127).all()


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_small_modes_do_not_keep_the_aspect_ratio(name: str) -> None:
    prepared = prepare_image(Image.new("RGB", (400, 200), "white"), MODES[name])
    assert (prepared.global_view == 255).all()


def test_tiles_are_cut_row_by_row() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    picture = Image.new("RGB", (1280, 1920))
    for place, colour in enumerate(colours):
        y, x = divmod(place, 2)
        picture.paste(colour, (640 * x, 640 * y, 640 * (x + 1), 640 * (y + 1)))
    prepared = prepare_image(picture, MODES["gundam"])
    assert prepared.grid == (2, 3)
    # The size is the grid's own, so nothing was resampled and every tile is of one colour.
    assert (prepared.tiles == torch.tensor(colours)[:, None, None]).all()


def test_a_picture_without_tiles_has_an_empty_stack() -> None:
    prepared = prepare_image(noisy_picture(640, 480), MODES["gundam"])
    assert prepared.grid == NO_TILES
    assert tuple(prepared.tiles.shape) == (0, 0, 0, 3)
    assert prepared.num_tokens == 273


@pytest.mark.parametrize("kind", ["L", "P", "CMYK", "1", "LA"])
def test_other_colour_modes_are_converted(kind: str) -> None:
    picture = smooth_picture(700, 300).convert(kind)
    prepared = prepare_image(picture, MODES["gundam"])
    expected = prepare_image(picture.convert("RGB"), MODES["gundam"])
    assert torch.equal(prepared.global_view, expected.global_view)
    assert torch.equal(prepared.tiles, expected.tiles)


def test_the_picture_itself_is_not_changed() -> None:
    picture = noisy_picture(512, 512)
    before = picture.tobytes()
    prepared = prepare_image(picture, MODES["tiny"])
    prepared.global_view.zero_()
    assert picture.tobytes() == before


def test_normalize() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3).clone()
    ramp[1, ..., 1] = 0
    pixels = normalize(ramp, torch.float32)
    assert tuple(pixels.shape) == (2, 3, 16, 16)
    assert pixels.dtype == torch.float32
    expected = (np.arange(256) / 255 - 0.5) / 0.5  # mean and deviation of 0.5
    np.testing.assert_allclose(pixels[0, 2].flatten().numpy(), expected, atol=1e-6)
    assert (pixels[1, 1] == -1).all()
    assert (pixels.amin().item(), pixels.amax().item()) == (-1.0, 1.0)
    # Values are rounded once, from the exact value.
    assert torch.equal(normalize(ramp, torch.bfloat16), pixels.to(torch.bfloat16))


ENCODER = random_encoder(FAST)


class TestPlaceholdersEqualEmbeddings:
    """The number of placeholders in the prompt is the number of embeddings that the encoder makes."""

    @staticmethod
    def embeddings_of(prepared: PreparedImage) -> int:
        with torch.inference_mode():
            (embeddings,) = ENCODER.embed([Views(prepared.global_view, prepared.tiles, prepared.grid)])
        assert embeddings.shape[1] == FAST.hidden_size
        return embeddings.shape[0]

    @settings(max_examples=40)
    @given(
        width=st.integers(1, 3000),
        height=st.integers(1, 3000),
        base=st.integers(4, 64).map(lambda n: 16 * n),
        size=st.integers(4, 24).map(lambda n: 16 * n),
        crop=st.booleans(),
        bounds=st.tuples(st.integers(1, 9), st.integers(1, 9)).map(sorted),
    )
    @example(width=641, height=1, base=80, size=80, crop=True, bounds=[9, 9])
    @example(width=500, height=501, base=1040, size=336, crop=True, bounds=[1, 1])
    def test_any_mode_and_size(
        self, width: int, height: int, base: int, size: int, crop: bool, bounds: list[int]
    ) -> None:
        mode = ResolutionMode(base, size, crop, *bounds)
        prepared = prepare_image(Image.new("RGB", (width, height)), mode)
        assert prepared.num_tokens == self.embeddings_of(prepared)
        assert prepared.num_tokens <= mode.max_vision_tokens()

    @pytest.mark.parametrize("name", MODES)
    @pytest.mark.parametrize("size", [(1240, 1754), (300, 200)])
    def test_named_modes(self, name: str, size: tuple[int, int]) -> None:
        prepared = prepare_image(noisy_picture(*size), MODES[name])
        assert prepared.num_tokens == self.embeddings_of(prepared)
