"""The wire types of `POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from ocr_server.dialects.examples import PICTURE
from ocr_server.dialects.json_schema import SmallSchema
from ocr_server.dialects.messages import Message
from ocr_server.dialects.page_report import OcrExtension
from ocr_server.dialects.sampling import Sampling
from ocr_server.dialects.text_options import OcrOptions
from ocr_server.dialects.wire import Answer, Maybe, Wire, string_or_list

MAX_TOP_LOGPROBS = 20
LOGPROBS = "message.output_text.logprobs"
"""Value of `include` that asks for log probabilities."""


class InputMessage(Message):
    """A message of the conversation, also an earlier answer as this API gave it."""

    type: Literal["message"] = "message"


class OtherItem(BaseModel):
    """An item of any other type, such as a call of a tool in an agent's history. It is not read."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[str, Field(json_schema_extra={"not": {"enum": ["message"]}})]


def _item_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<message>" if kind in (None, "message") else "<other>"


# Tags in angle brackets are left out of the parameter's name in an error (`UNION_TAGS`).
Item = Annotated[
    Annotated[InputMessage, Tag("<message>")] | Annotated[OtherItem, Tag("<other>")], Discriminator(_item_kind)
]
Input = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Item], Field(max_length=1000, fail_fast=True), Tag("<list>")],
    Discriminator(string_or_list),
]


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[SmallSchema | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise PydanticCustomError(
                "schema", "schema is required with type json_schema and not allowed with other types"
            )
        return self


class Text(Wire):
    format: TextFormat | None = None
    """`json_object` and `json_schema` constrain what the model generates and apply to a single page. With `ocr.output:
    blocks` they return the blocks of all pages as JSON instead."""
    verbosity: str | None = None
    """Accepted without effect."""


class Reasoning(Wire):
    effort: Literal["none"] | None = None
    """The model does not reason."""


class ResponseStreamOptions(Wire):
    include_obfuscation: bool | None = None
    """Accepted without effect."""


_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""Parameter of Chat Completions → its name in this API."""

_CHAT_ONLY = (
    *("n", "logprobs", "logit_bias", "min_tokens", "ignore_eos", "stop_token_ids", "include_stop_str_in_output"),
    *("bad_words", "allowed_token_ids", "repetition_detection", "vllm_xargs", "mm_processor_kwargs", "prompt_logprobs"),
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("return_token_ids", "return_tokens_as_token_ids"),
)

_REFUSED = {
    "previous_response_id": "the server stores no responses; send the whole conversation as input",
    "conversation": "the server stores no conversations; send the whole conversation as input",
    "prompt": "the server stores no prompts; send the text as instructions or input",
    "audio": "DeepSeek-OCR has no audio output",
    "modalities": "DeepSeek-OCR answers in text only",
    **{name: f"in the Responses API it is called {new}" for name, new in _MOVED.items()},
    **dict.fromkeys(_CHAT_ONLY, "the Responses API does not have it; use /v1/chat/completions"),
}
"""Parameter that would change the answer but is not supported → the reason."""


class ResponsesRequest(Sampling):
    """OpenAI's request for a response, with further options of vLLM and of this server.

    Nothing is stored. Other fields, such as `store` or `truncation`, have no effect. The response header
    `x-ignored-parameters` names them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "deepseek-ocr",
                    "input": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "input_image", "image_url": PICTURE},
                                {"type": "input_text", "text": "Free OCR."},
                            ],
                        }
                    ],
                }
            ]
        }
    )

    REFUSED: ClassVar = _REFUSED
    NEUTRAL: ClassVar = {**dict.fromkeys(_CHAT_ONLY, (False,)), "n": (1,), "modalities": (["text"],)}
    EMPTY_IS_ABSENT: ClassVar = True

    model: str
    input: Input
    """A text, or the items of a conversation. The pictures are those of the last user message that has any, and the
    prompt is the text of the last user message that has any."""
    instructions: str | None = None
    """A system message. It is the prompt if it is one of the model's own prompts and no user message has text."""
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of tokens to generate for each page, clamped to what the context leaves."""
    text: Text | None = None
    include: Annotated[list[str] | None, Field(max_length=100, fail_fast=True)] = None
    """`message.output_text.logprobs` adds the log probabilities of the tokens. Other values have no effect."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    """Number of alternatives for each token. Values above 0 ask for log probabilities."""
    stream: bool = False
    """Answer with server-sent events."""
    stream_options: ResponseStreamOptions | None = None
    background: Literal[False] = False
    """Responses in the background are not supported; use batches."""
    tools: Annotated[list[Any] | None, Field(max_length=1000)] = None
    """Functions are accepted, but never called."""
    tool_choice: Any = None
    """`auto` or `none`: the model cannot call tools."""
    parallel_tool_calls: bool | None = None
    """Accepted without effect."""
    reasoning: Reasoning | None = None
    metadata: Annotated[dict[str, Any] | None, Field(max_length=1000)] = None
    """Returned with the response if it is small."""

    ocr: OcrOptions | None = None

    @property
    def text_format(self) -> TextFormat | None:
        """The structure that the answer is to have; None for a text."""
        wanted = self.text.format if self.text is not None else None
        return None if wanted is None or wanted.type == "text" else wanted

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities of tokens are wanted."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


class ResponsesTemplate(ResponsesRequest):
    """A request without a picture, which comes from a batch's file."""

    input: Input = ""


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseTopLogprob(Answer):
    token: str
    bytes: list[int]
    logprob: float


class ResponseTokenLogprob(ResponseTopLogprob):
    top_logprobs: list[ResponseTopLogprob]


class OutputText(Answer):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[()] = ()
    """Always empty."""
    logprobs: tuple[ResponseTokenLogprob, ...] = ()
    """The log probabilities of the tokens, if requested."""


class OutputMessage(Answer):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]
    ocr: Maybe[OcrExtension] = None
    """Reports on the pages. Present with documents, with several pages, and with an `ocr.output` other than `raw`. In
    the last event of a stream they have no figures, which were in the events before."""


class ResponseInputTokensDetails(Answer):
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    image_tokens: int
    """Tokens of the input that stand for pictures."""


class ResponseOutputTokensDetails(Answer):
    reasoning_tokens: int = 0


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: ResponseInputTokensDetails
    output_tokens: int
    output_tokens_details: ResponseOutputTokensDetails = ResponseOutputTokensDetails()
    total_tokens: int


class NoReasoning(Answer):
    effort: None = None
    summary: None = None


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(Answer):
    code: str
    message: str


class ResponseObject(Answer):
    """OpenAI's response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    """Unix time in seconds."""
    completed_at: int | None = None
    """Unix time in seconds. Present if the status is `completed`."""
    status: Status
    """`completed`; `incomplete` if a page is cut off, repeats itself or cannot be read; `failed` in a stream that fails
    after it has begun."""
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    """Why the response is incomplete. The reports on the pages say more."""
    model: str
    output: tuple[OutputMessage, ...] = ()
    """One message, with the text of all pages."""
    usage: ResponseUsage | None = None

    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float
    top_p: float
    text: dict[str, Any]
    metadata: dict[str, Any]
    background: Literal[False] = False
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: NoReasoning = NoReasoning()
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    """Responses are not stored."""
    tool_choice: Literal["auto", "none"] = "auto"
    tools: tuple[()] = ()
    """Always empty: the model is offered no tools."""
    top_logprobs: int = 0
    truncation: Literal["disabled"] = "disabled"


class ResponseEvent(Answer):
    """An event of a stream. Further fields depend on its type, as in OpenAI's API."""

    type: str
    """Such as `response.created`, `response.output_text.delta` or `response.completed`; `error` if the stream fails."""
    sequence_number: int
