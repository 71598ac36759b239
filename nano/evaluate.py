"""How well a checkpoint reads, on pages, words and fonts that it has not been trained on.

    python -m nano.evaluate nano/checkpoint                          # through the training code
    python -m nano.evaluate --base-url http://localhost:8000/v1      # through the running server

Character error is the edit distance over the length of the truth, summed over all pages; word error the
same over words; box overlap the mean intersection over union of the boxes of lines (or blocks, or words)
with the same text.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rapidfuzz.distance import Levenshtein
from safetensors.torch import load_file

from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES, ResolutionMode
from nano.model import NanoOcr
from nano.render import Page, Sheet, Task, render
from nano.samples import A4, PAGE
from nano.tokenizer import make

LOCATED = re.compile(r"<\|ref\|>(.*?)<\|/ref\|><\|det\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|/det\|>", re.DOTALL)
Read = Callable[[Page, str, str], str]
"""A page, a prompt and the name of a mode → the answer."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    sheet: Sheet
    task: Task = "free"
    mode: str = "gundam"


CLEAN = replace(PAGE, clean=True)
ROWS = (
    Row("clean pages, seen fonts", CLEAN),
    Row("clean pages, unseen fonts", replace(CLEAN, split="eval")),
    Row("lines with boxes", CLEAN, "lines"),
    Row("large-print A4, tiles", replace(A4, clean=True)),
    Row("document to markdown", replace(CLEAN, structured=True), "markdown"),
    Row("locate a word", CLEAN, "locate"),
    Row("worn pages, seen fonts", PAGE),
    Row("tiny mode, print of 46 px", replace(CLEAN, min_print=46, max_print=70, max_lines=6), mode="tiny"),
    Row("small mode, print of 38 px", replace(CLEAN, min_print=38, max_print=60, max_lines=8), mode="small"),
    Row("base mode", CLEAN, mode="base"),
    Row("large mode", CLEAN, mode="large"),
)


def page_of(row: Row, number: int) -> tuple[Page, str, str]:
    """A page that training never sees, with a prompt and the right answer.

    Words are always of the evaluation's half; fonts are of the row's.
    """
    rng = random.Random(f"evaluation/{row.name}/{number}")
    page = render(replace(row.sheet, words="eval"), rng)
    prompt, answer = page.answer(row.task, rng)
    return page, prompt, answer


def character_error(said: str, truth: str) -> float:
    return Levenshtein.distance(said, truth) / max(1, len(truth))


def plain(text: str) -> str:
    """An answer without its boxes: what a reader would call its text."""
    return re.sub(r"<\|det\|>.*?<\|/det\|>|<\|/?ref\|>", "", text, flags=re.DOTALL)


def boxes(text: str) -> dict[str, tuple[int, ...]]:
    return {found[1]: tuple(map(int, found.groups()[1:])) for found in LOCATED.finditer(text)}


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 1.0


def measure(row: Row, read: Read, pages: int) -> dict[str, float]:
    wrong = length = wrong_words = words = 0
    overlaps: list[float] = []
    for number in range(pages):
        page, prompt, truth = page_of(row, number)
        said = read(page, prompt, row.mode)
        wrong += Levenshtein.distance(plain(said), plain(truth))
        length += len(plain(truth))
        wrong_words += Levenshtein.distance(plain(said).split(), plain(truth).split())
        words += len(plain(truth).split())
        found = boxes(said)
        overlaps += [overlap(found[text], box) if text in found else 0.0 for text, box in boxes(truth).items()]
    result = {"character error": wrong / max(1, length), "word error": wrong_words / max(1, words)}
    if overlaps:
        result["box overlap"] = sum(overlaps) / len(overlaps)
        result["boxes over 0.5"] = sum(each >= 0.5 for each in overlaps) / len(overlaps)
    return result


@torch.no_grad()
def answer(
    model: NanoOcr, device: torch.device, page: Page, prompt: str, mode: ResolutionMode, most: int = 4000
) -> str:
    tokenizer = make()
    prepared = prepare_image(page.image, mode)
    views = Views(prepared.global_view.to(device), prepared.tiles.to(device), prepared.grid)
    ids = torch.tensor(tokenizer.encode("\n" + prompt, add_special_tokens=False).ids, device=device)
    (said,) = model.read(model.embed([views]), ids, most)
    return str(tokenizer.decode(said, skip_special_tokens=False))


def through_the_code(folder: Path) -> Read:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = NanoOcr(json.loads((folder / "config.json").read_text()))
    weights = {name: tensor.float() for name, tensor in load_file(str(folder / "model.safetensors")).items()}
    encoder = {f"model.{name}" for name in model.encoder.state_dict()}
    model.encoder.load_state_dict({name[6:]: weights[name] for name in encoder})
    model.decoder.load_state_dict(
        {
            name.removeprefix("model."): value
            for name, value in weights.items()
            if name.removeprefix("model.") in model.decoder.state_dict()
        }
    )
    model.to(device).eval()
    return lambda page, prompt, mode: answer(model, device, page, prompt, MODES[mode])


def through_the_server(base_url: str) -> Read:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="EMPTY")

    def read(page: Page, prompt: str, mode: str) -> str:
        buffer = io.BytesIO()
        page.image.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        response = client.chat.completions.create(
            model=f"deepseek-ocr:{mode}",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": prompt},
                    ],
                }
            ],
        )
        return response.choices[0].message.content or ""

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--base-url", help="ask a running server instead of loading the checkpoint")
    parser.add_argument("--pages", type=int, default=50, help="pages for each row (default: %(default)s)")
    options = parser.parse_args()
    read = through_the_server(options.base_url) if options.base_url else through_the_code(options.checkpoint)
    for row in ROWS:
        figures = measure(row, read, options.pages)
        print(f"{row.name}: " + ", ".join(f"{name} {value:.1%}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
