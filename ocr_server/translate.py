"""A chat request → what to read, and how to decode it. Pure: nothing is fetched or decoded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from deepseek_ocr.modes import MODES, ResolutionMode
from deepseek_ocr.no_repeat_ngram import Guard
from ocr_server.errors import InvalidRequest, NotFound, invalid_parameters
from ocr_server.intake.prepare import ImageSource
from ocr_server.schemas.chat import (
    AnyPart,
    ChatCompletionRequest,
    ImagePart,
    Message,
    OcrOptions,
    OtherPart,
    ResponseFormat,
    TextPart,
)

if TYPE_CHECKING:
    from config import Settings

DETAIL_MODES = {"low": "tiny", "high": "gundam"}


@dataclass(frozen=True)
class Reading:
    """A request, understood."""

    model: str
    images: list[ImageSource]
    prompt: str
    params: SamplingParams
    """Still without the clamp to the context, which depends on each picture."""
    copies: int
    """How often the answer is given: `n`, where greedy decoding makes all choices the same."""
    single_page: bool
    """Whether the answer makes sense for one page only (structured output)."""


def translate(request: ChatCompletionRequest, settings: Settings) -> Reading:
    """Understand a chat request.

    Raises:
        NotFound: there is no such model.
        InvalidRequest: there is no picture, or an option is not legal.
    """
    base_mode = _mode_of_model(request.model, settings)
    options = request.ocr or OcrOptions()
    place, parts, text_message = _messages_to_read(request.messages)
    images = [
        ImageSource(
            url=part.image_url.url,
            mode=_mode(part.image_url.detail, base_mode, options, settings),
            param=f"messages[{place}].content[{number}].image_url.url",
        )
        for number, part in enumerate(parts)
        if isinstance(part, ImagePart)
    ]
    if len(images) > settings.MAX_IMAGES:
        raise InvalidRequest(
            f"A request can have at most {settings.MAX_IMAGES} pictures, not {len(images)}.", param="messages"
        )
    return Reading(
        model=request.model,
        images=images,
        prompt=_prompt(request.messages, text_message, settings),
        params=_sampling_params(request, options, settings),
        copies=1 if request.temperature else request.n or 1,
        single_page=request.response_format is not None and request.response_format.type != "text",
    )


def _mode_of_model(model: str, settings: Settings) -> ResolutionMode | None:
    """The mode that a model name asks for, `deepseek-ocr:tiny`; None for the plain name."""
    name, colon, mode = model.partition(":")
    if name != settings.MODEL_NAME or (colon and mode not in MODES):
        raise NotFound(
            f"The model {model!r} does not exist; GET /v1/models lists those that do.",
            param="model",
            code="model_not_found",
        )
    return MODES[mode] if colon else None


def _mode(detail: str, of_model: ResolutionMode | None, options: OcrOptions, settings: Settings) -> ResolutionMode:
    """The mode of one picture: `ocr` options over the model's name over `detail` over the default."""
    mode = of_model or MODES.get(DETAIL_MODES.get(detail, ""), settings.resolution_mode)
    if options.mode is not None:
        mode = MODES[options.mode]
    try:
        return mode.with_changes(options.given(OcrOptions.MODE_FIELDS))
    except ValueError as error:
        raise _option_error(error) from error


def _messages_to_read(messages: list[Message]) -> tuple[int, list[AnyPart], Message]:
    """The place and the parts of the message that gives the pictures, and the one that gives the text."""
    from_user = [(place, message) for place, message in enumerate(messages) if message.role == "user"]
    if not from_user:
        raise InvalidRequest("There is no user message.", param="messages")
    for place, message in reversed(from_user):
        if isinstance(message.content, list):
            _refuse_other_parts(place, message.content)
            if any(isinstance(part, ImagePart) for part in message.content):
                return place, message.content, from_user[-1][1]
    raise InvalidRequest(
        "There is no picture to read. Send one as an image_url part of the user message: "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}.',
        param="messages",
        code="missing_image",
    )


def _refuse_other_parts(place: int, parts: list[AnyPart]) -> None:
    for number, part in enumerate(parts):
        if isinstance(part, OtherPart):
            raise InvalidRequest(
                f"Parts of type {part.type!r} can't be read; use text and image_url.",
                param=f"messages[{place}].content[{number}].type",
                code="unsupported_content",
            )


def _prompt(messages: list[Message], text_message: Message, settings: Settings) -> str:
    """The user's text; failing that, the last system message's; failing that, the default prompt."""
    systems = [message for message in messages if message.role in ("system", "developer")]
    for message in [text_message, *reversed(systems)]:
        if text := _text(message):
            if len(text) > settings.MAX_PROMPT_CHARS:
                raise InvalidRequest(
                    f"The prompt has {len(text)} characters; at most {settings.MAX_PROMPT_CHARS} are accepted.",
                    param="messages",
                )
            return text
    return settings.DEFAULT_PROMPT


def _text(message: Message) -> str:
    """All text of a message. No trailing space: the model was trained without."""
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content if isinstance(part, TextPart)).strip()
    return (message.content or "").strip()


def _sampling_params(request: ChatCompletionRequest, options: OcrOptions, settings: Settings) -> SamplingParams:
    guard: dict[str, Any] = {"ngram_size": settings.NGRAM_SIZE, "window_size": settings.WINDOW_SIZE}
    guard |= options.given(OcrOptions.GUARD_FIELDS)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    try:
        checked = Guard.from_args(guard)
    except ValueError as error:
        raise _option_error(error) from error
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
            structured_outputs=_structured_outputs(request.response_format),
            skip_special_tokens=False,  # tables and grounding are special tokens
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
            extra_args=checked.to_args(),
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


def _option_error(error: ValueError) -> InvalidRequest:
    """Errors of the engine side start with the name of the field."""
    message = str(error)
    return InvalidRequest(message, param=f"ocr.{message.split(' ', 1)[0]}")
