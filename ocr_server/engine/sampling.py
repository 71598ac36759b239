"""Converts our decoding options to vLLM's sampling parameters, and vLLM's validation errors to ours."""

from __future__ import annotations

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from ocr_server.errors import DecodingError
from ocr_server.reading.decoding import Decoding, LoopDetection

SHORTEST_LOOP, LONGEST_LOOP = 48, 96
"""Lengths of repeated text that are detected, in tokens.

The engine compares every length in this range after each token. A loop with a shorter period also repeats with each
multiple of it, so all periods up to 96 tokens are found.
"""
LOOP_REPEATS = 4
"""How often the text must have been repeated."""


def sampling_params(decoding: Decoding) -> SamplingParams:
    """Return vLLM's parameters for `decoding`.

    Raises:
        DecodingError: An option is not valid, by vLLM's own validation.
    """
    try:
        params = SamplingParams.from_optional(
            n=decoding.n,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            min_p=decoding.min_p,
            presence_penalty=decoding.presence_penalty,
            frequency_penalty=decoding.frequency_penalty,
            repetition_penalty=decoding.repetition_penalty,
            seed=decoding.seed,
            stop=list(decoding.stop) if isinstance(decoding.stop, tuple) else decoding.stop,
            stop_token_ids=None if decoding.stop_token_ids is None else list(decoding.stop_token_ids),
            include_stop_str_in_output=decoding.include_stop,
            bad_words=list(decoding.bad_words),
            allowed_token_ids=None if decoding.allowed_token_ids is None else list(decoding.allowed_token_ids),
            ignore_eos=decoding.ignore_eos,
            max_tokens=decoding.max_tokens,
            min_tokens=decoding.min_tokens,
            logprobs=decoding.logprobs,
            logit_bias=None if decoding.logit_bias is None else dict(decoding.logit_bias),
            structured_outputs=_structured_outputs(decoding),
            skip_special_tokens=False,  # tables and grounding are special tokens
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.DELTA if decoding.stream else RequestOutputKind.FINAL_ONLY,
            extra_args=decoding.guard.to_args(),
        )
    except VLLMClientError as error:
        raise refusal(error, decoding) from error
    except ValueError as error:
        raise DecodingError(str(error), field="") from error
    if decoding.detect_loops or decoding.loops is not None:
        loops = decoding.loops or LoopDetection(SHORTEST_LOOP, LONGEST_LOOP, LOOP_REPEATS)
        params.repetition_detection = RepetitionDetectionParams(
            min_pattern_size=loops.shortest, max_pattern_size=loops.longest, min_count=loops.repeats
        )
    return params


def refusal(error: VLLMClientError, decoding: Decoding) -> DecodingError:
    """Return vLLM's validation error as ours: its message without additions, and the name of the option if known."""
    field = getattr(error, "parameter", None)
    if field is None and decoding.is_structured:
        names = ("json_object", "choice", "regex", "grammar", "json_schema")
        field = next(name for name in names if getattr(decoding, name))  # vLLM names no parameter for a grammar
    return DecodingError(str(error.args[0]) if error.args else str(error), field=field or "")


def _structured_outputs(decoding: Decoding) -> StructuredOutputsParams | None:
    if decoding.json_schema is not None:
        return StructuredOutputsParams(json=dict(decoding.json_schema))
    if decoding.choice is not None:
        return StructuredOutputsParams(choice=list(decoding.choice))
    if decoding.regex is not None:
        return StructuredOutputsParams(regex=decoding.regex)
    if decoding.grammar is not None:
        return StructuredOutputsParams(grammar=decoding.grammar)
    return StructuredOutputsParams(json_object=True) if decoding.json_object else None
