"""The wire types of `POST /v1/ocr`, in the shape of Mistral's OCR API.

Source of the shape: the models of the `mistralai` client, 3.7.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ocr_server.dialects.page_report import PageError, PageFinish
from ocr_server.dialects.wire import Answer, ImageUrl, Maybe, PageNumbers, ReadingOptions, Wire, known
from ocr_server.output.formats import FILE_FORMATS
from ocr_server.output.tables import TableFormat

OUTPUTS = ("json", *FILE_FORMATS)

ANNOTATIONS = ("bbox_annotation_format", "document_annotation_format", "document_annotation_prompt")
"""Parameters that ask another model to say something about the document; this server has none."""


class DocumentRef(Wire):
    """What to read: exactly one of the three."""

    type: Literal["document_url", "image_url", "file"] | None = None
    document_url: str | None = None
    """A PDF or picture: an http(s) URL or a data URI."""
    image_url: str | ImageUrl | None = None
    document_name: str | None = None
    """Accepted; what the file is, its content decides."""
    file_id: str | None = None
    """Refused: files are kept for batches only."""

    @model_validator(mode="after")
    def _one(self) -> DocumentRef:
        given = [name for name in ("document_url", "image_url", "file_id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError("document", "one of document_url and image_url is needed")
        return self

    @property
    def address(self) -> tuple[str, str]:
        """The URL, and the name of the field that gave it."""
        if self.document_url is not None:
            return self.document_url, "document_url"
        if isinstance(self.image_url, ImageUrl):
            return self.image_url.url, "image_url.url"
        return self.image_url or "", "image_url"


class OcrParameters(ReadingOptions):
    """A request without its document, which a form or a batch has elsewhere."""

    model: str | None = None
    pages: PageNumbers | None = None
    """Which pages, from 0: `"0,2-4"` or a list; all if not given."""
    prompt: str | None = None
    """What the model is asked about each page, if not the server's default prompt."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """Most tokens to generate for each page."""
    include_image_base64: bool | None = None
    """Send the figures, as data URIs."""
    image_limit: Annotated[int | None, Field(ge=0)] = None
    """Most figures to give, of all pages together."""
    image_min_size: Annotated[int | None, Field(ge=0)] = None
    """Least width and height of a figure, pixels."""
    table_format: TableFormat | None = None
    """Put tables into `tables`, in this format, and a link into the markdown. If not given they stay in the
    markdown, as markdown tables."""
    extract_header: bool | None = None
    """Put page headers into `header` instead of the markdown."""
    extract_footer: bool | None = None
    include_blocks: bool | None = None
    """Give the located blocks; true if not given."""
    confidence_scores_granularity: Literal["word", "page", "block"] | None = None
    stream: bool = False
    """Answer with server-sent events, one for each finished page."""
    output: Annotated[
        str, AfterValidator(partial(known, OUTPUTS)), Field(json_schema_extra={"enum": list(OUTPUTS)})
    ] = "json"
    """`json`: the response as described. `markdown`: the document's markdown alone. `raw`: what the model said,
    verbatim. `overlay`: the pages with their blocks drawn on them, as a PDF (a PNG for a single picture)."""
    id: str | None = None
    """Accepted without effect."""
    bbox_annotation_format: Any = None
    document_annotation_format: Any = None
    document_annotation_prompt: Any = None


class OcrRequest(OcrParameters):
    document: DocumentRef


class OcrImage(Answer):
    id: str
    top_left_x: int
    top_left_y: int
    bottom_right_x: int
    bottom_right_y: int
    image_base64: str | None = None
    """A data URI."""
    image_annotation: None = None


class OcrTable(Answer):
    id: str
    content: str
    format: TableFormat


class OcrDimensions(Answer):
    dpi: int
    """At which the page was rendered; 72 for pictures, which have none."""
    height: int
    width: int


class OcrWord(Answer):
    text: str
    confidence: float
    start_index: int
    """In the page's markdown."""


class OcrPageConfidence(Answer):
    average_page_confidence_score: float
    minimum_page_confidence_score: float
    word_confidence_scores: Maybe[list[OcrWord]] = None


class OcrBlockConfidence(Answer):
    average_content_confidence_score: float | None
    minimum_content_confidence_score: float | None
    block_type_confidence_score: float | None


class OcrBlock(Answer):
    type: str
    top_left_x: int
    top_left_y: int
    bottom_right_x: int
    bottom_right_y: int
    content: str
    image_id: Maybe[str] = None
    table_id: Maybe[str] = None
    confidence_scores: Maybe[OcrBlockConfidence] = None


class OcrPage(Answer):
    index: int
    """In the document, from 0."""
    markdown: str
    images: list[OcrImage]
    tables: list[OcrTable]
    hyperlinks: list[str]
    header: str | None
    footer: str | None
    dimensions: OcrDimensions | None
    """None if the page could not be had."""
    confidence_scores: OcrPageConfidence | None
    blocks: list[OcrBlock] | None
    finish_reason: PageFinish
    """This server's own: whether the page is whole."""
    error: Maybe[PageError] = None


class OcrUsage(Answer):
    pages_processed: int
    doc_size_bytes: int
    prompt_tokens: int
    completion_tokens: int


class OcrResponse(Answer):
    pages: list[OcrPage]
    model: str
    usage_info: OcrUsage
    document_annotation: None = None


class OcrPageEvent(Answer):
    """In a stream: a page is done."""

    object: Literal["ocr.page"] = "ocr.page"
    done: int
    """Pages done so far, this one included."""
    total: int
    page: OcrPage


class OcrDoneEvent(Answer):
    """In a stream: all pages are done."""

    object: Literal["ocr.done"] = "ocr.done"
    model: str
    usage_info: OcrUsage
