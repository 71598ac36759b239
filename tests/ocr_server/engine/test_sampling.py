"""Our decoding options as vLLM's sampling parameters, and vLLM's refusals as our errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from deepseek_ocr.guard import Guard
from ocr_server.engine.sampling import LONGEST_LOOP, LOOP_REPEATS, SHORTEST_LOOP, refusal, sampling_params
from ocr_server.errors import DecodingError
from ocr_server.reading.decoding import Decoding, LoopDetection

pytestmark = pytest.mark.engine

SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}}

FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_tokens": (12, {"max_tokens": 12}),
    "n": (2, {"n": 2}),
    "temperature": (0.7, {"temperature": 0.7}),
    "top_p": (0.8, {"top_p": 0.8}),
    "top_k": (5, {"top_k": 5}),
    "min_p": (0.1, {"min_p": 0.1}),
    "presence_penalty": (0.5, {"presence_penalty": 0.5}),
    "frequency_penalty": (0.25, {"frequency_penalty": 0.25}),
    "repetition_penalty": (1.5, {"repetition_penalty": 1.5}),
    "seed": (7, {"seed": 7}),
    "stop": (("a", "b"), {"stop": ["a", "b"]}),
    "stop_token_ids": ((3, 4), {"stop_token_ids": [3, 4]}),
    "include_stop": (True, {"include_stop_str_in_output": True}),
    "bad_words": (("a", "b"), {"bad_words": ["a", "b"]}),
    "allowed_token_ids": ((3, 4), {"allowed_token_ids": [3, 4]}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_tokens": (3, {"min_tokens": 3}),
    "logprobs": (2, {"logprobs": 2}),
    "logit_bias": ({"5": 1.5}, {"logit_bias": {5: 1.5}}),
    "json_schema": (SCHEMA, {"structured_outputs.json": SCHEMA}),
    "json_object": (True, {"structured_outputs.json_object": True}),
    "choice": (("yes", "no"), {"structured_outputs.choice": ["yes", "no"]}),
    "regex": ("[0-9]+", {"structured_outputs.regex": "[0-9]+"}),
    "grammar": ('root ::= "a"', {"structured_outputs.grammar": 'root ::= "a"'}),
    "guard": (
        Guard(20, 50, (3,)),
        {"extra_args": {"ngram_size": 20, "window_size": 50, "whitelist_token_ids": [3]}},
    ),
    "stream": (True, {"output_kind": RequestOutputKind.DELTA}),
    "detect_loops": (
        True,
        {
            "repetition_detection.min_pattern_size": SHORTEST_LOOP,
            "repetition_detection.max_pattern_size": LONGEST_LOOP,
            "repetition_detection.min_count": LOOP_REPEATS,
        },
    ),
    "loops": (
        LoopDetection(2, 9, 5),
        {
            "repetition_detection.min_pattern_size": 2,
            "repetition_detection.max_pattern_size": 9,
            "repetition_detection.min_count": 5,
        },
    ),
    "token_ids": (True, {}),  # the engine reports them in any case
}
"""Field of `Decoding` → a value other than the default, and the attributes of SamplingParams that follow from it."""


def attribute(params: SamplingParams, path: str) -> Any:
    value: Any = params
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def decoding(field: str) -> Decoding:
    """Decoding options with one field changed; sampling options need a temperature to have an effect."""
    changes = {field: FIELDS[field][0]}
    if field in ("top_p", "top_k", "min_p", "n"):
        changes["temperature"] = 1.0
    return Decoding(**changes)


def test_the_table_covers_every_field() -> None:
    assert list(FIELDS) == [field.name for field in dataclasses.fields(Decoding)]


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_reaches_vllm(field: str) -> None:
    default, params = sampling_params(Decoding()), sampling_params(decoding(field))
    for path, value in FIELDS[field][1].items():
        assert attribute(params, path) == value
        assert attribute(default, path) != value


def test_one_stop_string() -> None:
    assert sampling_params(Decoding(stop="end")).stop == ["end"]


def test_defaults() -> None:
    params = sampling_params(Decoding())
    assert (params.temperature, params.n, params.output_kind) == (0.0, 1, RequestOutputKind.FINAL_ONLY)
    assert params.extra_args == {"ngram_size": 30, "window_size": 90}
    assert params.structured_outputs is None
    assert params.repetition_detection is None


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_are_part_of_the_answer(stream: bool) -> None:
    params = sampling_params(Decoding(stream=stream))
    assert (params.skip_special_tokens, params.spaces_between_special_tokens) == (False, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("top_p", 1.5),
        ("logprobs", -5),
        ("logit_bias", {"word": 1.0}),
    ],
)
def test_a_refusal_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(DecodingError) as caught:
        sampling_params(Decoding(**{field: value}))
    assert caught.value.field == field
    assert caught.value.message


@pytest.mark.parametrize(("field", "value"), [("top_k", -7), ("min_p", 2.0), ("presence_penalty", 3.0)])
def test_vllm_names_the_option_in_the_message_of_every_refusal(field: str, value: Any) -> None:
    with pytest.raises(DecodingError, match=field):
        sampling_params(Decoding(temperature=1.0, **{field: value}))


def test_a_message_is_vllms_without_its_additions() -> None:
    error = refusal(VLLMValidationError("The bare message.", parameter="top_p", value=5), Decoding())
    assert (error.message, error.field) == ("The bare message.", "top_p")


@pytest.mark.parametrize(
    "constraint", [{"json_schema": SCHEMA}, {"json_object": True}, {"regex": "("}, {"choice": ("a",)}]
)
def test_an_error_of_a_grammar_names_the_constraint(constraint: dict[str, Any]) -> None:
    error = VLLMValidationError("The grammar cannot be compiled.")
    assert [refusal(error, Decoding(**constraint)).field] == list(constraint)
    assert refusal(error, Decoding()).field == ""
