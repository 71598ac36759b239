"""How well a checkpoint reads, on pages, words and fonts that it has not been trained on.

    python -m nano.evaluate nano/checkpoint                          # through the training code
    python -m nano.evaluate --base-url http://localhost:8000/v1      # through the running server

Character error is the edit distance over the length of the truth, summed over all pages; word error the
same over words. Each box of the truth (of a line, a block or a word) is held against the box of the answer
that covers it best, each taken once: box overlap is the mean intersection over union, and labels right the
share of blocks whose box has the right label. Ended is the share of answers that came to an end by themselves.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nano.packages import require_packages

if __name__ == "__main__":  # before the imports below, which take seconds
    require_packages("python -m nano.evaluate", "torch", "numpy", "pillow", "rapidfuzz", "safetensors", "tokenizers")

import torch
from rapidfuzz.distance import Levenshtein

from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES, CropGrid, ResolutionMode
from nano.fonts import ADVICE, missing
from nano.model import NanoOcr, load
from nano.muon import multiplies_bf16
from nano.render import Page, Sheet, Task, render
from nano.samples import A4, PAGE
from nano.tokenizer import make

LOCATED = re.compile(r"<\|ref\|>(.*?)<\|/ref\|><\|det\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|/det\|>", re.DOTALL)
Said = tuple[str, bool]
"""An answer, and whether it came to an end by itself."""
Asked = tuple[Page, str]
"""A page, and the prompt with which it is shown."""
Read = Callable[[Sequence[Asked], str], list[Said]]
"""What is asked, and the name of a mode → the answers."""
Box = tuple[int, ...]
"""Left, top, right, bottom, from 0 to 999."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    sheet: Sheet
    task: Task = "free"
    mode: str = "gundam"


AT_ONCE = 10
"""Pages that the model reads at a time."""
REQUESTS = 32
"""Pages that a server is asked for at a time."""
CLEAN = replace(PAGE, clean=True, noise=False, alike=0, kerned=0)
"""Print without blemish; words, numbers, prices, dates, codes."""
ROWS = (
    Row("clean pages, seen fonts", CLEAN),
    Row("clean pages, unseen fonts", replace(CLEAN, split="eval")),
    Row("lines with boxes", CLEAN, "lines"),
    Row("large-print A4, tiles", replace(A4, min_lines=20, clean=True, noise=False, kerned=0)),
    Row("document to markdown", replace(CLEAN, structured=True), "markdown"),
    Row("locate a word", CLEAN, "locate"),
    Row("worn pages, seen fonts", replace(CLEAN, clean=False)),
    Row("random signs among the words", replace(CLEAN, noise=True)),
    Row("lines that begin alike", replace(CLEAN, alike=1)),
    Row("clean, letters kerned", replace(CLEAN, kerned=1)),
    Row("clean, print of 24 to 27 px", replace(CLEAN, max_print=27)),
    Row("clean, print of 36 to 40 px", replace(CLEAN, min_print=36)),
    Row("clean, one or two lines", replace(CLEAN, max_lines=2)),
    Row("clean, full pages", replace(CLEAN, full=True)),
    Row("blank pages", replace(CLEAN, blank=1)),
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


def boxes(text: str) -> list[tuple[str, Box]]:
    """What an answer locates, in order."""
    return [(found[1], tuple(map(int, found.groups()[1:]))) for found in LOCATED.finditer(text)]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 1.0


def matched(truth: str, said: str) -> list[tuple[float, bool]]:
    """For each box of the truth: how much of it was found, and whether under the same name."""
    left = boxes(said)
    result = []
    for name, box in boxes(truth):
        best = max(left, key=lambda found: overlap(found[1], box), default=None)
        if best is None:
            result.append((0.0, False))
            continue
        left.remove(best)
        covered = overlap(best[1], box)
        result.append((covered, covered > 0 and best[0] == name))
    return result


def measure(row: Row, read: Read, pages: int) -> dict[str, float]:
    """The figures of a row."""
    asked = [page_of(row, number) for number in range(pages)]
    answers = read([(page, prompt) for page, prompt, _ in asked], row.mode)
    wrong = length = wrong_words = words = ended = 0
    found: list[tuple[float, bool]] = []
    for (_, _, truth), (said, whole) in zip(asked, answers, strict=True):
        ended += whole
        wrong += Levenshtein.distance(plain(said), plain(truth))
        length += len(plain(truth))
        wrong_words += Levenshtein.distance(plain(said).split(), plain(truth).split())
        words += len(plain(truth).split())
        found += matched(truth, said)
    result = {"character error": wrong / max(1, length), "word error": wrong_words / max(1, words)}
    if found:
        result["box overlap"] = sum(covered for covered, _ in found) / len(found)
        result["boxes over 0.5"] = sum(covered >= 0.5 for covered, _ in found) / len(found)
    if row.task == "markdown":
        result["labels right"] = sum(right for _, right in found) / len(found)
    return result | {"ended": ended / pages}


@torch.no_grad()
def answer(model: NanoOcr, device: torch.device, asked: Sequence[Asked], mode: ResolutionMode, most: int) -> list[Said]:
    """What the model says, of `most` tokens each; it reads those together that come to as many vision tokens."""
    tokenizer = make()
    alike: dict[tuple[str, CropGrid], list[tuple[int, Views]]] = defaultdict(list)
    for number, (page, prompt) in enumerate(asked):
        prepared = prepare_image(page.image, mode)
        views = Views(prepared.global_view.to(device), prepared.tiles.to(device), prepared.grid)
        alike[prompt, prepared.grid].append((number, views))
    answers: dict[int, Said] = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device)):
        for (prompt, _), pages in alike.items():
            ids = torch.tensor(tokenizer.encode("\n" + prompt, add_special_tokens=False).ids, device=device)
            for start in range(0, len(pages), AT_ONCE):
                numbers, views_of = zip(*pages[start : start + AT_ONCE], strict=True)
                for number, said in zip(numbers, model.read(model.embed(views_of), ids, most), strict=True):
                    text = str(tokenizer.decode(said, skip_special_tokens=False))
                    answers[number] = text, len(said) < most
    return [answers[number] for number in range(len(asked))]


def through_the_code(folder: Path) -> Read:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load(folder).to(device).eval()
    return lambda asked, mode: answer(model, device, asked, MODES[mode], most=4000)


def through_the_server(base_url: str) -> Read:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="EMPTY")

    def read_one(page: Page, prompt: str, mode: str) -> Said:
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
        (choice,) = response.choices
        return choice.message.content or "", choice.finish_reason == "stop"

    def read(asked: Sequence[Asked], mode: str) -> list[Said]:
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(lambda one: read_one(one[0], one[1], mode), asked))

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--base-url", help="ask a running server instead of loading the checkpoint")
    parser.add_argument("--pages", type=int, default=50, help="pages for each row (default: %(default)s)")
    options = parser.parse_args()
    if options.base_url:
        require_packages("python -m nano.evaluate", "openai")
    if absent := missing():
        parser.error(f"no font of {', '.join(absent)} on this machine, so the figures would be others: {ADVICE}")
    read = through_the_server(options.base_url) if options.base_url else through_the_code(options.checkpoint)
    for row in ROWS:
        figures = measure(row, read, options.pages)
        print(f"{row.name}: " + ", ".join(f"{name} {value:.1%}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
