"""The wire types of `POST /v1/ocr`, compatible with Mistral's OCR API.

Source: the models of the `mistralai` client, 3.7.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ocr_server.dialects.content import Address, DocumentAddress, ImageAddress
from ocr_server.dialects.page_report import PageError, PageFinish
from ocr_server.dialects.wire import Answer, Maybe, PageNumbers, ReadingOptions, Wire, known
from ocr_server.output.formats import FILE_FORMATS
from ocr_server.output.tables import TableFormat

OUTPUTS = ("json", *FILE_FORMATS)

ANNOTATIONS = ("bbox_annotation_format", "document_annotation_format", "document_annotation_prompt")
"""Parameters that ask a second model to annotate the document, which this server does not have."""


MISSPELT = 0.88
"""Similarity from which an unknown name is taken for a misspelt one: `page` for `pages`, or `tableFormat`."""
MAX_OPTION_CHARS = 40


class DocumentRef(Wire):
    """The document to read: exactly one of `document_url`, `image_url` and `file_id`."""

    type: Literal["document_url", "image_url", "file"] | None = None
    document_url: DocumentAddress | None = None
    """A PDF or picture: an http(s) URL or a data URI."""
    image_url: ImageAddress | None = None
    document_name: str | None = None
    """Accepted without effect: the type of the file is determined from its content."""
    file_id: str | None = None
    """Id of a file that was uploaded to `/v1/files`."""

    @model_validator(mode="after")
    def _one(self) -> DocumentRef:
        given = [name for name in ("document_url", "image_url", "file_id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError("document", "exactly one of document_url, image_url and file_id is required")
        return self

    @property
    def address(self) -> tuple[str, str]:
        """The URL and the name of the field that gave it."""
        for name in ("document_url", "image_url"):
            given = getattr(self, name)
            if given is not None:
                return (given.url, f"{name}.url") if isinstance(given, Address) else (given, name)
        raise AssertionError("one of them is given")


class OcrParameters(ReadingOptions):
    """A request without its document: the other parameters of a form or of a batch's requests."""

    OPEN: ClassVar = True
    REFUSED: ClassVar = {"temperature": "pages are read with greedy decoding; use /v1/chat/completions to sample"}
    NEUTRAL: ClassVar = {**dict.fromkeys(ANNOTATIONS, ({}, {"type": "text"}, "")), "temperature": (0,)}

    model: str | None = None
    pages: PageNumbers | None = None
    """Pages of the document, counted from 0: `"0,2-4"` or a list of numbers. The default is all pages."""
    prompt: str | None = None
    """Prompt for each page. The default is the server's default prompt."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of tokens to generate for each page."""
    include_image_base64: bool | None = None
    """Return the figures as data URIs."""
    image_limit: Annotated[int | None, Field(ge=0)] = None
    """Maximum number of figures in the response, over all pages."""
    image_min_size: Annotated[int | None, Field(ge=0)] = None
    """Minimum width and height of a figure, pixels. Smaller figures are left out."""
    table_format: TableFormat | None = None
    """Return tables in `tables`, in this format, and replace them with links in the markdown. By default they stay in
    the markdown, as markdown tables."""
    extract_header: bool | None = None
    """Return page headers in `header` instead of in the markdown."""
    extract_footer: bool | None = None
    """Return page footers in `footer` instead of in the markdown."""
    include_blocks: bool | None = None
    """Return the blocks with their bounding boxes. The default is true."""
    confidence_scores_granularity: Literal["word", "page", "block"] | None = None
    """Return the model's confidence in each page, and in each word or block."""
    stream: bool = False
    """Answer with server-sent events, one for each page that has been read."""
    output: Annotated[
        str, AfterValidator(partial(known, OUTPUTS)), Field(json_schema_extra={"enum": list(OUTPUTS)})
    ] = "json"
    """`json`: an OcrResponse. `markdown`: only the markdown of the document. `raw`: only the model's text, verbatim.
    `overlay`: the pages with their blocks drawn on them, as a PDF (a PNG for a single picture)."""
    id: str | None = None
    """Accepted without effect."""
    bbox_annotation_format: Any = None
    document_annotation_format: Any = None
    document_annotation_prompt: Any = None

    @classmethod
    def is_ignored(cls, name: str) -> bool:
        """Return whether an unknown field may be dropped: not if it is a known one misspelt."""
        if not super().is_ignored(name) or name in ("document", "file"):  # a template has neither
            return False
        options = [_letters(option) for option in cls.model_fields]
        return not get_close_matches(_letters(name[:MAX_OPTION_CHARS]), options, n=1, cutoff=MISSPELT)


def _letters(name: str) -> str:
    """Return a name without what distinguishes ways of writing it, such as `tableFormat` and `table-format`."""
    return name.replace("_", "").replace("-", "").casefold()


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
    """Resolution at which the page was rendered, pixels per inch; 72 for pictures, which are not rendered."""
    height: int
    """Height of the page, pixels."""
    width: int
    """Width of the page, pixels."""


class OcrWord(Answer):
    text: str
    confidence: float
    start_index: int
    """Index of the word's first character in the page's markdown."""


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
    """Index of the page in the document, from 0."""
    markdown: str
    images: list[OcrImage]
    tables: list[OcrTable]
    hyperlinks: list[str]
    header: str | None
    footer: str | None
    dimensions: OcrDimensions | None
    """Null if the page could not be loaded."""
    confidence_scores: OcrPageConfidence | None
    blocks: list[OcrBlock] | None
    finish_reason: PageFinish
    """Extension of this server: `stop` if the answer is complete, otherwise why it is not."""
    error: Maybe[PageError] = None
    """Extension of this server: why the page could not be read."""


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
    """Event of a stream: a page has been read."""

    object: Literal["ocr.page"] = "ocr.page"
    done: int
    """Number of pages read so far, including this one."""
    total: int
    """Number of pages to read."""
    page: OcrPage


class OcrDoneEvent(Answer):
    """Last event of a stream: all pages have been read."""

    object: Literal["ocr.done"] = "ocr.done"
    model: str
    usage_info: OcrUsage
