"""Turns a chat request into a plan. Pure: nothing is fetched or decoded here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr_server.dialects.blocks_json import BlocksJson
from ocr_server.dialects.chat.wire import (
    AnyPart,
    ChatCompletionRequest,
    FilePart,
    ImagePart,
    Message,
    OtherPart,
    TextPart,
)
from ocr_server.dialects.options import SharedOptions, check_prompt, mode_of_model
from ocr_server.dialects.text_options import PREFIX, OcrOptions, check_output
from ocr_server.dialects.validation import MAX_NAME_CHARS
from ocr_server.errors import InvalidRequest
from ocr_server.intake.source import Base64, Content, Url
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats import FORMATS, Format
from ocr_server.output.formats.blocks import BLOCKS
from ocr_server.plan import PageLimit, ReadPlan
from ocr_server.reading.decoding import Decoding

if TYPE_CHECKING:
    from config import Settings

MAX_SCORES_OF_PAGES = 128
"""Maximum number of pages times log probabilities for each token. They are kept until the answer ends."""
DETAIL_MODES = {"low": "tiny", "high": "gundam"}
DECODING_PARAMETERS = {"json_schema": "response_format", "json_object": "response_format", "prompt": "messages"}
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
    written = FORMATS[options.output]
    base_mode = mode_of_model(request.model, settings)
    shared = SharedOptions(options, options.pages, settings, prefix=PREFIX, first_page=1)
    if content is None:
        place, parts, text_message = _messages_to_read(request.messages)
        to_read = [(number, part) for number, part in enumerate(parts) if isinstance(part, ImagePart | FilePart)]
        sources = []
        for number, part in to_read:
            file, detail, parameter = _content(part, f"messages[{place}].content[{number}]")
            mode = base_mode or settings.family.modes.get(DETAIL_MODES.get(detail, ""))
            sources.append(shared.source(file, parameter, mode=mode, alone=len(to_read) == 1))
    else:
        text_message = _message_of_template(request.messages)
        sources = [shared.source(content, "input_file_id", mode=base_mode)]
    if len(sources) > settings.MAX_IMAGES:
        raise InvalidRequest(
            f"The request has {len(sources)} pictures; the limit is {settings.MAX_IMAGES}.", param="messages"
        )
    _check_output(request, options, written)
    blocks_json(request)  # raises what is wrong with its schema
    return ReadPlan(
        family=settings.family,
        sources=tuple(sources),
        prompt=_prompt(request.messages, text_message, settings),
        decoding=_decoding(request, options, shared),
        artifacts=written.artifacts | Artifacts(figures=options.include_figures),
        show_pages=options.include_page_images,
        page_limit=_page_limit(request),
        decoding_parameters=DECODING_PARAMETERS,
    )


def blocks_json(request: ChatCompletionRequest) -> BlocksJson | None:
    """Return what writes the blocks as JSON content; None if the content is text. Raises InvalidRequest."""
    wanted = request.response_format
    if not _writes_blocks(request) or wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema.schema_ if wanted.json_schema is not None else None
    return BlocksJson(schema, param="response_format.json_schema.schema")


def copies(request: ChatCompletionRequest) -> int:
    """Return how many choices repeat one answer of the engine: with greedy decoding, all `n` choices are the same."""
    return 1 if request.temperature else request.n or 1


def _writes_blocks(request: ChatCompletionRequest) -> bool:
    return request.ocr is not None and FORMATS[request.ocr.output] is BLOCKS


def _has_grammar(request: ChatCompletionRequest) -> bool:
    """Whether the model itself has to follow `response_format`."""
    wanted = request.response_format
    return wanted is not None and wanted.type != "text" and not _writes_blocks(request)


def _page_limit(request: ChatCompletionRequest) -> PageLimit | None:
    if _has_grammar(request):
        return PageLimit("response_format", 1)
    if request.logprobs:
        return PageLimit("logprobs", MAX_SCORES_OF_PAGES // request.scores)
    return None


def _content(part: ImagePart | FilePart, place: str) -> tuple[Content, str, str]:
    """Return the content of a part, its `detail`, and the name of the parameter that gave the content."""
    if isinstance(part, ImagePart):
        return Url(part.image_url.url), part.image_url.detail, f"{place}.image_url.url"
    if part.file.file_id is not None:
        raise InvalidRequest(
            "Uploaded files can only be used in batches; send the file itself as file_data.",
            param=f"{place}.file.file_id",
            code="unsupported_content",
        )
    data = part.file.file_data
    if data is None:
        raise InvalidRequest("file_data is missing.", param=f"{place}.file.file_data", code="missing_file_data")
    content = Url(data) if data[:5].lower() == "data:" else Base64(data)
    return content, "auto", f"{place}.file.file_data"


def _check_output(request: ChatCompletionRequest, options: OcrOptions, written: Format) -> None:
    """Refuse options that have no effect on this output format or that it does not support."""
    check_output(options, written, stream=request.stream)
    if request.logprobs and not written.verbatim:
        raise InvalidRequest("logprobs need ocr.output: raw.", param="logprobs")
    if written.artifacts and request.temperature and (request.n or 1) > 1:
        raise InvalidRequest(f"With ocr.output: {written.name} and a temperature above 0, n must be 1.", param="n")


def _messages_to_read(messages: list[Message]) -> tuple[int, list[AnyPart], Message]:
    """Return the index and the parts of the message with the pictures, and the message with the text."""
    from_user = [(place, message) for place, message in enumerate(messages) if message.role == "user"]
    if not from_user:
        raise InvalidRequest("The request has no user message.", param="messages")
    for place, message in reversed(from_user):
        if isinstance(message.content, list):
            _refuse_other_parts(place, message.content)
            if any(isinstance(part, ImagePart | FilePart) for part in message.content):
                return place, message.content, from_user[-1][1]
    raise InvalidRequest(
        "The request has no picture to read. Send one as an image_url part of the user message, "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}, or a document as a file part.',
        param="messages",
        code="missing_image",
    )


def _refuse_other_parts(place: int, parts: list[AnyPart]) -> None:
    for number, part in enumerate(parts):
        if isinstance(part, OtherPart):
            raise InvalidRequest(
                f"Parts of type {part.type[:MAX_NAME_CHARS]!r} are not supported; use text, image_url and file.",
                param=f"messages[{place}].content[{number}].type",
                code="unsupported_content",
            )


def _message_of_template(messages: list[Message]) -> Message:
    """Return the message with the text, in a request whose picture comes from a batch's file."""
    for place, message in enumerate(messages):
        if message.role == "user" and isinstance(message.content, list):
            _refuse_other_parts(place, message.content)
            if any(isinstance(part, ImagePart | FilePart) for part in message.content):
                raise InvalidRequest(
                    "The requests of a batch of a PDF or zip can have no pictures of their own.", param="messages"
                )
    return next((message for message in reversed(messages) if message.role == "user"), Message(role="user"))


def _prompt(messages: list[Message], text_message: Message, settings: Settings) -> str:
    """Return the user's text. Without any, return that of the last system message with text, or the default prompt."""
    systems = [message for message in messages if message.role in ("system", "developer")]
    for message in [text_message, *reversed(systems)]:
        if text := _text(message):
            return check_prompt(text, settings, param="messages")
    return settings.DEFAULT_PROMPT


def _text(message: Message) -> str:
    """Return all text of a message, without white space around it, as the model was trained."""
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content if isinstance(part, TextPart)).strip()
    return (message.content or "").strip()


def _decoding(request: ChatCompletionRequest, options: OcrOptions, shared: SharedOptions) -> Decoding:
    wanted = request.response_format if _has_grammar(request) else None
    schema = wanted.json_schema if wanted is not None else None
    return Decoding(
        n=(request.n or 1) if request.temperature else 1,
        temperature=request.temperature or 0.0,
        top_p=request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=tuple(request.stop) if isinstance(request.stop, list) else request.stop,
        stop_token_ids=None if request.stop_token_ids is None else tuple(request.stop_token_ids),
        ignore_eos=bool(request.ignore_eos),
        max_tokens=request.most_tokens,
        min_tokens=request.min_tokens or 0,
        logprobs=(request.top_logprobs or 0) if request.logprobs or options.confidence else None,
        logit_bias=request.logit_bias,
        json_schema=schema.schema_ if schema is not None else None,
        json_object=wanted is not None and schema is None,
        guard=shared.guard(),
        stream=request.stream,
    )
