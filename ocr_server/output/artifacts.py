"""What is made of a page's answer while its pixels are in memory: blocks, figures, the overlay."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field

from PIL import Image

from deepseek_ocr.families import Family
from ocr_server.intake.source_page import SourcePage
from ocr_server.output.blocks import Block, PixelBox, blocks
from ocr_server.output.confidence import TokenSpan, token_spans
from ocr_server.output.figures import crop, figure_boxes, figure_name
from ocr_server.output.overlay import draw, to_jpeg
from ocr_server.reading.page import PageReading

MAX_FIGURES = 100
"""Most figures of a page that are cut out: a model that repeats itself may name hundreds, each the whole page."""


@dataclass(frozen=True)
class Artifacts:
    """What a request wants to be made of each page."""

    blocks: bool = False
    figures: bool = False
    """Cut the figures out, too; includes blocks."""
    overlay: bool = False
    """Draw the blocks on the page; includes blocks."""

    def __bool__(self) -> bool:
        return self.blocks or self.figures or self.overlay

    def __or__(self, other: Artifacts) -> Artifacts:
        return Artifacts(self.blocks or other.blocks, self.figures or other.figures, self.overlay or other.overlay)


@dataclass(frozen=True)
class Figure:
    name: str
    box: PixelBox
    """Pixels of the page."""
    jpeg: bytes | None
    """None if it was not wanted, or the box is empty."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


@dataclass(frozen=True)
class PageArtifacts:
    """What was made of one page."""

    blocks: list[Block] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    spans: list[TokenSpan] = field(default_factory=list)
    """Empty without log probabilities."""
    overlay: bytes | None = None
    """The page with its blocks drawn on it: a PNG, or for a document's page a JPEG. None if it was not wanted."""


def artifacts_of(reading: PageReading) -> PageArtifacts:
    """What was made of a page; nothing if the page failed or nothing was wanted."""
    return reading.artifacts if isinstance(reading.artifacts, PageArtifacts) else PageArtifacts()


async def page_picture(source: SourcePage) -> bytes:
    """The page as a JPEG."""
    # Not `source.image`: that copy would be kept for as long as the page is being read.
    return await asyncio.to_thread(lambda: to_jpeg(Image.fromarray(source.pixels)))


class ArtifactMaker:
    """Makes a request's artifacts of each of its pages."""

    def __init__(self, wanted: Artifacts, family: Family, *, of_document: bool) -> None:
        """Args:
        of_document: Whether overlays become the pages of one PDF, and so JPEGs, or a PNG.
        """
        self._wanted = wanted
        self._family = family
        self._of_document = of_document

    async def __call__(self, reading: PageReading, source: SourcePage) -> PageArtifacts:
        """As the reader's `finish`."""
        return await asyncio.to_thread(self.make, reading, source)

    def make(self, reading: PageReading, source: SourcePage) -> PageArtifacts:
        """Make the artifacts of a page. Takes a moment: not for the event loop."""
        answer = reading.text()
        found = blocks(answer, *source.size, family=self._family)
        most = MAX_FIGURES if self._wanted.figures else 0
        figures = [
            Figure(
                figure_name(reading.number + 1, number),
                box,
                to_jpeg(figure) if number <= most and (figure := crop(source.image, box)) else None,
            )
            for number, box in enumerate(figure_boxes(found, self._family), start=1)
        ]
        return PageArtifacts(
            blocks=found,
            figures=figures,
            spans=token_spans(answer, reading.steps()),
            overlay=self._overlay(source, found) if self._wanted.overlay else None,
        )

    def _overlay(self, source: SourcePage, found: list[Block]) -> bytes:
        drawn = draw(source.image, found)
        if self._of_document:
            return to_jpeg(drawn)
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()
