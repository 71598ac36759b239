"""Render synthetic pages with their ground truth: text, positions, and the expected answer to every prompt.

Everything is determined by a seed: the same seed gives the same page on every machine with the same fonts. Lengths are
in pixels of the page, and boxes are (left, top, right, bottom).
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
"""The prompts of the tasks."""
NO_LIGATURES = ["-liga", "-clig", "-calt", "-dlig"]
"""OpenType features that turn ligatures off, so that each letter has its own position."""


@dataclass
class Glyph:
    """A printed character. Spaces have no glyphs."""

    char: str
    box: Box
    """Bounding box of its ink."""
    middle: Point
    """Its horizontal centre, and the vertical centre of the lowercase letters of its line. The vertical centre is the
    same for all characters of a line: commas, capitals and letters with descenders too."""
    line: int = 0
    """Index of its line, in reading order."""
    spaced: bool = False
    """Whether a space precedes it."""


@dataclass
class Line:
    """A printed line of text, or a cell of a table."""

    text: str
    glyphs: list[Glyph]
    """The glyphs of all characters of `text` except the spaces."""

    @property
    def box(self) -> Box:
        return bounding_box(glyph.box for glyph in self.glyphs)


@dataclass
class Piece:
    """A part of an answer."""

    text: str
    glyphs: list[Glyph] = field(default_factory=list)
    """If the text is printed on the page, the glyphs of its characters, without the spaces; otherwise empty."""
    located: Box | None = None
    """If the text gives the coordinates of a box, that box."""


@dataclass
class Block:
    """A part of a page that has a label of its own, such as a paragraph or a table."""

    label: Label
    lines: list[Line] = field(default_factory=list)
    rows: list[list[Line]] = field(default_factory=list)
    """The cells of a table, row by row."""
    frame: Box | None = None
    """The box of a figure."""

    @property
    def box(self) -> Box:
        if self.frame is not None:
            return self.frame
        return bounding_box(line.box for line in self.all_lines())

    def all_lines(self) -> list[Line]:
        """Return the lines, including the cells of a table."""
        return self.lines + [cell for row in self.rows for cell in row]


@dataclass
class Page:
    """A rendered page and its ground truth."""

    image: Image.Image
    """The page, 8-bit greyscale."""
    blocks: list[Block]
    """The blocks in reading order."""

    def lines(self) -> list[Line]:
        """Return all lines, in reading order."""
        return [line for block in self.blocks for line in block.all_lines()]

    def glyphs(self) -> list[Glyph]:
        """Return all glyphs, in reading order."""
        return [glyph for line in self.lines() for glyph in line.glyphs]

    def answer(self, task: Task, rng: random.Random) -> tuple[str, str]:
        """Return the prompt of a task and the correct answer.

        Args:
            task: the task. If no word can be located on the page, "locate" becomes "free".
            rng: chooses the word to locate.
        """
        prompt, pieces = self.pieces(task, rng)
        return prompt, "".join(piece.text for piece in pieces)

    def pieces(self, task: Task, rng: random.Random) -> tuple[str, list[Piece]]:
        """Return the prompt and the answer as in `answer`, with the answer split into printed and unprinted pieces."""
        if task in ("free", "ocr"):
            return PROMPTS[task], joined([[printed(line)] for line in self.lines()], "\n")
        if task == "lines":
            return PROMPTS[task], joined([self._located(printed(line), line.box) for line in self.lines()], "\n")
        if task == "markdown":
            located = [[*self._located(Piece(block.label), block.box), *self._content(block)] for block in self.blocks]
            return PROMPTS[task], joined(located, "\n\n")
        if task == "document":
            # Without grounding, an answer has no labels and no boxes, so that a figure contributes nothing to it.
            contents = [self._content(block)[1:] for block in self.blocks if block.label != "image"]
            return PROMPTS[task], joined(contents, "\n\n")
        candidates = self._unique_words()
        if not candidates:
            return self.pieces("free", rng)
        target = rng.choice(candidates)
        return PROMPTS[task].format(word=target.text), self._located(printed(target), target.box)

    def _located(self, piece: Piece, box: Box) -> list[Piece]:
        """Return a text with its box in DeepSeek-OCR's format. Coordinates go from 0 to 999 along each side."""
        width, height = self.image.size
        left, top = int(box[0] / width * 999), int(box[1] / height * 999)
        right, bottom = int(box[2] / width * 999), int(box[3] / height * 999)
        corners = Piece(f"<|/ref|><|det|>[[{left}, {top}, {right}, {bottom}]]<|/det|>", located=box)
        return [Piece("<|ref|>"), piece, corners]

    def _content(self, block: Block) -> list[Piece]:
        """Return the text of a block as markdown, preceded by the newline that separates it from its box.

        Printed line breaks are kept: markdown displays them as spaces, and the model can follow the printed lines.
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

    def _unique_words(self) -> list[Line]:
        """Return the words of at least three characters that occur only once on the page."""
        seen: dict[str, list[Line]] = {}
        for line in self.lines():
            start = 0
            for text in line.text.split(" "):
                seen.setdefault(text, []).append(Line(text, line.glyphs[start : start + len(text)]))
                start += len(text)  # spaces have no glyphs
        return [words[0] for text, words in seen.items() if len(words) == 1 and len(text) > 2]


def printed(line: Line) -> Piece:
    """Return the piece of an answer that consists of a printed line."""
    return Piece(line.text, line.glyphs)


def joined(parts: list[list[Piece]], separator: str) -> list[Piece]:
    """Concatenate the parts of an answer, with `separator` between them."""
    pieces: list[Piece] = []
    for part in parts:
        pieces += [Piece(separator), *part] if pieces else part
    return pieces


def bounding_box(boxes: Iterator[Box] | list[Box]) -> Box:
    """Return the smallest box that contains all boxes."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


@dataclass(frozen=True)
class Sheet:
    """The kind of page to render."""

    width: int = 640
    height: int = 640
    min_print: int = 24
    """Smallest font size, in pixels."""
    max_print: int = 40
    """Largest font size, in pixels."""
    min_lines: int = 1
    max_lines: int = 12
    split: Split = "train"
    """The split that the fonts belong to."""
    words: Split = "train"
    """The split that the words belong to."""
    noise: bool = True
    """Whether there are random characters among the words."""
    clean: bool = False
    """Whether the page is left without noise, blur, rotation and other degradation."""
    structured: bool = False
    """Whether the page is a document of blocks: title, paragraphs, lists, tables and figures. Otherwise, it consists of
    lines of words."""
    kinds: tuple[Label, ...] = ("text", "text", "list", "table", "image")
    """The kinds of blocks of a structured page after its title. The more often a kind is listed, the likelier it is."""
    titled: float = 0.8
    """Share of structured pages with a title."""
    ragged: float = 0.0
    """Share of structured pages whose paragraphs have one to six lines, the last one of any length."""
    full: bool = False
    """Whether lines fill the page from margin to margin and from top to bottom, with words cut off at the end of a
    line. Such a page has the most letters for the cost of a training step."""
    narrow: int = 0
    """How many further fonts are drawn at random; the narrowest of all drawn fonts is used."""
    tight: bool = False
    """Whether there is little space between the lines."""
    kerned: float = 0.6
    """Share of pages with kerning, if this machine supports it. With kerning, a comma is placed under the arm of an r,
    where a model that had not seen this lost it."""
    alike: float = 0.0
    """Share of pages on which lines begin with the same words or characters as lines above them."""
    blank: float = 0.0
    """Share of pages without text."""
    halved: float = 0.3
    """Share of pages with two columns, among those that are wide enough for them."""


def render(sheet: Sheet, rng: random.Random) -> Page:
    """Render a page.

    Args:
        sheet: the kind of page.
        rng: source of all random decisions; it determines the page.
    """
    typesetter = Typesetter(sheet, rng)
    blocks = typesetter.blocks() if sheet.structured else typesetter.plain()
    page = Page(typesetter.canvas, [block for block in blocks if block.frame is not None or block.all_lines()])
    for index, line in enumerate(page.lines()):
        for glyph in line.glyphs:
            glyph.line = index
    return page if sheet.clean else degrade(page, rng)


class Typesetter:
    """Draws the text and figures of one page, from top to bottom."""

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
        """Draw lines of words of random lengths, in one column, or in two on wide pages with small print."""
        wanted = self.rng.randint(self.sheet.min_lines, self.sheet.max_lines)
        if self.rng.random() < self.sheet.blank:
            return []
        if self.sheet.full:
            block = Block("text")
            while line := self.line(self.left, self.right, first=self.beginning(block.lines), cut=True):
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
                line = self.line(left + indent, left + indent + length, first=self.beginning(lines))
                if line is None:
                    break
                block.lines.append(line)
                lines.append(line)
            blocks.append(block)
        return blocks

    def beginning(self, above: list[Line]) -> str:
        """Return the text with which the next line begins, or "" for any text.

        On pages where lines begin alike, half of the lines begin like one of the lines above. In training, half of
        these share only the first character; evaluation pages remain those of earlier measurements.
        """
        if not self.alike or not above or self.rng.random() < 0.5:
            return ""
        other = self.rng.choice(above).text
        if self.sheet.words == "train" and self.rng.random() < 0.5:
            words = (word(self.rng, "train", noise=self.sheet.noise) for _ in range(60))
            return next((each for each in words if each[0] == other[0]), "")
        return " ".join(other.split(" ")[: self.rng.choice((1, 1, 2))])

    def blocks(self) -> list[Block]:
        """Draw a document: a title on most pages, then paragraphs, lists, tables and figures."""
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
        """Draw a title in a larger font size."""
        size, self.size = self.size, round(self.size * self.rng.uniform(1.2, 1.5))
        line = self.line(self.left, self.right, words=self.rng.randint(1, 3))
        self.size = size
        self.y += self.size * 0.4
        return Block("title", [line] if line else [])

    def paragraph(self) -> Block | None:
        """Draw a paragraph; return None if there is no room for it."""
        lines = []
        count = self.rng.randint(1, 6) if self.ragged else self.rng.randint(2, 4)
        for number_of_line in range(count):
            words = self.rng.randint(1, 5) if self.ragged and number_of_line == count - 1 else 99
            line = self.line(self.left, self.right, words=words)
            if line is None:
                break
            lines.append(line)
        return Block("text", lines) if lines else None

    def bullets(self) -> Block | None:
        """Draw a bulleted or numbered list; return None if there is no room for it."""
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
        """Draw a table of two or three columns; return None if there is no room for it."""
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
        """Draw a rectangle with random triangles; return None if there is no room for it."""
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
        """Draw one line at the current height and move below it.

        Args:
            left: where the line begins.
            right: where the line ends at the latest.
            first: text with which the line begins.
            words: maximum number of random words after `first`.
            cut: cut off the word that does not fit into the line, instead of leaving it out.

        Returns:
            The line, or None if there is no room for it on the page.
        """
        face = font(self.path, self.size, kerned=self.kerned)
        shaping = NO_LIGATURES if self.kerned else None
        ascent, descent = face.getmetrics()
        if self.y + ascent + descent > self.sheet.height - 2:
            return None
        text = first
        for _ in range(words):
            longer = f"{text} {word(self.rng, self.sheet.words, noise=self.sheet.noise)}".strip()
            if face.getlength(longer, features=shaping) > right - left:
                while cut and face.getlength(longer, features=shaping) > right - left:
                    longer = longer[:-1].rstrip()
                text = longer if cut else text
                break
            text = longer
        if not text or face.getlength(text, features=shaping) > self.sheet.width - left:
            text = number(self.rng)[:3]
        baseline = self.y + ascent
        self.draw.text((left, baseline), text, font=face, fill=self.ink, anchor="ls", features=shaping)
        middle = baseline + ink_box(self.path, self.size, "x")[1] / 2
        glyphs = []
        for index, char in enumerate(text):
            if char != " ":
                # Kerning moves the second character of a pair.
                start = face.getlength(text[: index + 1], features=shaping) - face.getlength(char, features=shaping)
                box = shifted(ink_box(self.path, self.size, char), left + start, baseline)
                spaced = text[:index].endswith(" ")
                glyphs.append(Glyph(char, box, ((box[0] + box[2]) / 2, middle), spaced=spaced))
        self.y += (ascent + descent) * self.gap
        self.number_of_lines += 1
        return Line(text, glyphs)


@cache
def ink_box(path: Path, size: int, char: str) -> Box:
    """Return the bounding box of the ink of `char` when it is drawn at (0, 0), with 0 being the baseline."""
    return font(path, size).getbbox(char, anchor="ls")


@cache
def set_width(path: Path) -> float:
    """Return the total width of a font's letters and digits, in pixels at a size of 100."""
    return font(path, 100).getlength(string.ascii_letters + string.digits)


def shifted(box: Box, x: float, y: float) -> Box:
    """Return a box moved by (x, y)."""
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def degrade(page: Page, rng: random.Random) -> Page:
    """Degrade a page as scanners and cameras do: rotation, blur, noise, JPEG compression, and sometimes inversion."""
    image = page.image
    if rng.random() < 0.25:
        angle = rng.uniform(-1.5, 1.5)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))
        rotate_boxes(page, angle)
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


def rotate_boxes(page: Page, degrees: float) -> None:
    """Rotate all boxes of a page counter-clockwise about its centre, and replace them by their bounding boxes."""
    width, height = page.image.size
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def rotated_point(x: float, y: float) -> Point:
        x, y = x - width / 2, y - height / 2
        return x * cosine + y * sine + width / 2, -x * sine + y * cosine + height / 2

    def rotated_box(box: Box) -> Box:
        xs, ys = zip(*(rotated_point(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])), strict=True)
        return max(0, min(xs)), max(0, min(ys)), min(width, max(xs)), min(height, max(ys))

    for glyph in page.glyphs():
        glyph.box, glyph.middle = rotated_box(glyph.box), rotated_point(*glyph.middle)
    for block in page.blocks:
        if block.frame is not None:
            block.frame = rotated_box(block.frame)
