"""The wire types of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ocr_server.dialects.chat import vllm_extras
from ocr_server.dialects.chat.response_format import ResponseFormat
from ocr_server.dialects.chat.vllm_extras import VllmExtras
from ocr_server.dialects.examples import PICTURE
from ocr_server.dialects.messages import Message
from ocr_server.dialects.page_report import OcrExtension, PageOpened
from ocr_server.dialects.text_options import OcrOptions
from ocr_server.dialects.wire import Answer, Maybe, Wire

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_SCORES = 32
"""Maximum number of log probabilities for each token of a page: `n` choices, each with itself and its alternatives."""


class StreamOptions(Wire):
    include_usage: bool = False
    """Send the usage in a final chunk with `choices: []`."""
    include_obfuscation: bool | None = None
    """Accepted without effect."""
    continuous_usage_stats: bool = False
    """vLLM: with `include_usage`, send the usage so far in each chunk."""


_REFUSED: dict[str, str] = {
    **vllm_extras.REFUSED,
    "tool_choice": "DeepSeek-OCR cannot call tools; for structured fields, use response_format",
    "function_call": "DeepSeek-OCR cannot call functions; for structured fields, use response_format",
    "audio": "DeepSeek-OCR has no audio output",
    "modalities": "DeepSeek-OCR answers in text only",
    "web_search_options": "DeepSeek-OCR cannot search the web",
    "reasoning_effort": "DeepSeek-OCR does not reason",
    "verbosity": "DeepSeek-OCR has no verbosity setting",
}
"""Parameter of OpenAI's or vLLM's API that would change the answer but is not supported → the reason."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **vllm_extras.NEUTRAL,
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""Values of these parameters that ask for nothing. They are accepted."""


class ChatCompletionRequest(VllmExtras):
    """OpenAI's chat completion request, with further options of vLLM and of this server.

    Other fields, such as `user`, `metadata` or `store`, have no effect. The response header `x-ignored-parameters`
    names them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "deepseek-ocr",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": PICTURE}},
                                {"type": "text", "text": "Free OCR."},
                            ],
                        }
                    ],
                }
            ]
        }
    )

    REFUSED: ClassVar = _REFUSED
    NEUTRAL: ClassVar = NEUTRAL
    EMPTY_IS_ABSENT: ClassVar = True

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)]
    """The pictures are those of the last user message that has any, and the prompt is the text of the last user message
    that has any."""
    stream: bool = False
    """Answer with server-sent events."""
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of tokens to generate for each page, clamped to what the context leaves."""
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    """Newer name of `max_tokens`. It takes precedence if both are given."""
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    """Number of choices in the answer."""
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1000, fail_fast=True)] | None
    ) = None
    """Token id → value that is added to the logit of the token. At most 1,000 tokens."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    response_format: ResponseFormat | None = None
    """`json_object` and `json_schema` constrain what the model generates and apply to a single page. With `ocr.output:
    blocks` they return the blocks of all pages as JSON instead."""

    ocr: OcrOptions | None = None

    @model_validator(mode="after")
    def _parameters_agree(self) -> ChatCompletionRequest:
        """Check parameters that depend on each other. The type of each error is the name of the parameter."""
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs: true")
        if self.logprobs and self.scores > MAX_SCORES:
            raise PydanticCustomError(
                "top_logprobs",
                "n times top_logprobs + 1 must not exceed {limit}, but is {scores}",
                {"limit": MAX_SCORES, "scores": self.scores},
            )
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options needs stream: true")
        names = [parameter for parameter, _, _ in self.constraints]
        if self.wants_json:
            names.insert(0, "response_format")
        if len(names) > 1:
            raise PydanticCustomError(
                names[-1].partition(".")[0],
                "the answer can follow only one of {names}",
                {"names": ", ".join(names)},
            )
        loops = self.repetition_detection and self.repetition_detection.wanted
        if loops and (loops.shortest > loops.longest or loops.repeats < 2):
            raise PydanticCustomError(
                "repetition_detection",
                "repetition_detection needs min_pattern_size up to max_pattern_size, and a min_count of at least 2",
            )
        if self.most_tokens is not None and (self.min_tokens or 0) > self.most_tokens:
            raise PydanticCustomError("min_tokens", "min_tokens must not exceed max_tokens")
        return self

    @property
    def most_tokens(self) -> int | None:
        """The token limit, under whichever name it was given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_json(self) -> bool:
        """Whether `response_format` asks for JSON."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def scores(self) -> int:
        """Number of log probabilities for each token of a page, if `logprobs` are wanted."""
        return (self.n or 1) * ((self.top_logprobs or 0) + 1)


class ChatTemplate(ChatCompletionRequest):
    """A request without a picture, which comes from a batch's file."""

    messages: Annotated[
        list[Message],
        Field(min_length=1, max_length=1000, fail_fast=True, default_factory=lambda: [Message(role="user")]),
    ]


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    content: list[TokenLogprob] | None
    refusal: None = None


FinishReason = Literal["stop", "length"]


class AssistantMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    ocr: Maybe[OcrExtension] = None
    """Reports on the pages. Present with documents, with several pages, and with an `ocr.output` other than `raw`."""


class Choice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason
    token_ids: Maybe[list[int]] = None


class PromptTokensDetails(Answer):
    cached_tokens: int = 0
    image_tokens: int
    """Tokens of the prompt that stand for pictures."""


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    prompt_token_ids: Maybe[list[int]] = None


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    ocr: Maybe[OcrExtension] = None
    """After the text of a page: the report on it."""
    ocr_page: Maybe[PageOpened] = None
    """Before the text of a page, with `ocr.include_page_images`: its picture."""


class ChunkChoice(Answer):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: Maybe[list[int]] = None


class ChatCompletionChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
    prompt_token_ids: Maybe[list[int]] = None
