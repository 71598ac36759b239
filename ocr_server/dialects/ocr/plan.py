"""Turns an OCR request into a plan. Pure: nothing is fetched or decoded here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr_server.dialects.model_names import model_choice
from ocr_server.dialects.ocr.wire import ANNOTATIONS, OcrParameters, OcrRequest
from ocr_server.dialects.options import SharedOptions, check_prompt
from ocr_server.errors import InvalidRequest
from ocr_server.intake.source import Content, StoredFile, Url
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats import FORMATS
from ocr_server.plan import ReadPlan
from ocr_server.reading.decoding import Decoding

if TYPE_CHECKING:
    from config import Settings


def plan_ocr(
    request: OcrParameters, settings: Settings, content: Content | None = None, *, parameter: str = "input_file_id"
) -> ReadPlan:
    """Return the plan of an OCR request.

    Args:
        content: What to read if the request does not name its document: an upload or a batch's file.
        parameter: Name of the request parameter that gave `content`.

    Raises:
        NotFound: The model does not exist.
        InvalidRequest: An option is not valid or not supported.
    """
    for name in ANNOTATIONS:
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"{name} is not supported: annotations need another model.", param=name, code="unsupported_parameter"
            )
    if request.stream and request.output != "json":
        raise InvalidRequest(f"With stream: true, output must be json, not {request.output}.", param="output")
    if isinstance(request, OcrRequest):
        content, parameter = _document(request)
    assert content is not None, "a request without a document needs content"
    shared = SharedOptions(request, request.pages, settings, prefix="", first_page=0)
    written = FORMATS.get(request.output)
    return ReadPlan(
        family=settings.family,
        sources=(
            shared.source(content, parameter, mode=model_choice(request.model or settings.MODEL_NAME, settings).mode),
        ),
        prompt=check_prompt((request.prompt or "").strip(), settings, param="prompt") or settings.DEFAULT_PROMPT,
        decoding=Decoding(
            max_tokens=request.max_tokens,
            logprobs=0 if request.confidence_scores_granularity else None,
            guard=shared.guard(),
        ),
        artifacts=Artifacts(blocks=True, figures=bool(request.include_image_base64))
        | (written.artifacts if written is not None else Artifacts()),
    )


def _document(request: OcrRequest) -> tuple[Content, str]:
    """Return the document and the name of the parameter that gave it."""
    if request.document.file_id is not None:
        return StoredFile(request.document.file_id), "document.file_id"
    url, field = request.document.address
    return Url(url), f"document.{field}"
