"""Measure how well a checkpoint reads pages, words and fonts that do not occur in its training set.

    python -m nano.evaluate nano/checkpoint                          # through the training code
    python -m nano.evaluate --base-url http://localhost:8000/v1      # through the running server

The metrics are:

- Character error: the edit distance between answers and ground truth, divided by the length of the ground truth,
  both summed over all pages. Word error is the same for words.
- Box overlap: each box of the ground truth (a line, a block or a word) is matched with the box of the answer that
  overlaps it most; no box is matched twice. The metric is the mean intersection over union (IoU).
- Labels right: the share of blocks whose matched box has the right label.
- Ended: the share of answers that the model ended itself, before the token limit.
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

GROUNDED = re.compile(r"<\|ref\|>(.*?)<\|/ref\|><\|det\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|/det\|>", re.DOTALL)
Answer = tuple[str, bool]
"""The text of an answer, and whether the model ended it itself."""
Question = tuple[Page, str]
"""A page and a prompt."""
Reader = Callable[[Sequence[Question], str], list[Answer]]
"""A function that takes questions and the name of a resolution mode, and returns the answers."""
Box = tuple[int, ...]
"""Left, top, right and bottom edge, each from 0 to 999."""


@dataclass(frozen=True)
class Row:
    """One row of the results: the kind of pages, the prompt and the mode. Its name is part of the pages' seed."""

    name: str
    sheet: Sheet
    task: Task = "free"
    mode: str = "gundam"


BATCH_SIZE = 10
"""Number of pages that the model reads in one batch."""
CONCURRENT_REQUESTS = 32
"""Number of concurrent requests to a server."""
CLEAN = replace(PAGE, clean=True, noise=False, alike=0, kerned=0)
"""Undamaged print of words, numbers, prices, dates and codes, without random characters."""
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


def evaluation_page(row: Row, number: int) -> tuple[Page, str, str]:
    """Return a page that does not occur in training, a prompt, and the correct answer.

    The words always belong to the evaluation split; the fonts belong to the split of the row.

    Args:
        row: the kind of page.
        number: index of the page in the row. Row name and index determine the page.
    """
    rng = random.Random(f"evaluation/{row.name}/{number}")
    page = render(replace(row.sheet, words="eval"), rng)
    prompt, answer = page.answer(row.task, rng)
    return page, prompt, answer


def character_error(answer: str, truth: str) -> float:
    """Return the edit distance between an answer and the ground truth, divided by the length of the ground truth."""
    return Levenshtein.distance(answer, truth) / max(1, len(truth))


def without_boxes(text: str) -> str:
    """Return the text of an answer without its boxes and special tokens."""
    return re.sub(r"<\|det\|>.*?<\|/det\|>|<\|/?ref\|>", "", text, flags=re.DOTALL)


def grounded_boxes(text: str) -> list[tuple[str, Box]]:
    """Return the label or text and the box of everything that an answer locates, in order."""
    return [(found[1], tuple(map(int, found.groups()[1:]))) for found in GROUNDED.finditer(text)]


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, from 0 to 1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union else 1.0


def match_boxes(truth: str, answer: str) -> list[tuple[float, bool]]:
    """Match the boxes of the ground truth with those of an answer, which are used at most once each.

    Returns:
        For each box of the ground truth, the IoU with its match, and whether both have the same label or text.
    """
    candidates = grounded_boxes(answer)
    result = []
    for name, box in grounded_boxes(truth):
        best = max(candidates, key=lambda found: iou(found[1], box), default=None)
        if best is None:
            result.append((0.0, False))
            continue
        candidates.remove(best)
        overlap = iou(best[1], box)
        result.append((overlap, overlap > 0 and best[0] == name))
    return result


def measure(row: Row, read: Reader, pages: int) -> dict[str, float]:
    """Return the metrics of a row, by name.

    Args:
        row: the kind of pages, the prompt and the mode.
        read: reads the pages.
        pages: number of pages.
    """
    questions = [evaluation_page(row, number) for number in range(pages)]
    answers = read([(page, prompt) for page, prompt, _ in questions], row.mode)
    errors = characters = word_errors = words = ended = 0
    matches: list[tuple[float, bool]] = []
    for (_, _, truth), (text, has_ended) in zip(questions, answers, strict=True):
        ended += has_ended
        said, wanted = without_boxes(text), without_boxes(truth)
        errors += Levenshtein.distance(said, wanted)
        characters += len(wanted)
        word_errors += Levenshtein.distance(said.split(), wanted.split())
        words += len(wanted.split())
        matches += match_boxes(truth, text)
    result = {"character error": errors / max(1, characters), "word error": word_errors / max(1, words)}
    if matches:
        result["box overlap"] = sum(overlap for overlap, _ in matches) / len(matches)
        result["boxes over 0.5"] = sum(overlap >= 0.5 for overlap, _ in matches) / len(matches)
    if row.task == "markdown":
        result["labels right"] = sum(right for _, right in matches) / len(matches)
    return result | {"ended": ended / pages}


@torch.no_grad()
def answer(
    model: NanoOcr, device: torch.device, questions: Sequence[Question], mode: ResolutionMode, most: int
) -> list[Answer]:
    """Return the model's answers. Pages with the same prompt and the same crop grid are read in one batch.

    Args:
        model: the model, on `device`.
        device: where to compute.
        questions: pages and prompts.
        mode: the resolution mode for all of them.
        most: maximum number of tokens in each answer.
    """
    tokenizer = make()
    groups: dict[tuple[str, CropGrid], list[tuple[int, Views]]] = defaultdict(list)
    for number, (page, prompt) in enumerate(questions):
        prepared = prepare_image(page.image, mode)
        views = Views(prepared.global_view.to(device), prepared.tiles.to(device), prepared.grid)
        groups[prompt, prepared.grid].append((number, views))
    answers: dict[int, Answer] = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device)):
        for (prompt, _), pages in groups.items():
            ids = torch.tensor(tokenizer.encode("\n" + prompt, add_special_tokens=False).ids, device=device)
            for start in range(0, len(pages), BATCH_SIZE):
                numbers, batch = zip(*pages[start : start + BATCH_SIZE], strict=True)
                for number, output in zip(numbers, model.read(model.embed(batch), ids, most), strict=True):
                    text = str(tokenizer.decode(output, skip_special_tokens=False))
                    answers[number] = text, len(output) < most
    return [answers[number] for number in range(len(questions))]


def local_reader(folder: Path) -> Reader:
    """Return a reader that loads the checkpoint in `folder` and runs the training code."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load(folder).to(device).eval()
    return lambda questions, mode: answer(model, device, questions, MODES[mode], most=4000)


def server_reader(base_url: str) -> Reader:
    """Return a reader that sends the pages to a running server.

    Args:
        base_url: URL of the API, including `/v1`.
    """
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="EMPTY")

    def read_one(page: Page, prompt: str, mode: str) -> Answer:
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

    def read(questions: Sequence[Question], mode: str) -> list[Answer]:
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            return list(pool.map(lambda question: read_one(question[0], question[1], mode), questions))

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        default=Path(__file__).parent / "checkpoint",
        help="folder of the checkpoint (default: the embedded one)",
    )
    parser.add_argument("--base-url", help="send the pages to a running server instead of loading a checkpoint")
    parser.add_argument("--pages", type=int, default=50, help="number of pages in each row (default: %(default)s)")
    options = parser.parse_args()
    if options.base_url:
        require_packages("python -m nano.evaluate", "openai")
    if absent := missing():
        parser.error(
            f"these fonts are not installed: {', '.join(absent)}. Without them the figures cannot be compared with "
            f"others; {ADVICE}."
        )
    read = server_reader(options.base_url) if options.base_url else local_reader(options.checkpoint)
    for row in ROWS:
        metrics = measure(row, read, options.pages)
        print(f"{row.name}: " + ", ".join(f"{name} {value:.1%}" for name, value in metrics.items()), flush=True)


if __name__ == "__main__":
    main()
