"""The parameters that vLLM adds to a chat request, under vLLM's names."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ocr_server.dialects.json_schema import MAX_SCHEMA_CHARS, SmallSchema
from ocr_server.dialects.sampling import Sampling
from ocr_server.dialects.wire import ModeName, Wire
from ocr_server.reading.decoding import LoopDetection

MAX_GRAMMAR_CHARS = 20_000
MAX_CHOICE_CHARS = 1000
MAX_LOOP = 128
"""Maximum length of a repeated pattern, in tokens. The engine compares each length after each token."""

_NEEDS_TEMPLATE = "the model has no chat template"
_NO_TRUNCATION = "prompts are not truncated"
REFUSED: dict[str, str] = {
    "use_beam_search": "the engine has no beam search",
    "best_of": "only the n choices themselves are generated",
    "length_penalty": "the engine has no beam search",
    "echo": "the answer cannot repeat the prompt",
    "continue_final_message": "the answer cannot continue a message of the assistant",
    "add_generation_prompt": _NEEDS_TEMPLATE,
    "add_special_tokens": _NEEDS_TEMPLATE,
    "chat_template": _NEEDS_TEMPLATE,
    "documents": "the model reads pictures; send documents as file parts",
    "truncate_prompt_tokens": _NO_TRUNCATION,
    "prompt_logprobs": "they would take gigabytes of memory for a page; use logprobs",
    "logprob_token_ids": "use logprobs with top_logprobs",
    "logits_processors": "requests cannot name code to run",
    "media_io_kwargs": "use the ocr options on how pages are rendered",
    "return_prompt_text": "the prompt has no text for the picture; use return_token_ids",
    "watermarking": "answers have no watermark",
    "kv_transfer_params": "the server is not disaggregated",
    "ec_transfer_params": "the server is not disaggregated",
}
"""Parameter of vLLM that would change the answer but is not supported → the reason."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "best_of": (1,),
    "length_penalty": (1,),
    "echo": (False,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "return_prompt_text": (False,),
    "watermarking": (False,),
}


def _token_ids(value: Any) -> Any:
    """Return a list that is written as text: `"[128821, 128822]"` or `"128821,128822"`."""
    if isinstance(value, str) and len(value) <= MAX_GRAMMAR_CHARS:
        return [part.strip() for part in value.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()]
    return value


def _parsed_json(value: Any) -> Any:
    """Return a schema that is written as text."""
    if isinstance(value, str):
        try:
            return json.loads(value[: MAX_SCHEMA_CHARS + 1])
        except (ValueError, RecursionError):
            raise PydanticCustomError("schema", "the text is not a JSON schema") from None
    return value


Number = Annotated[int, Field(strict=False)]
"""An integer, also as text: command lines and templates write it so."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=10_000, fail_fast=True)]
Schema = Annotated[SmallSchema, BeforeValidator(_parsed_json)]
Grammar = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]],
    Field(min_length=1, max_length=100, fail_fast=True),
]


class VllmXargs(Wire):
    """The options of vLLM's n-gram guard. Those in `ocr` take precedence."""

    ngram_size: Number | None = None
    window_size: Number | None = None
    whitelist_token_ids: (
        Annotated[list[Number], Field(max_length=1000, fail_fast=True), BeforeValidator(_token_ids)] | None
    ) = None


class MmProcessorKwargs(Wire):
    """The resolution mode, as this server's vLLM plugin takes it. Options in `ocr` take precedence."""

    mode: ModeName | None = None
    base_size: int | None = None
    image_size: int | None = None
    crop_mode: bool | None = None
    min_crops: int | None = None
    max_crops: int | None = None


class StructuredOutputs(Wire):
    """What the model's answer has to follow: exactly one of these."""

    REFUSED: ClassVar = dict.fromkeys(("structural_tag", "whitespace_pattern", "disable_additional_properties"), "")
    NEUTRAL: ClassVar = {"disable_additional_properties": (False,), "json_object": (False,)}

    json_: Annotated[Schema | None, Field(alias="json")] = None
    regex: Grammar | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None


class RepetitionDetection(Wire):
    """Ends an answer that repeats itself, instead of the server's own detection."""

    max_pattern_size: Annotated[int, Field(ge=0, le=MAX_LOOP)] = 0
    min_pattern_size: Annotated[int, Field(ge=0, le=MAX_LOOP)] = 0
    min_count: Annotated[int, Field(ge=0, le=1000)] = 0

    @property
    def wanted(self) -> LoopDetection | None:
        """What to detect; None if a size of 0 leaves it to the server."""
        if self.max_pattern_size == 0:
            return None
        return LoopDetection(max(1, self.min_pattern_size), self.max_pattern_size, self.min_count)


class VllmExtras(Sampling):
    """vLLM's additions to OpenAI's chat completion request."""

    min_tokens: Annotated[int | None, Field(ge=0)] = None
    """vLLM: minimum number of tokens before the answer can end."""
    ignore_eos: bool | None = None
    """vLLM: continue after the end-of-sequence token."""
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=16, fail_fast=True)] | None
    ) = None
    """vLLM: ids of further tokens that end the answer."""
    include_stop_str_in_output: bool = False
    """vLLM: end the answer after the text of `stop` that was found, instead of before it."""
    bad_words: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=100, fail_fast=True)]
        | None
    ) = None
    """vLLM: texts that the answer must not contain."""
    allowed_token_ids: TokenIds | None = None
    """vLLM: ids of the only tokens that may be generated."""
    repetition_detection: RepetitionDetection | None = None
    """vLLM: when to end an answer that repeats itself."""
    vllm_xargs: VllmXargs | None = None
    """vLLM: settings of the n-gram guard."""
    mm_processor_kwargs: MmProcessorKwargs | None = None
    """vLLM: settings of the resolution mode."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM: what the model's answer has to follow. It applies to a single page."""
    guided_json: Schema | None = None
    """Older name of `structured_outputs.json`, as are the three below of the others."""
    guided_regex: Grammar | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    return_token_ids: bool = False
    """vLLM: return the ids of the prompt's and the answer's tokens. It applies to a single page."""
    return_tokens_as_token_ids: bool = False
    """vLLM: with `logprobs`, write tokens as `token_id:…`."""

    @property
    def constraints(self) -> list[tuple[str, str, Any]]:
        """What the model's answer has to follow: the parameter, the field of `Decoding`, and the value."""
        structured = self.structured_outputs or StructuredOutputs()
        given = [
            ("structured_outputs.json", "json_schema", structured.json_),
            ("structured_outputs.regex", "regex", structured.regex),
            ("structured_outputs.choice", "choice", structured.choice),
            ("structured_outputs.grammar", "grammar", structured.grammar),
            ("structured_outputs.json_object", "json_object", structured.json_object),
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
        ]
        return [each for each in given if each[2] is not None]
