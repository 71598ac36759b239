"""Turns a chat request into a plan. Pure: nothing is fetched or decoded here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocr_server.dialects.blocks_json import BlocksJson
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.dialects.messages import conversation, nothing_to_read
from ocr_server.dialects.model_names import model_choice
from ocr_server.dialects.options import OtherOptions, SharedOptions, check_prompt
from ocr_server.dialects.sampling import MAX_SCORES_OF_PAGES
from ocr_server.dialects.sources import planned_sources
from ocr_server.dialects.text_options import PREFIX, OcrOptions, check_output, text_format
from ocr_server.dialects.wire import Wire
from ocr_server.errors import InvalidRequest
from ocr_server.intake.source import Content
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats import Format
from ocr_server.output.formats.blocks import BLOCKS
from ocr_server.plan import PageLimit, ReadPlan
from ocr_server.reading.decoding import Decoding

if TYPE_CHECKING:
    from config import Settings

DECODING_PARAMETERS = {
    "json_schema": "response_format",
    "json_object": "response_format",
    "prompt": "messages",
    "loops": "repetition_detection",
}
"""Field of `Decoding` → parameter of a chat request, where the names differ."""


def plan_chat(request: ChatCompletionRequest, settings: Settings, content: Content | None = None) -> ReadPlan:
    """Return the plan of a chat request.

    Args:
        content: What to read if the request is a batch's template; None if the request has pictures of its own.

    Raises:
        NotFound: The model does not exist.
        InvalidRequest: The request has no picture, or an option is not valid.
    """
    options = request.ocr or OcrOptions()
    choice = model_choice(request.model, settings)
    asked = conversation(request.messages, settings.family)
    processor = request.mm_processor_kwargs
    mode = settings.family.modes.get(processor.mode or "", choice.mode) if processor is not None else choice.mode
    written = text_format(
        options, choice.output, settings, has_prompt=asked.prompt is not None, verbatim=_needs_verbatim(request)
    )
    shared = SharedOptions(
        options, options.pages, settings, prefix=PREFIX, first_page=1, others=_others(request, options)
    )
    sources = planned_sources(asked, shared, settings, content, mode=mode, place="messages")
    if not sources and (settings.PICTURE_REQUIRED or request.wants_json or request.constraints):
        raise nothing_to_read()
    _check_output(request, options, written)
    blocks_json(request, written)  # raises what is wrong with its schema
    prompt = settings.DEFAULT_PROMPT if asked.prompt is None else asked.prompt
    return ReadPlan(
        family=settings.family,
        sources=sources,
        prompt=check_prompt(prompt, settings, param="messages"),
        decoding=_decoding(request, options, shared, written),
        artifacts=written.artifacts | Artifacts(figures=options.include_figures),
        text=written,
        show_pages=options.include_page_images,
        page_limit=_page_limit(request, written, settings),
        decoding_parameters=DECODING_PARAMETERS | {field: name for name, field, _ in request.constraints},
    )


def blocks_json(request: ChatCompletionRequest, written: Format) -> BlocksJson | None:
    """Return what writes the blocks as JSON content; None if the content is text. Raises InvalidRequest."""
    wanted = request.response_format
    if written is not BLOCKS or wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema.schema_ if wanted.json_schema is not None else None
    return BlocksJson(schema, param="response_format.json_schema.schema")


def copies(request: ChatCompletionRequest) -> int:
    """Return how many choices repeat one answer of the engine: with greedy decoding, all `n` choices are the same."""
    return (request.n or 1) if request.is_greedy else 1


def _others(request: ChatCompletionRequest, options: OcrOptions) -> list[OtherOptions]:
    """Return the options that have vLLM's names. A mode by name replaces one in parts."""
    given: list[tuple[str, Wire | None]] = [("vllm_xargs.", request.vllm_xargs)]
    if options.mode is None:
        given.append(("mm_processor_kwargs.", request.mm_processor_kwargs))
    return [(prefix, dict(values)) for prefix, values in given if values is not None]


def _needs_verbatim(request: ChatCompletionRequest) -> bool:
    """Return whether an option applies to the text as the model writes it."""
    return bool(request.logprobs or request.wants_json or request.constraints or request.return_token_ids)


def _has_grammar(request: ChatCompletionRequest, written: Format) -> bool:
    """Whether the model itself has to follow `response_format`."""
    return request.wants_json and written is not BLOCKS


def _page_limit(request: ChatCompletionRequest, written: Format, settings: Settings) -> PageLimit | None:
    """Return the strictest limit on the number of pages: what is kept of each until the answer ends is limited."""
    limits = []
    if _has_grammar(request, written):
        limits.append(PageLimit("response_format", 1))
    limits += [PageLimit(parameter, 1) for parameter, _, _ in request.constraints]
    if request.return_token_ids:
        limits.append(PageLimit("return_token_ids", 1))
    if request.logprobs:
        limits.append(PageLimit("logprobs", MAX_SCORES_OF_PAGES // request.scores))
    if (request.n or 1) > 1:
        limits.append(PageLimit("n", max(1, settings.MAX_PAGES // (request.n or 1))))
    return min(limits, key=lambda limit: limit.pages, default=None)


def _check_output(request: ChatCompletionRequest, options: OcrOptions, written: Format) -> None:
    """Refuse options that have no effect on this output format or that it does not support."""
    check_output(options, written, stream=request.stream)
    if request.logprobs and not written.verbatim:
        raise InvalidRequest("logprobs need ocr.output: raw.", param="logprobs")
    if written.artifacts and not request.is_greedy and (request.n or 1) > 1:
        raise InvalidRequest(f"With ocr.output: {written.name} and a temperature above 0, n must be 1.", param="n")


def _decoding(request: ChatCompletionRequest, options: OcrOptions, shared: SharedOptions, written: Format) -> Decoding:
    wanted = request.response_format if _has_grammar(request, written) else None
    schema = wanted.json_schema if wanted is not None else None
    constraints: dict[str, Any] = {
        field: tuple(value) if field == "choice" else value for _, field, value in request.constraints
    }
    if schema is not None:
        constraints["json_schema"] = schema.schema_
    elif wanted is not None:
        constraints["json_object"] = True
    loops = request.repetition_detection
    return Decoding(
        n=1 if request.is_greedy else request.n or 1,
        **request.sampling(),
        stop_token_ids=None if request.stop_token_ids is None else tuple(request.stop_token_ids),
        include_stop=request.include_stop_str_in_output,
        bad_words=tuple(request.bad_words or ()),
        allowed_token_ids=None if request.allowed_token_ids is None else tuple(request.allowed_token_ids),
        ignore_eos=bool(request.ignore_eos),
        loops=loops.wanted if loops is not None else None,
        token_ids=request.return_token_ids,
        max_tokens=request.most_tokens,
        min_tokens=request.min_tokens or 0,
        logprobs=(request.top_logprobs or 0) if request.logprobs or options.confidence else None,
        logit_bias=request.logit_bias,
        **constraints,
        guard=shared.guard(),
        stream=request.stream,
    )
