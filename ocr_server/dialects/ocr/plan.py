"""An OCR request → what to read, and how. Pure, as `translate` is for chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.sampling_params import RequestOutputKind, SamplingParams

from ocr_server.dialects.chat.plan import check_prompt, guard_args, mode_of, mode_of_model, selection, source
from ocr_server.dialects.ocr.wire import ANNOTATIONS, OcrRequest
from ocr_server.errors import InvalidRequest
from ocr_server.intake.intake import Source
from ocr_server.output.artifacts import Wanted

if TYPE_CHECKING:
    from config import Settings


@dataclass(frozen=True)
class OcrReading:
    """An OCR request, understood."""

    model: str
    source: Source
    prompt: str
    params: SamplingParams
    wanted: Wanted


def translate_ocr(request: OcrRequest, settings: Settings) -> OcrReading:
    """Understand an OCR request.

    Raises:
        NotFound: there is no such model.
        InvalidRequest: an option is not legal, or can't be honoured.
    """
    for name in ANNOTATIONS:
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"{name} is not supported: annotations take another model.", param=name, code="unsupported_parameter"
            )
    if request.document.file_id is not None:
        raise InvalidRequest(
            "Files are kept for batches only: send the document as a URL or data URI, or upload it with this request.",
            param="document.file_id",
            code="unsupported_content",
        )
    if request.stream and request.output != "json":
        raise InvalidRequest(f"A stream has no output {request.output}.", param="output")
    model = request.model or settings.MODEL_NAME
    url, field = request.document.address
    pages = selection(request.pages, first=0, param="pages")
    return OcrReading(
        model=model,
        source=source(
            url,
            mode_of(mode_of_model(model, settings), request, settings, prefix=""),
            request,
            pages,
            param=f"document.{field}",
            pages_param="pages",
        ),
        prompt=check_prompt((request.prompt or "").strip(), settings, param="prompt") or settings.DEFAULT_PROMPT,
        params=SamplingParams(
            temperature=0.0,
            max_tokens=request.max_tokens,
            logprobs=0 if request.confidence_scores_granularity else None,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=guard_args(request, settings, prefix=""),
        ),
        wanted=Wanted(figures=bool(request.include_image_base64), overlay=request.output == "overlay"),
    )
