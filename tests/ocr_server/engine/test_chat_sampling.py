"""What vLLM makes of a chat request's decoding options, and how what it refuses reaches the client."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from config import Settings
from ocr_server.dialects.chat.plan import plan_chat
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.dialects.ocr.plan import plan_ocr
from ocr_server.dialects.ocr.wire import OcrRequest
from ocr_server.engine.sampling import sampling_params
from ocr_server.errors import InvalidRequest
from ocr_server.plan import ReadPlan
from ocr_server.reading.decoding import Decoding
from ocr_server.runtime import Runtime
from ocr_server.session import Caller
from tests.ocr_server.conftest import FakeEngine, chat, message, picture

pytestmark = pytest.mark.engine


class CheckingEngine(FakeEngine):
    """Checks decoding options as vLLM does."""

    async def check(self, decoding: Decoding) -> None:
        sampling_params(decoding)


@pytest.fixture
def plan(settings: Settings) -> Any:
    def planned(**fields: Any) -> ReadPlan:
        body = chat(message(picture(), "Free OCR."), **fields)
        return plan_chat(ChatCompletionRequest.model_validate(body), settings)

    return planned


@pytest.fixture
def params(plan: Any) -> Any:
    def converted(**fields: Any) -> SamplingParams:
        return sampling_params(plan(**fields).decoding)

    return converted


class TestParameters:
    def test_defaults(self, params: Any, settings: Settings) -> None:
        got = params()
        assert (got.temperature, got.n, got.top_p, got.top_k, got.min_p) == (0, 1, 1, 0, 0)
        assert (got.presence_penalty, got.frequency_penalty, got.repetition_penalty) == (0, 0, 1)
        assert (got.max_tokens, got.min_tokens, got.seed) == (None, 0, None)
        assert (got.stop, got.stop_token_ids, got.ignore_eos) == ([], [], False)
        assert got.logprobs is None
        assert got.logit_bias is None
        assert got.structured_outputs is None
        assert got.extra_args == {"ngram_size": settings.NGRAM_SIZE, "window_size": settings.WINDOW_SIZE}

    def test_special_tokens_are_kept(self, params: Any) -> None:
        got = params()
        assert got.skip_special_tokens is False
        assert got.spaces_between_special_tokens is False
        assert got.detokenize is True

    def test_all_values_arrive(self, params: Any) -> None:
        given: dict[str, Any] = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "presence_penalty": -1.5,
            "frequency_penalty": 1.5,
            "repetition_penalty": 1.1,
            "seed": 0,
            "stop": ["\n", "END"],
            "stop_token_ids": [3, 4],
            "ignore_eos": True,
            "min_tokens": 2,
            "n": 3,
        }
        got = params(**given)
        assert {name: getattr(got, name) for name in given} == given

    def test_one_stop_text(self, params: Any) -> None:
        assert params(stop="END").stop == ["END"]

    @pytest.mark.parametrize("everything", [-1, 0])
    def test_all_tokens(self, params: Any, everything: int) -> None:
        assert params(temperature=1.0, top_k=everything).top_k == 0

    def test_logit_bias(self, params: Any) -> None:
        assert params(logit_bias={"5": -100, "7": 1.5}).logit_bias == {5: -100.0, 7: 1.5}

    @pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.3, 2])
    def test_sampling_stays_sampling(self, params: Any, temperature: float) -> None:
        got = params(n=4, temperature=temperature)
        assert got.n == 4
        assert got.temperature > 0

    def test_a_stream_gets_pieces(self, params: Any) -> None:
        assert params(stream=True).output_kind == RequestOutputKind.DELTA
        assert params(stream=False).output_kind == RequestOutputKind.FINAL_ONLY
        assert params().output_kind == RequestOutputKind.FINAL_ONLY

    def test_the_guard(self, params: Any, settings: Settings) -> None:
        options = {"ngram_size": 20, "window_size": 50, "whitelist_token_ids": [1, 2]}
        assert params(ocr=options).extra_args == options
        narrower = {"ngram_size": settings.NGRAM_SIZE, "window_size": 60}
        assert params(ocr={"window_size": 60}).extra_args == narrower
        assert params(ocr={"ngram_size": 0}).extra_args["ngram_size"] == 0
        assert params(ocr={"whitelist_token_ids": []}).extra_args["whitelist_token_ids"] == []

    def test_structured_output(self, params: Any) -> None:
        schema = {"type": "object", "properties": {"total": {"type": "number"}}}
        form = {"type": "json_schema", "json_schema": {"name": "bill", "schema": schema, "strict": True}}
        assert params(response_format={"type": "text"}).structured_outputs is None
        assert params(response_format={"type": "json_object"}).structured_outputs.json_object is True
        assert params(response_format=form).structured_outputs.json == schema

    def test_an_ocr_request(self, settings: Settings) -> None:
        body = {"document": {"document_url": "data:a"}, "max_tokens": 7, "confidence_scores_granularity": "page"}
        got = sampling_params(plan_ocr(OcrRequest.model_validate(body), settings).decoding)
        assert (got.temperature, got.max_tokens, got.logprobs) == (0, 7, 0)
        assert (got.skip_special_tokens, got.spaces_between_special_tokens) == (False, False)
        assert got.output_kind == RequestOutputKind.FINAL_ONLY
        assert got.extra_args == {"ngram_size": settings.NGRAM_SIZE, "window_size": settings.WINDOW_SIZE}


class TestRefusals:
    """Whatever vLLM's checks refuse is the client's error, not the server's."""

    @pytest.mark.parametrize("bias", [{"word": 1.0}, {"": 0.0}, {"9" * 5000: 0.0}])
    async def test_a_logit_bias_for_no_token(self, plan: Any, settings: Settings, bias: dict[str, float]) -> None:
        engine = CheckingEngine()
        engine.reason = "The model is being loaded."  # an invalid option is reported all the same
        runtime = Runtime.build(settings, engine)
        try:
            with pytest.raises(InvalidRequest) as caught:
                await runtime.begin(plan(logit_bias=bias), Caller())
        finally:
            await runtime.close()
        assert (caught.value.status, caught.value.param) == (400, "logit_bias")
