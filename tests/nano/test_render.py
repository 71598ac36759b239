"""The ground truth of synthetic pages agrees with what is drawn on them."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import features

from nano.render import Page, Sheet, render
from nano.words import belongs, word

CLEAN = Sheet(clean=True)
DOCUMENT = replace(CLEAN, structured=True)


def page(sheet: Sheet, seed: int) -> Page:
    return render(sheet, random.Random(seed))


@pytest.mark.parametrize("sheet", [Sheet(), DOCUMENT, Sheet(width=1240, height=1754, max_lines=40)])
def test_seed_determines_the_page(sheet: Sheet) -> None:
    first, second, other = page(sheet, 1), page(sheet, 1), page(sheet, 2)
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert first.answer("free", random.Random(0)) == second.answer("free", random.Random(0))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


@pytest.mark.parametrize("seed", range(20))
def test_boxes_contain_the_ink_and_no_empty_areas(seed: int) -> None:
    printed = page(CLEAN, seed)
    pixels = np.asarray(printed.image)
    ink = pixels < (int(pixels.max()) + int(pixels.min())) // 2
    boxed = np.zeros_like(ink)
    for glyph in printed.glyphs():
        left, top, right, bottom = (round(edge) for edge in glyph.box)
        assert ink[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1].any(), glyph
        boxed[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
    assert (ink & ~boxed).sum() <= 0.01 * ink.sum()


@pytest.mark.parametrize("seed", range(30, 50))
def test_boxes_are_rotated_with_the_page(seed: int) -> None:
    printed = page(Sheet(), seed)
    width, height = printed.image.size
    pixels = np.asarray(printed.image).astype(int)
    paper = int(np.median(pixels))
    for line in printed.lines():
        left, top, right, bottom = (round(edge) for edge in line.box)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        inside = np.abs(pixels[top:bottom, left:right] - paper)
        assert np.percentile(inside, 95) > 40, line.text


@pytest.mark.parametrize("seed", range(5))
def test_middles_of_a_line_have_one_height_within_its_lowercase_letters(seed: int) -> None:
    for line in page(CLEAN, seed).lines():
        assert len({glyph.middle[1] for glyph in line.glyphs}) == 1
        for glyph in line.glyphs:
            left, top, right, bottom = glyph.box
            assert left <= glyph.middle[0] <= right
            assert glyph.char not in "acemnorsuvwxz" or top < glyph.middle[1] < bottom


@pytest.mark.skipif(not features.check("raqm"), reason="kerning requires libraqm and libfribidi")
def test_kerned_pages_differ_from_those_without_kerning() -> None:
    sheet = replace(CLEAN, full=True, min_print=36)
    # A very small share instead of 0, with which no random number would be drawn, so that the words would differ.
    unkerned, kerned = (
        [np.asarray(page(replace(sheet, kerned=share), seed).image) for seed in range(10)] for share in (0.001, 1.0)
    )
    assert sum(np.array_equal(*each) for each in zip(unkerned, kerned, strict=True)) < 5


@pytest.mark.parametrize("seed", range(5))
def test_glyphs_know_whether_a_space_precedes_them(seed: int) -> None:
    for line in page(CLEAN, seed).lines():
        assert "".join(" " * glyph.spaced + glyph.char for glyph in line.glyphs) == line.text


@pytest.mark.parametrize("seed", range(5))
def test_pages_have_as_many_lines_as_the_sheet_specifies(seed: int) -> None:
    few = replace(CLEAN, width=320, max_print=24, min_lines=5, max_lines=6)  # too narrow for two columns
    assert len(page(few, seed).lines()) in (5, 6)


def test_pages_with_narrow_fonts_have_more_letters() -> None:
    usual, narrow = (
        sum(len(page(replace(CLEAN, full=True, max_print=24, narrow=each), seed).glyphs()) for seed in range(10))
        for each in (0, 1)
    )
    assert narrow > usual


def test_lines_that_begin_alike_share_a_word_or_a_character() -> None:
    words = characters = 0
    for seed in range(20):
        lines = [line.text for line in page(replace(CLEAN, alike=1, min_print=24, max_print=24), seed).lines()]
        for number, line in enumerate(lines):
            above = lines[:number]
            shares_word = line.split(" ")[0] in {each.split(" ")[0] for each in above}
            words += shares_word
            characters += not shares_word and line[0] in {each[0] for each in above}
    assert words > 15
    assert characters > 15


def test_answers_have_the_format_of_the_model() -> None:
    rng = random.Random(3)
    printed = page(CLEAN, 3)
    prompt, text = printed.answer("free", rng)
    assert prompt == "Free OCR."
    assert text.splitlines() == [line.text for line in printed.lines()]
    prompt, located = printed.answer("lines", rng)
    assert prompt == "<|grounding|>OCR this image."
    found = re.findall(r"<\|ref\|>(.*)<\|/ref\|><\|det\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|/det\|>", located)
    assert [text for text, *_ in found] == text.splitlines()
    assert all(0 <= int(edge) <= 999 for _, *box in found for edge in box)


def test_blocks_of_documents_are_in_reading_order() -> None:
    seen = set()
    for seed in range(60):
        printed = page(DOCUMENT, seed)
        _, markdown = printed.answer("markdown", random.Random(0))
        labels = re.findall(r"<\|ref\|>(.*?)<\|/ref\|>", markdown)
        assert labels == [block.label for block in printed.blocks]
        seen |= set(labels)
        tops = [block.box[1] for block in printed.blocks]
        assert tops == sorted(tops)
        assert markdown.count("<table>") == markdown.count("</table>") == labels.count("table")
    assert seen == {"title", "text", "list", "table", "image"}


def test_markdown_keeps_printed_line_breaks_and_without_grounding_has_neither_labels_nor_boxes() -> None:
    letter = replace(DOCUMENT, kinds=("text",), titled=1.0, ragged=1.0)
    for seed in range(20):
        printed = page(letter, seed)
        prompt, plain = printed.answer("document", random.Random(0))
        assert prompt == "Convert the document to markdown."
        blocks = [[line.text for line in block.lines] for block in printed.blocks]
        blocks[0][0] = f"# {blocks[0][0]}"
        assert plain == "\n\n".join("\n".join(lines) for lines in blocks)
        _, grounded = printed.answer("markdown", random.Random(0))
        assert re.sub(r"<\|ref\|>.*<\|/det\|>\n", "", grounded) == plain
    assert page(CLEAN, 3).answer("ocr", random.Random(0)) == (
        "OCR this image.",
        page(CLEAN, 3).answer("free", random.Random(0))[1],
    )


def test_word_to_locate_occurs_only_once_on_the_page() -> None:
    for seed in range(20):
        printed = page(CLEAN, seed)
        prompt, _ = printed.answer("locate", random.Random(seed))
        if target := re.fullmatch(r"Locate <\|ref\|>(.*)<\|/ref\|> in the image\.", prompt):
            words = [each for line in printed.lines() for each in line.text.split(" ")]
            assert words.count(target[1]) == 1


def test_training_and_evaluation_share_no_words() -> None:
    rng = random.Random(0)
    letters = re.compile(r"[A-Za-z]{5,}")
    for split in ("train", "eval"):
        for _ in range(2000):
            if letters.fullmatch(text := word(rng, split)) and text.lower() not in COMMON:
                assert belongs(text, split), text


def test_tight_pages_have_more_lines() -> None:
    def lines(tight: bool) -> int:
        sheets = (Sheet(max_print=24, full=True, tight=tight) for _ in range(5))
        return sum(len(render(sheet, random.Random(seed)).lines()) for seed, sheet in enumerate(sheets))

    assert lines(True) > lines(False)


COMMON = {"which", "total", "number", "amount", "price", "order", "address", "street", "report", "table", "figure"} | {
    "section",
    "notes",
}
