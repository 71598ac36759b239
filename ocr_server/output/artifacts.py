"""What is made from a page's answer and its picture: blocks, figures and the overlay."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field, replace

from deepseek_ocr.families import Family
from ocr_server.intake.source_page import SourcePage
from ocr_server.memory import ClientMemory, MemoryBudget, Reservation, Use
from ocr_server.output.blocks import Block, PixelBox, blocks
from ocr_server.output.confidence import TokenSpan, token_spans
from ocr_server.output.figures import crop, figure_boxes, figure_name
from ocr_server.output.overlay import draw, drawing_bytes, to_jpeg
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import Load

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

    @property
    def nbytes(self) -> int:
        """Size of the pictures in bytes."""
        pictures = [self.overlay, *(figure.jpeg for figure in self.figures)]
        return sum(len(picture) for picture in pictures if picture is not None)


def artifacts_of(reading: PageReading) -> PageArtifacts:
    """Return the artifacts of a page. They are empty if the page failed or if none were requested."""
    return reading.artifacts if isinstance(reading.artifacts, PageArtifacts) else PageArtifacts()


async def page_picture(source: SourcePage) -> bytes:
    """Encode the page as a JPEG."""
    return await asyncio.to_thread(lambda: to_jpeg(source.image))


class ArtifactMaker:
    """Makes the artifacts of each page of a request."""

    def __init__(
        self,
        wanted: Artifacts,
        family: Family,
        *,
        of_document: bool,
        memory: MemoryBudget | ClientMemory,
        answer: Reservation,
    ) -> None:
        """Args:
        wanted: The artifacts to make.
        family: The family of the model, which defines the labels and the scale of the boxes.
        memory: What drawing takes its memory from.
        answer: Grows with the pictures that are made.
        of_document: Whether the pages belong to a document. Overlays of a document are JPEGs, which become the
            pages of a PDF; the overlay of a single picture is a PNG.
        """
        self._wanted = wanted
        self._family = family
        self._of_document = of_document
        self._memory = memory
        self._answer = answer

    async def __call__(self, reading: PageReading, load: Load) -> PageArtifacts:
        """Make the artifacts of a page in threads. The reader calls this as `finish`.

        Raises:
            TooMany, TooLarge: The budget has no memory for the pictures.
        """
        artifacts = await asyncio.to_thread(self.parse, reading)
        cuts = self._wanted.figures and artifacts.figures
        if not (cuts or self._wanted.overlay):
            return artifacts
        source = await load()
        with await self._memory.wait(Use.DRAWING, drawing_bytes(source.size)):
            if cuts:
                artifacts = await asyncio.to_thread(self.cut, artifacts, source)
            if self._wanted.overlay:
                artifacts = await asyncio.to_thread(self.draw, artifacts, source)
        self._answer.grow(artifacts.nbytes)
        return artifacts

    def parse(self, reading: PageReading) -> PageArtifacts:
        """Return the artifacts that need no picture: blocks, the names of figures, and the scores of tokens."""
        answer = reading.text()
        found = blocks(answer, reading.width, reading.height, family=self._family)
        return PageArtifacts(
            blocks=found,
            figures=[
                Figure(figure_name(reading.number + 1, number), box, None)
                for number, box in enumerate(figure_boxes(found, self._family), start=1)
            ],
            spans=token_spans(answer, reading.steps()),
        )

    def cut(self, artifacts: PageArtifacts, source: SourcePage) -> PageArtifacts:
        """Cut the first MAX_FIGURES figures out of the page."""
        first = [
            replace(figure, jpeg=to_jpeg(part) if (part := crop(source.pixels, figure.box)) else None)
            for figure in artifacts.figures[:MAX_FIGURES]
        ]
        return replace(artifacts, figures=first + artifacts.figures[MAX_FIGURES:])

    def draw(self, artifacts: PageArtifacts, source: SourcePage) -> PageArtifacts:
        """Draw the blocks on the page."""
        drawn = draw(source.image, artifacts.blocks)
        if self._of_document:
            return replace(artifacts, overlay=to_jpeg(drawn))
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return replace(artifacts, overlay=file.getvalue())
