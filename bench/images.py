"""Preprocessing of images and of image files, compared with vLLM's own processor."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from PIL import Image

from bench import upstream
from bench.compare import Row, Series, compared, in_turn, rates, scaled
from deepseek_ocr.images import PreparedImage, prepare_image
from deepseek_ocr.modes import MODES
from nano.render import Sheet, render

InTree = Callable[[Image.Image], dict[str, torch.Tensor]]
"""vLLM's processor, applied to one image."""

GUNDAM = MODES["gundam"]
PAGE = (1700, 2200)
"""Width and height of a letter page at 200 dpi."""


def page(seed: int = 0) -> Image.Image:
    """Return a printed page of the size `PAGE`, in RGB."""
    sheet = Sheet(width=PAGE[0], height=PAGE[1], min_print=28, max_print=40, max_lines=60, clean=True, full=True)
    return render(sheet, random.Random(seed)).image.convert("RGB")


def encoded(image: Image.Image, file_format: str) -> bytes:
    """Return an image as a file in one of Pillow's formats."""
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def run(quick: bool) -> list[Row]:
    theirs = upstream.processor()
    image = page()

    def in_tree(image: Image.Image) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = theirs(prompt="<image>\nFree OCR.", images=[image])
        return tensors

    rows = [*_one_image(image, in_tree, quick), *_bytes(image, in_tree)]
    return [*rows, *_many_pages(in_tree, quick)]


def _one_image(image: Image.Image, in_tree: InTree, quick: bool) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    series = in_turn(lambda: prepare_image(image, GUNDAM), lambda: in_tree(image), rounds=2 if quick else 20)
    torch.set_num_threads(threads)
    return [
        compared(
            "image → tensors, 1700×2200, one thread",
            "ms",
            scaled(series, 1000),
            compared_with="vLLM's processor",
            at_most=0.25,
        )
    ]


def _bytes(image: Image.Image, in_tree: InTree) -> list[Row]:
    ours, theirs = prepare_image(image, GUNDAM), in_tree(image)
    in_model_type = sum(theirs[name].numel() * 2 for name in ("pixel_values", "images_crop"))  # vLLM casts to bf16
    return [
        compared(
            "bytes of such an image sent to the engine",
            "MB",
            (Series([_size(ours) / 1e6]), Series([in_model_type / 1e6])),
            compared_with="vLLM's processor, bf16",
            at_most=0.5,
            note=f"pixels differ by at most {_difference(ours, theirs):.0f} of 255; the crop grids are the same",
        )
    ]


def _size(prepared: PreparedImage) -> int:
    return int(prepared.global_view.numel() + prepared.tiles.numel())


def _difference(ours: PreparedImage, theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two values, out of 255.

    Raises:
        ValueError: the crop grids differ.
    """
    if list(ours.grid) != theirs["images_spatial_crop"][0].tolist():
        raise ValueError(f"the crop grids differ: {ours.grid} and {theirs['images_spatial_crop'].tolist()}")
    pairs = ((ours.global_view[None], theirs["pixel_values"]), (ours.tiles, theirs["images_crop"]))
    return max(
        float((mine.permute(0, 3, 1, 2).float() - (other + 1) * 127.5).abs().max().round()) for mine, other in pairs
    )


def _many_pages(in_tree: InTree, quick: bool) -> list[Row]:
    """Compare files in several threads, as in this server, with files one after another, as in vLLM's renderer."""
    files = [encoded(page(number), "PNG") for number in range(2 if quick else 12)]
    cores = os.cpu_count() or 1

    def open_rgb(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def ours(pool: ThreadPoolExecutor) -> list[PreparedImage]:
        return list(pool.map(lambda data: prepare_image(open_rgb(data), GUNDAM), files))

    rows = []
    threads = torch.get_num_threads()
    for workers in sorted({1, cores}):
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers) as pool:
            series = in_turn(
                partial(ours, pool),
                lambda: [in_tree(open_rgb(data)) for data in files],
                rounds=1 if quick else 5,
            )
        rows.append(
            compared(
                f"PNG files → tensors, {workers} of {cores} cores",
                "pages/s",
                rates(series, len(files)),
                compared_with="vLLM's processor, which has one thread",
                at_least=3 if workers == cores > 1 else None,
            )
        )
    torch.set_num_threads(threads)
    return rows
