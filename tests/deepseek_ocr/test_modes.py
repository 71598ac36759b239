"""Token counts and tile grids, compared with the published table and with exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepseek_ocr.modes import (
    MAX_TILES,
    MODES,
    NO_TILES,
    CropGrid,
    ResolutionMode,
    most_expensive_mode,
    view_side,
    view_tokens,
)

GUNDAM = MODES["gundam"]
ALLOWED_SIZES = range(64, 1281, 16)


def every_grid(fewest: int, most: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if fewest <= i * j <= most]


class TestTokens:
    @pytest.mark.parametrize(("name", "tokens"), [("tiny", 73), ("small", 111), ("base", 273), ("large", 421)])
    @pytest.mark.parametrize("size", [(10, 10), (1240, 1754), (5000, 300)])
    def test_modes_without_cropping_cost_the_same_for_every_picture(
        self, name: str, tokens: int, size: tuple[int, int]
    ) -> None:
        mode = MODES[name]
        assert mode.crop_grid(*size) == NO_TILES
        assert mode.vision_tokens(mode.crop_grid(*size)) == tokens
        assert mode.max_vision_tokens() == tokens

    @pytest.mark.parametrize(("wide", "tall"), [grid for grid in every_grid(2, 9) if grid != (1, 1)])
    def test_gundam(self, wide: int, tall: int) -> None:
        assert GUNDAM.vision_tokens(CropGrid(wide, tall)) == 273 + (10 * tall) * (10 * wide + 1)

    @pytest.mark.parametrize(("wide", "tall"), [grid for grid in every_grid(2, 9) if grid != (1, 1)])
    def test_gundam_m(self, wide: int, tall: int) -> None:
        assert MODES["gundam-m"].vision_tokens(CropGrid(wide, tall)) == 421 + (16 * tall) * (16 * wide + 1)

    def test_gundam_without_tiles_is_the_global_view_alone(self) -> None:
        assert GUNDAM.vision_tokens(NO_TILES) == 273

    def test_an_a4_page(self) -> None:
        grid = GUNDAM.crop_grid(1240, 1754)
        assert grid == (2, 3)
        assert GUNDAM.vision_tokens(grid) == 903

    @pytest.mark.parametrize(("most", "grid", "tokens"), [(6, (1, 6), 933), (9, (1, 9), 1263)])
    def test_the_most_expensive_picture(self, most: int, grid: tuple[int, int], tokens: int) -> None:
        mode = GUNDAM.with_changes({"max_crops": most})
        assert mode.largest_grid() == grid
        assert mode.max_vision_tokens() == tokens

    @given(st.integers(2, 9), st.sampled_from(ALLOWED_SIZES), st.sampled_from(ALLOWED_SIZES))
    def test_no_grid_costs_more_than_the_largest(self, most: int, base: int, size: int) -> None:
        mode = ResolutionMode(base_size=base, image_size=size, max_crops=most)
        costs = [mode.vision_tokens(CropGrid(*grid)) for grid in every_grid(2, most)]
        assert mode.max_vision_tokens() == max(costs)

    @pytest.mark.parametrize("size", ALLOWED_SIZES)
    def test_a_view_has_a_token_for_each_64_pixels_begun(self, size: int) -> None:
        assert view_side(size) == ceil(size / 64)

    @given(st.sampled_from(ALLOWED_SIZES), st.sampled_from(ALLOWED_SIZES), st.sampled_from(every_grid(1, 9)))
    def test_the_formula(self, base: int, size: int, grid: tuple[int, int]) -> None:
        wide, tall = grid
        qb, q = ceil(base / 64), ceil(size / 64)
        expected = qb * qb + qb + 1
        if grid != (1, 1):
            expected += (tall * q) * (wide * q) + tall * q
        assert view_tokens(base, size, CropGrid(wide, tall)) == expected


class TestGrid:
    @pytest.mark.parametrize(
        ("size", "grid"),
        [
            ((1024, 1024), (2, 2)),
            ((1240, 1754), (2, 3)),
            ((1000, 800), (2, 2)),
            ((2500, 2000), (3, 2)),
            ((800, 2000), (1, 3)),
        ],
    )
    def test_worked_examples(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        assert GUNDAM.crop_grid(*size) == grid

    @pytest.mark.parametrize("size", [(640, 640), (1, 640), (640, 1), (200, 100)])
    def test_a_picture_that_fits_one_tile_is_not_cut(self, size: tuple[int, int]) -> None:
        assert GUNDAM.crop_grid(*size) == NO_TILES
        assert GUNDAM.crop_grid(*size).tiles == 0

    @pytest.mark.parametrize(("size", "grid"), [((641, 640), (2, 2)), ((1, 641), (1, 6)), ((641, 1), (6, 1))])
    def test_one_side_above_the_tile_is_enough_to_cut(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        assert GUNDAM.crop_grid(*size) == grid

    @pytest.mark.parametrize(
        ("most", "size", "grid"),
        [
            # (2, 2) and (3, 3) both fit a square; half of 3 × 3 tiles is 1,843,200 pixels.
            (9, (1357, 1357), (2, 2)),
            (9, (1358, 1358), (3, 3)),
            # 5:2 lies halfway between (2, 1) and (3, 1); half of 3 × 1 tiles is 614,400 pixels.
            (6, (1235, 494), (2, 1)),
            (6, (1240, 496), (3, 1)),
            # (2, 1) and (4, 2) both fit 2:1; half of 4 × 2 tiles is 1,638,400 pixels.
            (8, (1808, 904), (2, 1)),
            (8, (1812, 906), (4, 2)),
        ],
    )
    def test_ties_go_to_the_larger_grid_when_the_picture_has_half_its_pixels(
        self, most: int, size: tuple[int, int], grid: tuple[int, int]
    ) -> None:
        assert GUNDAM.with_changes({"max_crops": most}).crop_grid(*size) == grid

    def test_tiles_are_counted(self) -> None:
        assert [CropGrid(*grid).tiles for grid in [(1, 1), (1, 2), (2, 3), (9, 1)]] == [0, 2, 6, 9]

    def test_no_grid_where_cropping_is_off(self) -> None:
        assert MODES["base"].crop_grid(4000, 4000) == NO_TILES

    @given(
        width=st.integers(1, 6000),
        height=st.integers(1, 6000),
        size=st.sampled_from(ALLOWED_SIZES),
        bounds=st.tuples(st.integers(1, MAX_TILES), st.integers(1, MAX_TILES)).map(sorted),
    )
    @example(width=2000, height=2000, size=640, bounds=[2, 9])
    def test_the_nearest_aspect_ratio_wins(self, width: int, height: int, size: int, bounds: list[int]) -> None:
        fewest, most = bounds
        mode = ResolutionMode(image_size=size, min_crops=fewest, max_crops=most)
        grid = mode.crop_grid(width, height)
        if width <= size and height <= size:
            assert grid == NO_TILES
            return
        assert fewest <= grid.wide * grid.tall <= most
        distance = {ij: abs(Fraction(width, height) - Fraction(*ij)) for ij in every_grid(fewest, most)}
        nearest = {ij for ij, d in distance.items() if d == min(distance.values())}
        assert tuple(grid) in nearest


class TestValidation:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("base_size", 0),
            ("base_size", 48),
            ("base_size", 1025),
            ("base_size", 1296),
            ("base_size", 1024.0),
            ("base_size", "1024"),
            ("base_size", True),
            ("base_size", None),
            ("image_size", -640),
            ("image_size", 63),
            ("image_size", 650),
            ("image_size", 2048),
            ("crop_mode", 1),
            ("crop_mode", "true"),
            ("min_crops", 0),
            ("min_crops", 10),
            ("min_crops", 2.0),
            ("min_crops", 7),
            ("max_crops", 0),
            ("max_crops", 10),
            ("max_crops", True),
        ],
    )
    def test_the_error_names_the_field(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"^{field} must "):
            ResolutionMode(**{field: value})
        with pytest.raises(ValueError, match=rf"^{field} must "):
            GUNDAM.with_changes({field: value})

    @pytest.mark.parametrize("size", [64, 80, 1264, 1280])
    def test_the_bounds_of_the_allowed_sizes(self, size: int) -> None:
        assert ResolutionMode(base_size=size, image_size=size).base_size == size

    def test_the_fewest_may_equal_the_most(self) -> None:
        assert ResolutionMode(min_crops=4, max_crops=4).crop_grid(3000, 700) == (4, 1)

    def test_changes_replace_only_what_they_name(self) -> None:
        changed = GUNDAM.with_changes({"max_crops": 9, "base_size": 1280})
        assert changed == ResolutionMode(base_size=1280, image_size=640, crop_mode=True, min_crops=2, max_crops=9)
        assert GUNDAM.max_crops == 6

    def test_an_unknown_field_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"^tile_size "):
            GUNDAM.with_changes({"tile_size": 640})

    def test_modes_are_the_published_ones(self) -> None:
        published = {
            "tiny": (512, 512, False),
            "small": (640, 640, False),
            "base": (1024, 1024, False),
            "large": (1280, 1280, False),
            "gundam": (1024, 640, True),
            "gundam-m": (1280, 1024, True),
        }
        assert {n: (m.base_size, m.image_size, m.crop_mode) for n, m in MODES.items()} == published
        assert {(m.min_crops, m.max_crops) for m in MODES.values()} == {(2, 6)}
        assert ResolutionMode() == GUNDAM

    def test_only_small_modes_without_cropping_change_the_aspect_ratio(self) -> None:
        assert {name for name, mode in MODES.items() if mode.squashes} == {"tiny", "small"}
        assert not ResolutionMode(image_size=512, crop_mode=True).squashes
        assert not ResolutionMode(image_size=656, crop_mode=False).squashes


class TestMostExpensiveMode:
    def test_with_a_long_context_it_is_the_most_expensive_mode_of_all(self) -> None:
        most_expensive = 20 * 21 + 1 + max((20 * j) * (20 * i + 1) for i, j in every_grid(2, 9))
        assert most_expensive_mode(8192).max_vision_tokens() == most_expensive == 4201

    @pytest.mark.parametrize("context", [100, 500, 903, 1263, 2048, 3014, 3350, 4096, 4200, 4201])
    def test_no_mode_that_fits_costs_more(self, context: int) -> None:
        def fitting_costs() -> list[int]:
            sides = range(1, 21)
            globals_ = [qb * (qb + 1) + 1 for qb in sides]
            tiles = [(q * j) * (q * i + 1) for q in sides for i, j in every_grid(2, 9)]
            # A mode costs what its most expensive grid costs, which is (1, n) for at most n tiles.
            most_expensive = [q * n * (q + 1) for q in sides for n in range(2, 10)]
            assert set(most_expensive) <= set(tiles)
            return [g + t for g in globals_ for t in [0, *most_expensive] if g + t <= context]

        mode = most_expensive_mode(context)
        assert mode.max_vision_tokens() == max(fitting_costs())

    def test_a_context_too_short_for_any_picture(self) -> None:
        with pytest.raises(ValueError, match="too short"):
            most_expensive_mode(2)
        assert most_expensive_mode(3).max_vision_tokens() == 3
