"""Synthetic pages with their truth: what stands on them, where, and what the model should answer.

Everything follows from a seed: the same seed gives the same page wherever the same fonts are installed.
Lengths are pixels of the page, boxes are (left, top, right, bottom).
"""

from __future__ import annotations

import io
import math
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, features

from nano.fonts import font, fonts
from nano.words import Split, made_up, number, word

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Label = Literal["title", "text", "list", "table", "image"]
Task = Literal["free", "lines", "markdown", "locate", "ocr", "document"]

PROMPTS: dict[Task, str] = {
    "free": "Free OCR.",
    "lines": "<|grounding|>OCR this image.",
    "markdown": "<|grounding|>Convert the document to markdown.",
    "locate": "Locate <|ref|>{word}<|/ref|> in the image.",
    "ocr": "OCR this image.",
    "document": "Convert the document to markdown.",
}


NO_LIGATURES = ["-liga", "-clig", "-calt", "-dlig"]
"""So that each letter has a place of its own."""


@dataclass
class Glyph:
    char: str
    box: Box
    """Its ink."""
    middle: Point
    """Of its ink from side to side, and of its line's low letters from top to bottom: commas, capitals and letters with
    tails stand as high as their line does."""
    line: int = 0
    """The number of its line, in reading order."""
    spaced: bool = False
    """Whether a space stands before it."""


@dataclass
class Line:
    text: str
    glyphs: list[Glyph]

    @property
    def box(self) -> Box:
        return around(glyph.box for glyph in self.glyphs)


@dataclass
class Piece:
    """A part of an answer."""

    text: str
    glyphs: list[Glyph] = field(default_factory=list)
    """What of it is printed on the page: its signs without the spaces, or nothing."""
    located: Box | None = None
    """The box of which it gives the corners."""


@dataclass
class Block:
    label: Label
    lines: list[Line] = field(default_factory=list)
    rows: list[list[Line]] = field(default_factory=list)
    """The cells of a table."""
    frame: Box | None = None
    """The place of a figure."""

    @property
    def box(self) -> Box:
        if self.frame is not None:
            return self.frame
        return around(line.box for line in self.all_lines())

    def all_lines(self) -> list[Line]:
        return self.lines + [cell for row in self.rows for cell in row]


@dataclass
class Page:
    image: Image.Image
    blocks: list[Block]

    def lines(self) -> list[Line]:
        """All lines, in reading order."""
        return [line for block in self.blocks for line in block.all_lines()]

    def glyphs(self) -> list[Glyph]:
        return [glyph for line in self.lines() for glyph in line.glyphs]

    def answer(self, task: Task, rng: random.Random) -> tuple[str, str]:
        """A prompt, and what the model should answer to it."""
        prompt, pieces = self.pieces(task, rng)
        return prompt, "".join(piece.text for piece in pieces)

    def pieces(self, task: Task, rng: random.Random) -> tuple[str, list[Piece]]:
        """The same, with what is printed kept apart from what is not."""
        if task in ("free", "ocr"):
            return PROMPTS[task], joined([[printed(line)] for line in self.lines()], "\n")
        if task == "lines":
            return PROMPTS[task], joined([self._located(printed(line), line.box) for line in self.lines()], "\n")
        if task == "markdown":
            located = [[*self._located(Piece(block.label), block.box), *self._content(block)] for block in self.blocks]
            return PROMPTS[task], joined(located, "\n\n")
        if task == "document":
            # Without grounding, an answer has no labels and no boxes; a figure leaves nothing to say.
            contents = [self._content(block)[1:] for block in self.blocks if block.label != "image"]
            return PROMPTS[task], joined(contents, "\n\n")
        wanted = self._lonely_words()
        if not wanted:
            return self.pieces("free", rng)
        lonely = rng.choice(wanted)
        return PROMPTS[task].format(word=lonely.text), self._located(printed(lonely), lonely.box)

    def _located(self, piece: Piece, box: Box) -> list[Piece]:
        """DeepSeek-OCR's grounding: coordinates from 0 to 999 of the page's sides."""
        width, height = self.image.size
        left, top = int(box[0] / width * 999), int(box[1] / height * 999)
        right, bottom = int(box[2] / width * 999), int(box[3] / height * 999)
        corners = Piece(f"<|/ref|><|det|>[[{left}, {top}, {right}, {bottom}]]<|/det|>", located=box)
        return [Piece("<|ref|>"), piece, corners]

    def _content(self, block: Block) -> list[Piece]:
        """A block's text as markdown, after the newline that separates it from its box.

        Printed line breaks stay: markdown shows them as spaces, and to follow the lines is what the model can do.
        """
        if block.label == "image":
            return []
        if block.label == "table":
            pieces = [Piece("\n"), Piece("<table>")]
            for row in block.rows:
                pieces.append(Piece("<tr>"))
                for cell in row:
                    pieces += [Piece("<td>"), printed(cell), Piece("</td>")]
                pieces.append(Piece("</tr>"))
            return [*pieces, Piece("</table>")]
        lines = joined([[printed(line)] for line in block.lines], "\n")
        return [Piece("\n"), *([Piece("# ")] if block.label == "title" else []), *lines]

    def _lonely_words(self) -> list[Line]:
        """Words of three signs or more that stand on the page once."""
        seen: dict[str, list[Line]] = {}
        for line in self.lines():
            start = 0
            for text in line.text.split(" "):
                seen.setdefault(text, []).append(Line(text, line.glyphs[start : start + len(text)]))
                start += len(text)  # glyphs hold no spaces
        return [words[0] for text, words in seen.items() if len(words) == 1 and len(text) > 2]


def printed(line: Line) -> Piece:
    return Piece(line.text, line.glyphs)


def joined(parts: list[list[Piece]], separator: str) -> list[Piece]:
    """The parts one after another, with `separator` between them."""
    pieces: list[Piece] = []
    for part in parts:
        pieces += [Piece(separator), *part] if pieces else part
    return pieces


def around(boxes: Iterator[Box] | list[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


@dataclass(frozen=True)
class Sheet:
    """What a page is made to be."""

    width: int = 640
    height: int = 640
    min_print: int = 24
    """Font size, pixels."""
    max_print: int = 40
    min_lines: int = 1
    max_lines: int = 12
    split: Split = "train"
    """Which fonts."""
    words: Split = "train"
    """Which words."""
    noise: bool = True
    """Random signs among the words."""
    clean: bool = False
    """Without noise, blur, tilt and the like."""
    structured: bool = False
    """With blocks: title, paragraphs, list, table, figure. Else lines alone."""
    kinds: tuple[Label, ...] = ("text", "text", "list", "table", "image")
    """The blocks of a structured page after its title, each as likely as often as it is named."""
    titled: float = 0.8
    """Share of the structured pages with a title."""
    ragged: float = 0.0
    """Share of the structured pages whose paragraphs have one to six lines, the last of any length."""
    full: bool = False
    """Lines from edge to edge and from top to bottom, words cut where they end: the most letters for the work of
    training on a page."""
    narrow: int = 0
    """How many other fonts this one needs less room than."""
    tight: bool = False
    """With little between the lines."""
    kerned: float = 0.6
    """Share of the pages on which letters move together as their font says, if this machine can: commas stand under
    an r's arm then, where a model that had not seen it lost them."""
    alike: float = 0.0
    """Share of the pages on which lines begin as others before them do."""
    blank: float = 0.0
    """Share of the pages on which nothing stands."""
    halved: float = 0.3
    """Share of the pages wide enough for two columns that have them."""


def render(sheet: Sheet, rng: random.Random) -> Page:
    """A page of `sheet`, decided by `rng` alone."""
    press = Press(sheet, rng)
    blocks = press.blocks() if sheet.structured else press.plain()
    page = Page(press.canvas, [block for block in blocks if block.frame is not None or block.all_lines()])
    for place, line in enumerate(page.lines()):
        for glyph in line.glyphs:
            glyph.line = place
    return page if sheet.clean else worn(page, rng)


class Press:
    """Sets type on one page."""

    def __init__(self, sheet: Sheet, rng: random.Random) -> None:
        self.sheet = sheet
        self.rng = rng
        self.paper = 255 if sheet.clean and rng.random() < 0.5 else rng.randint(225, 255)
        self.ink = 0 if sheet.clean and rng.random() < 0.5 else rng.randint(0, 60)
        self.canvas = Image.new("L", (sheet.width, sheet.height), self.paper)
        self.draw = ImageDraw.Draw(self.canvas)
        self.path = min((rng.choice(fonts(sheet.split)) for _ in range(1 + sheet.narrow)), key=set_width)
        self.kerned = sheet.kerned > 0 and features.check("raqm") and rng.random() < sheet.kerned
        self.size = rng.randint(sheet.min_print, sheet.max_print)
        self.gap = rng.uniform(1.0, 1.15 if sheet.tight else 1.5)
        margin = 40 * sheet.width / 640
        self.left = rng.uniform(6, margin)
        self.top = rng.uniform(6, margin)
        self.right = sheet.width - rng.uniform(6, margin)
        self.y = self.top
        self.number_of_lines = 0
        self.ragged = False
        self.alike = bool(sheet.alike) and rng.random() < sheet.alike

    def plain(self) -> list[Block]:
        """Lines of words, ragged as they come, in one column or (on wide pages of small print) two."""
        wanted = self.rng.randint(self.sheet.min_lines, self.sheet.max_lines)
        if self.rng.random() < self.sheet.blank:
            return []
        if self.sheet.full:
            block = Block("text")
            while line := self.line(self.left, self.right, first=self.head(block.lines), cut=True):
                block.lines.append(line)
            return [block]
        columns = [(self.left, self.right)]
        if self.right - self.left > 22 * self.size and self.rng.random() < self.sheet.halved:
            middle = (self.left + self.right) / 2
            columns = [(self.left, middle - self.size), (middle + self.size, self.right)]
        lines: list[Line] = []
        blocks: list[Block] = []
        for left, right in columns:
            self.y = self.top
            block = Block("text")
            for _ in range(math.ceil(wanted / len(columns))):
                indent = self.rng.uniform(0, (right - left) / 3) if self.rng.random() < 0.25 else 0
                length = (right - left - indent) * (1 if self.rng.random() < 0.6 else self.rng.random())
                line = self.line(left + indent, left + indent + length, first=self.head(lines))
                if line is None:
                    break
                block.lines.append(line)
                lines.append(line)
            blocks.append(block)
        return blocks

    def head(self, above: list[Line]) -> str:
        """How a line is to begin: if this is such a page, now and then as one of those above it.

        In training half of these share their first sign alone. Evaluation's pages stay as they were measured before.
        """
        if not self.alike or not above or self.rng.random() < 0.5:
            return ""
        other = self.rng.choice(above).text
        if self.sheet.words == "train" and self.rng.random() < 0.5:
            words = (word(self.rng, "train", noise=self.sheet.noise) for _ in range(60))
            return next((each for each in words if each[0] == other[0]), "")
        return " ".join(other.split(" ")[: self.rng.choice((1, 1, 2))])

    def blocks(self) -> list[Block]:
        """A document: a title, then paragraphs, lists, tables and figures."""
        blocks: list[Block] = []
        if self.rng.random() < self.sheet.titled:
            blocks.append(self.title())
        self.ragged = bool(self.sheet.ragged) and self.rng.random() < self.sheet.ragged
        makers = {"text": self.paragraph, "list": self.bullets, "table": self.table, "image": self.figure}
        while self.number_of_lines < self.sheet.max_lines:
            block = makers[self.rng.choice(self.sheet.kinds)]()
            if block is None:
                break
            blocks.append(block)
            self.y += self.size * self.rng.uniform(0.5, 1.0)
        return blocks

    def title(self) -> Block:
        size, self.size = self.size, round(self.size * self.rng.uniform(1.2, 1.5))
        line = self.line(self.left, self.right, words=self.rng.randint(1, 3))
        self.size = size
        self.y += self.size * 0.4
        return Block("title", [line] if line else [])

    def paragraph(self) -> Block | None:
        lines = []
        wanted = self.rng.randint(1, 6) if self.ragged else self.rng.randint(2, 4)
        for place in range(wanted):
            words = self.rng.randint(1, 5) if self.ragged and place == wanted - 1 else 99
            line = self.line(self.left, self.right, words=words)
            if line is None:
                break
            lines.append(line)
        return Block("text", lines) if lines else None

    def bullets(self) -> Block | None:
        lines = []
        numbered = self.rng.random() < 0.4
        for item in range(self.rng.randint(2, 4)):
            mark = f"{item + 1}." if numbered else "-"
            line = self.line(self.left + self.size, self.right, first=mark, words=self.rng.randint(1, 4))
            if line is None:
                break
            lines.append(line)
        return Block("list", lines) if lines else None

    def table(self) -> Block | None:
        columns = self.rng.randint(2, 3)
        width = (self.right - self.left) / columns
        rows: list[list[Line]] = []
        for _ in range(self.rng.randint(2, 4)):
            top = self.y
            row = []
            for column in range(columns):
                self.y = top
                text = number(self.rng) if column and self.rng.random() < 0.7 else made_up(self.rng, self.sheet.words)
                left = self.left + column * width
                cell = self.line(left + 6, left + width - 6, first=text[:7], words=0)
                if cell is None:
                    return Block("table", rows=rows) if rows else None
                row.append(cell)
            rows.append(row)
            if self.rng.random() < 0.7:
                self.draw.line((self.left, self.y, self.right, self.y), fill=self.ink, width=2)
            self.y += self.size * 0.25
        return Block("table", rows=rows)

    def figure(self) -> Block | None:
        height = self.size * self.rng.uniform(2.5, 4.5)
        width = (self.right - self.left) * self.rng.uniform(0.3, 0.9)
        if self.y + height > self.sheet.height - 4:
            return None
        frame = (self.left, self.y, self.left + width, self.y + height)
        self.draw.rectangle(frame, fill=self.rng.randint(90, 200), outline=self.ink, width=2)
        for _ in range(self.rng.randint(2, 6)):
            points = [(self.rng.uniform(frame[0], frame[2]), self.rng.uniform(frame[1], frame[3])) for _ in range(3)]
            self.draw.polygon(points, fill=self.rng.randint(0, 255))
        self.y += height
        self.number_of_lines += 2
        return Block("image", frame=frame)

    def line(self, left: float, right: float, *, first: str = "", words: int = 99, cut: bool = False) -> Line | None:
        """Set one line between `left` and `right`; None if there is no room for it."""
        face = font(self.path, self.size, kerned=self.kerned)
        apart = NO_LIGATURES if self.kerned else None
        ascent, descent = face.getmetrics()
        if self.y + ascent + descent > self.sheet.height - 2:
            return None
        text = first
        for _ in range(words):
            longer = f"{text} {word(self.rng, self.sheet.words, noise=self.sheet.noise)}".strip()
            if face.getlength(longer, features=apart) > right - left:
                while cut and face.getlength(longer, features=apart) > right - left:
                    longer = longer[:-1].rstrip()
                text = longer if cut else text
                break
            text = longer
        if not text or face.getlength(text, features=apart) > self.sheet.width - left:
            text = number(self.rng)[:3]
        baseline = self.y + ascent
        self.draw.text((left, baseline), text, font=face, fill=self.ink, anchor="ls", features=apart)
        middle = baseline + ink(self.path, self.size, "x")[1] / 2
        glyphs = []
        for place, char in enumerate(text):
            if char != " ":
                # Pairs that move together do so before the second of them.
                start = face.getlength(text[: place + 1], features=apart) - face.getlength(char, features=apart)
                box = shifted(ink(self.path, self.size, char), left + start, baseline)
                spaced = text[:place].endswith(" ")
                glyphs.append(Glyph(char, box, ((box[0] + box[2]) / 2, middle), spaced=spaced))
        self.y += (ascent + descent) * self.gap
        self.number_of_lines += 1
        return Line(text, glyphs)


@cache
def ink(path: Path, size: int, char: str) -> Box:
    """Where the ink of `char` lies when it is set at (0, 0) on its baseline."""
    return font(path, size).getbbox(char, anchor="ls")


@cache
def set_width(path: Path) -> float:
    """How long its letters and digits are, one after another."""
    return font(path, 100).getlength(string.ascii_letters + string.digits)


def shifted(box: Box, x: float, y: float) -> Box:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def worn(page: Page, rng: random.Random) -> Page:
    """The page as scanners and cameras give it: tilted, blurred, noisy, compressed, now and then inverted."""
    image = page.image
    if rng.random() < 0.25:
        tilt = rng.uniform(-1.5, 1.5)
        image = image.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))
        turn(page, tilt)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 10), image.size[::-1])
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(35, 90))
        image = Image.open(buffer).convert("L")
    if rng.random() < 0.04:
        image = Image.fromarray(255 - np.asarray(image))
    page.image = image
    return page


def turn(page: Page, degrees: float) -> None:
    """Turn all boxes of the page with it, counter-clockwise about its centre."""
    width, height = page.image.size
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def moved(x: float, y: float) -> Point:
        x, y = x - width / 2, y - height / 2
        return x * cosine + y * sine + width / 2, -x * sine + y * cosine + height / 2

    def turned(box: Box) -> Box:
        xs, ys = zip(*(moved(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])), strict=True)
        return max(0, min(xs)), max(0, min(ys)), min(width, max(xs)), min(height, max(ys))

    for glyph in page.glyphs():
        glyph.box, glyph.middle = turned(glyph.box), moved(*glyph.middle)
    for block in page.blocks:
        if block.frame is not None:
            block.frame = turned(block.frame)
