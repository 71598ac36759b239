"""A chat request → what to read, and how to decode it. Pure: nothing is fetched or decoded here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from deepseek_ocr.modes import MODES, ResolutionMode
from deepseek_ocr.no_repeat_ngram import Guard
from ocr_server.dialects.chat.blocks_json import BlocksJson
from ocr_server.dialects.chat.wire import (
    AnyPart,
    ChatCompletionRequest,
    FilePart,
    ImagePart,
    Message,
    OcrOptions,
    OtherPart,
    PageNumbers,
    ReadingOptions,
    ResponseFormat,
    TextPart,
)
from ocr_server.errors import InvalidRequest, NotFound, invalid_parameters
from ocr_server.intake.document import DEFAULT_DPI
from ocr_server.intake.intake import Source
from ocr_server.intake.page_selection import Selection, parse_pages
from ocr_server.reading.reader import PAGE_SEPARATOR

if TYPE_CHECKING:
    from config import Settings

OCR = "ocr."
"""What stands before the names of this server's own options in a chat request."""
DETAIL_MODES = {"low": "tiny", "high": "gundam"}


@dataclass(frozen=True)
class Reading:
    """A request, understood."""

    sources: list[Source]
    prompt: str
    params: SamplingParams
    """Still without the clamp to the context, which depends on each picture."""
    copies: int
    """How often the answer is given: `n`, where greedy decoding makes all choices the same."""
    single_page: bool
    """Whether the answer makes sense for one page only (structured output)."""
    options: OcrOptions
    separator: str
    """What stands between two pages."""
    json: BlocksJson | None
    """Makes the blocks the content, as JSON."""


def translate(request: ChatCompletionRequest, settings: Settings) -> Reading:
    """Understand a chat request.

    Raises:
        NotFound: there is no such model.
        InvalidRequest: there is no picture, or an option is not legal.
    """
    base_mode = mode_of_model(request.model, settings)
    options = request.ocr or OcrOptions()
    place, parts, text_message = _messages_to_read(request.messages)
    pages = selection(options.pages, first=1, param="ocr.pages")
    to_read = [(number, part) for number, part in enumerate(parts) if isinstance(part, ImagePart | FilePart)]
    if pages is not None and len(to_read) > 1:
        pages = replace(pages, documents_only=True)
    sources = []
    for number, part in to_read:
        url, detail, param = _address(part, f"messages[{place}].content[{number}]")
        mode = mode_of(base_mode or MODES.get(DETAIL_MODES.get(detail, "")), options, settings)
        sources.append(source(url, mode, options, pages, param=param, pages_param="ocr.pages"))
    if len(sources) > settings.MAX_IMAGES:
        raise InvalidRequest(
            f"A request can have at most {settings.MAX_IMAGES} pictures, not {len(sources)}.", param="messages"
        )
    _check_output(request, options)
    params = _chat_params(request, options, settings)
    return Reading(
        sources=sources,
        prompt=_prompt(request.messages, text_message, settings),
        params=params,
        copies=1 if request.temperature else request.n or 1,
        single_page=params.structured_outputs is not None,
        options=options,
        separator=PAGE_SEPARATOR if options.page_separator is None else options.page_separator,
        json=_blocks_json(request.response_format) if options.output == "blocks" else None,
    )


def source(
    url: str,
    mode: ResolutionMode,
    options: ReadingOptions,
    pages: Selection | None,
    *,
    param: str,
    pages_param: str,
) -> Source:
    """A picture or document to read, with what the request says about it."""
    return Source(
        url=url,
        mode=mode,
        param=param,
        pages=pages,
        pages_param=pages_param,
        dpi=options.dpi or DEFAULT_DPI,
        password=options.password,
    )


def selection(pages: PageNumbers | None, *, first: int, param: str) -> Selection | None:
    """The pages a request asks for; None for all."""
    if pages is None:
        return None
    try:
        return parse_pages(pages, first=first)
    except ValueError as error:
        raise InvalidRequest(f"{error}", param=param, code="invalid_pages") from error


def _address(part: ImagePart | FilePart, place: str) -> tuple[str, str, str]:
    """A part's URL, its `detail`, and the name of the parameter that gave the URL."""
    if isinstance(part, ImagePart):
        return part.image_url.url, part.image_url.detail, f"{place}.image_url.url"
    if part.file.file_id is not None:
        raise InvalidRequest(
            "Files are kept for batches only: send the file itself as file_data.",
            param=f"{place}.file.file_id",
            code="unsupported_content",
        )
    data = part.file.file_data
    if data is None:
        raise InvalidRequest("There is no file_data.", param=f"{place}.file.file_data", code="missing_file_data")
    if data[:5].lower() != "data:":
        data = f"data:;base64,{data}"
    return data, "auto", f"{place}.file.file_data"


def _check_output(request: ChatCompletionRequest, options: OcrOptions) -> None:
    """Refuse what a made-over answer can't have: logprobs are of the model's own words."""
    if options.include_page_images and not request.stream:
        raise InvalidRequest("include_page_images needs stream: true", param="ocr.include_page_images")
    if options.output == "raw":
        for name in ("table_format", "include_figures", "confidence"):
            if getattr(options, name):
                wanted = "markdown or blocks" if name == "table_format" else "blocks"
                raise InvalidRequest(f"{name} needs output: {wanted}", param=f"ocr.{name}")
        return
    if options.output != "blocks" and (options.include_figures or options.confidence):
        name = "include_figures" if options.include_figures else "confidence"
        raise InvalidRequest(f"{name} needs output: blocks", param=f"ocr.{name}")
    if request.logprobs:
        raise InvalidRequest("logprobs are given with ocr.output raw only.", param="logprobs")
    if options.output == "blocks" and request.temperature and (request.n or 1) > 1:
        raise InvalidRequest("With ocr.output blocks there is one choice.", param="n")


def mode_of_model(model: str, settings: Settings) -> ResolutionMode | None:
    """The mode that a model name asks for, `deepseek-ocr:tiny`; None for the plain name."""
    name, colon, mode = model.partition(":")
    if name != settings.MODEL_NAME or (colon and mode not in MODES):
        raise NotFound(
            f"The model {model!r} does not exist; GET /v1/models lists those that do.",
            param="model",
            code="model_not_found",
        )
    return MODES[mode] if colon else None


def mode_of(
    wanted: ResolutionMode | None, options: ReadingOptions, settings: Settings, *, prefix: str = OCR
) -> ResolutionMode:
    """The mode of one picture: the options' over the one `wanted` by model or detail over the server's default."""
    mode = wanted or settings.resolution_mode
    if options.mode is not None:
        mode = MODES[options.mode]
    try:
        return mode.with_changes(options.given(ReadingOptions.MODE_FIELDS))
    except ValueError as error:
        raise _option_error(error, prefix) from error


def _messages_to_read(messages: list[Message]) -> tuple[int, list[AnyPart], Message]:
    """The place and the parts of the message that gives the pictures, and the one that gives the text."""
    from_user = [(place, message) for place, message in enumerate(messages) if message.role == "user"]
    if not from_user:
        raise InvalidRequest("There is no user message.", param="messages")
    for place, message in reversed(from_user):
        if isinstance(message.content, list):
            _refuse_other_parts(place, message.content)
            if any(isinstance(part, ImagePart | FilePart) for part in message.content):
                return place, message.content, from_user[-1][1]
    raise InvalidRequest(
        "There is no picture to read. Send one as an image_url part of the user message, "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}, or a document as a file part.',
        param="messages",
        code="missing_image",
    )


def _refuse_other_parts(place: int, parts: list[AnyPart]) -> None:
    for number, part in enumerate(parts):
        if isinstance(part, OtherPart):
            raise InvalidRequest(
                f"Parts of type {part.type!r} can't be read; use text, image_url and file.",
                param=f"messages[{place}].content[{number}].type",
                code="unsupported_content",
            )


def _prompt(messages: list[Message], text_message: Message, settings: Settings) -> str:
    """The user's text; failing that, the last system message's; failing that, the default prompt."""
    systems = [message for message in messages if message.role in ("system", "developer")]
    for message in [text_message, *reversed(systems)]:
        if text := _text(message):
            return check_prompt(text, settings, param="messages")
    return settings.DEFAULT_PROMPT


def check_prompt(text: str, settings: Settings, *, param: str) -> str:
    """`text`, if it is not too long."""
    if len(text) > settings.MAX_PROMPT_CHARS:
        raise InvalidRequest(
            f"The prompt has {len(text)} characters; at most {settings.MAX_PROMPT_CHARS} are accepted.", param=param
        )
    return text


def _text(message: Message) -> str:
    """All text of a message. No trailing space: the model was trained without."""
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content if isinstance(part, TextPart)).strip()
    return (message.content or "").strip()


def guard_args(options: ReadingOptions, settings: Settings, *, prefix: str = OCR) -> dict[str, Any]:
    """The `extra_args` that set up the n-gram guard."""
    guard: dict[str, Any] = {"ngram_size": settings.NGRAM_SIZE, "window_size": settings.WINDOW_SIZE}
    guard |= options.given(ReadingOptions.GUARD_FIELDS)
    try:
        return Guard.from_args(guard).to_args()
    except ValueError as error:
        raise _option_error(error, prefix) from error


def _chat_params(request: ChatCompletionRequest, options: OcrOptions, settings: Settings) -> SamplingParams:
    logprobs = (request.top_logprobs or 0) if request.logprobs or options.confidence else None
    guard = guard_args(options, settings)
    try:
        return SamplingParams.from_optional(
            n=request.n if request.temperature else 1,
            temperature=request.temperature or 0.0,
            top_p=request.top_p,
            top_k=max(request.top_k or 0, 0),
            min_p=request.min_p or 0.0,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            stop=request.stop,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=bool(request.ignore_eos),
            max_tokens=request.most_tokens,
            min_tokens=request.min_tokens or 0,
            logprobs=logprobs,
            logit_bias=request.logit_bias,
            structured_outputs=None if options.output == "blocks" else _structured_outputs(request.response_format),
            skip_special_tokens=False,  # tables and grounding are special tokens
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
            extra_args=guard,
        )
    except VLLMClientError as error:
        raise invalid_parameters(error) from error
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _structured_outputs(response_format: ResponseFormat | None) -> StructuredOutputsParams | None:
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=response_format.json_schema.schema_)


def _blocks_json(response_format: ResponseFormat | None) -> BlocksJson | None:
    if response_format is None or response_format.type == "text":
        return None
    schema = response_format.json_schema
    return BlocksJson(schema.schema_ if schema is not None else None)


def _option_error(error: ValueError, prefix: str) -> InvalidRequest:
    """Errors of the engine side start with the name of the field."""
    message = str(error)
    return InvalidRequest(message, param=prefix + message.split(" ", 1)[0])
