"""Turns a request for a response into a plan. Pure: nothing is fetched or decoded here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocr_server.dialects.blocks_json import BlocksJson
from ocr_server.dialects.messages import Message, conversation, nothing_to_read
from ocr_server.dialects.model_names import model_choice
from ocr_server.dialects.options import SharedOptions, check_prompt
from ocr_server.dialects.responses.wire import InputMessage, OtherItem, ResponsesRequest
from ocr_server.dialects.sampling import MAX_SCORES_OF_PAGES
from ocr_server.dialects.sources import planned_sources
from ocr_server.dialects.text_options import PREFIX, OcrOptions, check_output, text_format
from ocr_server.dialects.tools import check_tools
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
    "json_schema": "text.format",
    "json_object": "text.format",
    "max_tokens": "max_output_tokens",
    "prompt": "input",
}
"""Field of `Decoding` → parameter of the request, where the names differ."""
_EMPTY = Message(role="tool")
"""Stands for an item that is no message."""


def plan_response(request: ResponsesRequest, settings: Settings, content: Content | None = None) -> ReadPlan:
    """Return the plan of a request for a response.

    Args:
        content: What to read if the request is a batch's template; None if the request has pictures of its own.

    Raises:
        NotFound: The model does not exist.
        InvalidRequest: The request has no picture, or an option is not valid.
    """
    check_tools(request.tools, request.tool_choice)
    options = request.ocr or OcrOptions()
    choice = model_choice(request.model, settings)
    asked = conversation(_messages(request), settings.family, place="input")
    written = text_format(
        options, choice.output, settings, has_prompt=asked.prompt is not None, verbatim=_needs_verbatim(request)
    )
    shared = SharedOptions(options, options.pages, settings, prefix=PREFIX, first_page=1)
    sources = planned_sources(asked, shared, settings, content, mode=choice.mode, place="input")
    if not sources and (settings.PICTURE_REQUIRED or _wants_json(request)):
        raise nothing_to_read("input")
    check_output(options, written, stream=request.stream)
    if request.wants_logprobs and not written.verbatim:
        raise InvalidRequest("Log probabilities need ocr.output: raw.", param="include")
    blocks_json(request, written)  # raises what is wrong with its schema
    prompt = settings.DEFAULT_PROMPT if asked.prompt is None else asked.prompt
    return ReadPlan(
        family=settings.family,
        sources=sources,
        prompt=check_prompt(prompt, settings, param="input"),
        decoding=_decoding(request, options, shared, written),
        artifacts=written.artifacts | Artifacts(figures=options.include_figures),
        text=written,
        show_pages=options.include_page_images,
        page_limit=_page_limit(request, written),
        decoding_parameters=DECODING_PARAMETERS,
    )


def blocks_json(request: ResponsesRequest, written: Format) -> BlocksJson | None:
    """Return what writes the blocks as JSON content; None if the content is text. Raises InvalidRequest."""
    wanted = request.text_format
    if written is not BLOCKS or wanted is None:
        return None
    return BlocksJson(wanted.schema_, param="text.format.schema")


def _messages(request: ResponsesRequest) -> list[Message]:
    """Return the conversation, whose last message is the instructions: they replace an earlier system message."""
    if isinstance(request.input, str):
        messages: list[Message] = [Message(role="user", content=request.input)]
    else:
        _refuse_references(request.input)
        messages = [item if isinstance(item, InputMessage) else _EMPTY for item in request.input]
    return [*messages, Message(role="system", content=request.instructions)]


def _refuse_references(items: Sequence[InputMessage | OtherItem]) -> None:
    for number, item in enumerate(items):
        if item.type == "item_reference":
            raise InvalidRequest(
                "The server stores no responses, so that their items cannot be referred to; send the items themselves.",
                param=f"input[{number}].type",
                code="unsupported_parameter",
            )


def _wants_json(request: ResponsesRequest) -> bool:
    return request.text_format is not None


def _needs_verbatim(request: ResponsesRequest) -> bool:
    """Return whether an option applies to the text as the model writes it."""
    return request.wants_logprobs or _wants_json(request)


def _has_grammar(request: ResponsesRequest, written: Format) -> bool:
    """Whether the model itself has to follow `text.format`."""
    return _wants_json(request) and written is not BLOCKS


def _page_limit(request: ResponsesRequest, written: Format) -> PageLimit | None:
    if _has_grammar(request, written):
        return PageLimit("text.format", 1)
    if request.wants_logprobs:
        return PageLimit("include", MAX_SCORES_OF_PAGES // ((request.top_logprobs or 0) + 1))
    return None


def _decoding(request: ResponsesRequest, options: OcrOptions, shared: SharedOptions, written: Format) -> Decoding:
    wanted = request.text_format if _has_grammar(request, written) else None
    scored = request.wants_logprobs or options.confidence
    return Decoding(
        **request.sampling(),
        max_tokens=request.max_output_tokens,
        logprobs=(request.top_logprobs or 0) if scored else None,
        json_schema=wanted.schema_ if wanted is not None else None,
        json_object=wanted is not None and wanted.schema_ is None,
        guard=shared.guard(),
        stream=request.stream,
    )
