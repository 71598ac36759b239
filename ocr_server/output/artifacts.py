"""What is made from a page's answer while its pixels are in memory: blocks, figures and the overlay."""

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
"""Maximum number of figures that are cut out of a page. A model that repeats itself can report hundreds of figures,
each as large as the page."""


@dataclass(frozen=True)
class Artifacts:
    """The artifacts that a request wants of each page."""

    blocks: bool = False
    figures: bool = False
    """Cut out the figures as well. Includes blocks."""
    overlay: bool = False
    """Draw the blocks on the page. Includes blocks."""

    def __bool__(self) -> bool:
        return self.blocks or self.figures or self.overlay

    def __or__(self, other: Artifacts) -> Artifacts:
        return Artifacts(self.blocks or other.blocks, self.figures or other.figures, self.overlay or other.overlay)


@dataclass(frozen=True)
class Figure:
    """A figure of a page."""

    name: str
    """File name, as the markdown links it."""
    box: PixelBox
    """In pixels of the page."""
    jpeg: bytes | None
    """The picture. None if it was not requested, or if the box is empty."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


@dataclass(frozen=True)
class PageArtifacts:
    """The artifacts of one page."""

    blocks: list[Block] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    spans: list[TokenSpan] = field(default_factory=list)
    """The tokens of the answer with their log probabilities. Empty if none were requested."""
    overlay: bytes | None = None
    """The page with its blocks drawn on it: a JPEG for a page of a document, otherwise a PNG. None if not requested."""


def artifacts_of(reading: PageReading) -> PageArtifacts:
    """Return the artifacts of a page. They are empty if the page failed or if none were requested."""
    return reading.artifacts if isinstance(reading.artifacts, PageArtifacts) else PageArtifacts()


async def page_picture(source: SourcePage) -> bytes:
    """Encode the page as a JPEG."""
    # `source.image` would keep a copy of the pixels for as long as the page is being read.
    return await asyncio.to_thread(lambda: to_jpeg(Image.fromarray(source.pixels)))


class ArtifactMaker:
    """Makes the artifacts of each page of a request."""

    def __init__(self, wanted: Artifacts, family: Family, *, of_document: bool) -> None:
        """Args:
        wanted: The artifacts to make.
        family: The family of the model, which defines the labels and the scale of the boxes.
        of_document: Whether the pages belong to a document. Overlays of a document are JPEGs, which become the
            pages of a PDF; the overlay of a single picture is a PNG.
        """
        self._wanted = wanted
        self._family = family
        self._of_document = of_document

    async def __call__(self, reading: PageReading, source: SourcePage) -> PageArtifacts:
        """Make the artifacts of a page in a thread. The reader calls this as `finish`."""
        return await asyncio.to_thread(self.make, reading, source)

    def make(self, reading: PageReading, source: SourcePage) -> PageArtifacts:
        """Make the artifacts of a page. Too slow for the event loop."""
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
