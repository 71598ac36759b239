"""A chat request → pictures, prompt and decoding options."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from vllm.sampling_params import RequestOutputKind

from config import Settings
from deepseek_ocr.modes import MODES, ResolutionMode
from ocr_server.dialects.chat.plan import Reading, translate
from ocr_server.dialects.chat.wire import ChatCompletionRequest, ModeName
from ocr_server.errors import ApiError, InvalidRequest, NotFound
from tests.ocr_server.conftest import chat, message, picture, text

A, B, C = "data:a", "data:b", "data:c"
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
ONE = message(picture(A), "Free OCR.")


@pytest.fixture
def read(settings: Settings) -> Any:
    def translated(*messages: dict[str, Any], with_settings: Settings = settings, **more: Any) -> Reading:
        body = ChatCompletionRequest.model_validate(chat(*(messages or (ONE,)), **more))
        return translate(body, with_settings)

    return translated


def urls(reading: Reading) -> list[str]:
    return [image.url for image in reading.sources]


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**settings.model_dump(), **values})


class TestPictures:
    def test_pictures_come_in_order(self, read: Any) -> None:
        assert urls(read(message("first", picture(B), "then", picture(A), picture(C)))) == [B, A, C]

    def test_the_last_user_message_is_read(self, read: Any) -> None:
        reading = read(message(picture(A), "old"), message("seen", role="assistant"), message(picture(B), "new"))
        assert urls(reading) == [B]
        assert reading.prompt == "new"

    def test_the_nearest_earlier_picture_is_read(self, read: Any) -> None:
        reading = read(
            message(picture(A), "oldest"),
            message(picture(B), picture(C), "old"),
            message("answer", role="assistant"),
            message("And now?"),
        )
        assert urls(reading) == [B, C]
        assert reading.prompt == "And now?"

    @pytest.mark.parametrize("role", ["assistant", "system", "developer", "tool"])
    def test_only_a_user_gives_pictures(self, read: Any, role: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(message(picture(A), role=role), message("What is it?"))
        assert caught.value.code == "missing_image"
        assert caught.value.param == "messages"

    def test_a_request_without_a_user(self, read: Any) -> None:
        with pytest.raises(InvalidRequest, match="no user message"):
            read(message("Free OCR.", role="system"))

    def test_the_place_of_each_picture_is_named(self, read: Any) -> None:
        reading = read(message("x", role="system"), message("a", picture(A), picture(B)), message("b"))
        assert [image.param for image in reading.sources] == [
            "messages[1].content[1].image_url.url",
            "messages[1].content[2].image_url.url",
        ]

    def test_the_place_is_right_where_messages_repeat(self, read: Any) -> None:
        reading = read(ONE, message("answer", role="assistant"), ONE)
        assert reading.sources[0].param == "messages[2].content[0].image_url.url"

    def test_at_most_so_many(self, read: Any, settings: Settings) -> None:
        few = changed(settings, MAX_IMAGES=2)
        assert len(read(message(picture(A), picture(B)), with_settings=few).sources) == 2
        with pytest.raises(InvalidRequest, match="at most 2 pictures, not 3") as caught:
            read(message(picture(A), picture(B), picture(C)), with_settings=few)
        assert caught.value.param == "messages"

    def test_other_parts_are_refused_by_their_place(self, read: Any) -> None:
        with pytest.raises(InvalidRequest, match="input_audio") as caught:
            read(message("hm", role="assistant"), message(picture(A), "x", AUDIO))
        assert caught.value.param == "messages[1].content[2].type"
        assert caught.value.code == "unsupported_content"

    def test_other_parts_in_an_assistants_message_do_not_matter(self, read: Any) -> None:
        assert urls(read(ONE, message({"type": "refusal", "refusal": "no"}, role="assistant"), message("x"))) == [A]


class TestPrompt:
    def test_texts_are_joined(self, read: Any) -> None:
        assert read(message("one", picture(A), "two", "three")).prompt == "one\ntwo\nthree"

    @pytest.mark.parametrize("typed", ["Free OCR. ", "Free OCR.\n", "  Free OCR.\t\r\n "])
    def test_space_around_it_is_dropped(self, read: Any, typed: str) -> None:
        assert read(message(picture(A), typed)).prompt == "Free OCR."

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_a_system_message_where_the_user_gave_no_text(self, read: Any, role: str) -> None:
        assert read(message("Parse the figure. ", role=role), message(picture(A))).prompt == "Parse the figure."

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_no_system_message_where_the_user_gave_text(self, read: Any, role: str) -> None:
        assert read(message("Be kind.", role=role), ONE).prompt == "Free OCR."

    def test_the_last_system_message_with_text(self, read: Any) -> None:
        reading = read(
            message("one", role="system"),
            message("two", role="developer"),
            message(" ", role="system"),
            message(picture(A)),
        )
        assert reading.prompt == "two"

    def test_a_system_message_in_parts(self, read: Any) -> None:
        assert read(message(text("a"), text("b"), role="system"), message(picture(A), "  ")).prompt == "a\nb"

    @pytest.mark.parametrize("content", [[picture(A)], [picture(A), text("")], [picture(A), text(" \n")]])
    def test_the_default(self, read: Any, settings: Settings, content: list[Any]) -> None:
        assert read({"role": "user", "content": content}).prompt == settings.DEFAULT_PROMPT

    @pytest.mark.parametrize("content", [None, "", [], "  "])
    def test_a_last_message_without_text_takes_no_earlier_users_text(
        self, read: Any, settings: Settings, content: Any
    ) -> None:
        reading = read(ONE, {"role": "user", "content": content})
        assert (urls(reading), reading.prompt) == ([A], settings.DEFAULT_PROMPT)

    def test_its_length_is_bounded(self, read: Any, settings: Settings) -> None:
        short = changed(settings, MAX_PROMPT_CHARS=5)
        assert read(message(picture(A), "12345 "), with_settings=short).prompt == "12345"
        for given in [(message(picture(A), "123456"),), (message("123456", role="system"), message(picture(A)))]:
            with pytest.raises(InvalidRequest, match="6 characters; at most 5"):
                read(*given, with_settings=short)


class TestMode:
    def mode(self, reading: Reading) -> ResolutionMode:
        (image,) = reading.sources
        return image.mode

    def test_the_servers_default(self, read: Any, settings: Settings) -> None:
        of_server = changed(settings, BASE_SIZE=640, IMAGE_SIZE=320, MAX_CROPS=4)
        assert self.mode(read(with_settings=of_server)) == ResolutionMode(640, 320, max_crops=4)

    @pytest.mark.parametrize(("detail", "mode"), [("low", "tiny"), ("high", "gundam"), ("auto", "base")])
    def test_detail(self, read: Any, settings: Settings, detail: str, mode: str) -> None:
        of_server = changed(settings, BASE_SIZE=1024, IMAGE_SIZE=1024, CROP_MODE=False)
        assert self.mode(read(message(picture(A, detail=detail)), with_settings=of_server)) == MODES[mode]

    def test_each_picture_has_its_own_detail(self, read: Any) -> None:
        reading = read(message(picture(A, detail="low"), picture(B, detail="high")))
        assert [image.mode for image in reading.sources] == [MODES["tiny"], MODES["gundam"]]

    @pytest.mark.parametrize("name", MODES)
    def test_the_models_name_over_detail(self, read: Any, name: str) -> None:
        for detail in ("low", "high", "auto"):
            reading = read(message(picture(A, detail=detail)), model=f"deepseek-ocr:{name}")
            assert self.mode(reading) == MODES[name]

    @pytest.mark.parametrize("name", MODES)
    def test_options_over_the_models_name(self, read: Any, name: str) -> None:
        reading = read(message(picture(A, detail="low")), model="deepseek-ocr:small", ocr={"mode": name})
        assert self.mode(reading) == MODES[name]

    def test_fields_change_what_the_rest_asks_for(self, read: Any) -> None:
        change = {"max_crops": 9, "min_crops": 1}
        expected = ResolutionMode(1024, 640, min_crops=1, max_crops=9)
        assert self.mode(read(message(picture(A, detail="high")), ocr=change)) == expected
        assert self.mode(read(model="deepseek-ocr:gundam", ocr=change)) == expected
        assert self.mode(read(model="deepseek-ocr:tiny", ocr={"mode": "gundam", **change})) == expected

    def test_a_field_that_is_false_counts(self, read: Any) -> None:
        assert self.mode(read(ocr={"mode": "gundam", "crop_mode": False})).crop_mode is False

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"base_size": 100}, "base_size"),
            ({"base_size": -64}, "base_size"),
            ({"image_size": 1296}, "image_size"),
            ({"min_crops": 0}, "min_crops"),
            ({"min_crops": 4, "max_crops": 3}, "min_crops"),
            ({"max_crops": 10}, "max_crops"),
            ({"mode": "gundam", "max_crops": 1}, "min_crops"),
            ({"ngram_size": -1}, "ngram_size"),
            ({"ngram_size": 91}, "ngram_size"),
            ({"window_size": 0}, "window_size"),
            ({"window_size": 100_000}, "window_size"),
            ({"whitelist_token_ids": [-1]}, "whitelist_token_ids"),
            ({"whitelist_token_ids": [1] * 33}, "whitelist_token_ids"),
        ],
    )
    def test_an_illegal_option_is_named(self, read: Any, options: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(ocr=options)
        assert caught.value.param == f"ocr.{field}"
        assert caught.value.message.startswith(field)

    @pytest.mark.parametrize(
        "model",
        ["gpt-4o", "", "deepseek-ocr:", "deepseek-ocr:huge", "deepseek-ocr:tiny:tiny", "DeepSeek-OCR", "x:tiny"],
    )
    def test_an_unknown_model(self, read: Any, model: str) -> None:
        with pytest.raises(NotFound) as caught:
            read(model=model)
        assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")

    def test_the_wire_names_the_modes_there_are(self) -> None:
        assert list(get_args(ModeName)) == list(MODES)


class TestSampling:
    def test_defaults(self, read: Any, settings: Settings) -> None:
        params = read().params
        assert (params.temperature, params.n, params.top_p, params.top_k, params.min_p) == (0, 1, 1, 0, 0)
        assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 1)
        assert (params.max_tokens, params.min_tokens, params.seed) == (None, 0, None)
        assert (params.stop, params.stop_token_ids, params.ignore_eos) == ([], [], False)
        assert params.logprobs is None
        assert params.logit_bias is None
        assert params.structured_outputs is None
        assert params.extra_args == {"ngram_size": settings.NGRAM_SIZE, "window_size": settings.WINDOW_SIZE}

    def test_special_tokens_are_kept(self, read: Any) -> None:
        params = read().params
        assert params.skip_special_tokens is False
        assert params.spaces_between_special_tokens is False
        assert params.detokenize is True

    def test_all_values_arrive(self, read: Any) -> None:
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
        reading = read(**given)
        assert {name: getattr(reading.params, name) for name in given} == given
        assert reading.copies == 1

    def test_one_stop_text(self, read: Any) -> None:
        assert read(stop="END").params.stop == ["END"]

    @pytest.mark.parametrize("everything", [-1, 0])
    def test_all_tokens(self, read: Any, everything: int) -> None:
        assert read(temperature=1.0, top_k=everything).params.top_k == 0

    def test_logit_bias(self, read: Any) -> None:
        assert read(logit_bias={"5": -100, "7": 1.5}).params.logit_bias == {5: -100.0, 7: 1.5}

    def test_logit_bias_for_no_token(self, read: Any) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(logit_bias={"word": 1.0})
        assert caught.value.param == "logit_bias"

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"max_tokens": 5}, 5),
            ({"max_completion_tokens": 6}, 6),
            ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
            ({"max_tokens": 7, "max_completion_tokens": 6}, 6),
        ],
    )
    def test_the_newer_name_counts(self, read: Any, given: dict[str, int], expected: int) -> None:
        assert read(**given).params.max_tokens == expected

    @pytest.mark.parametrize("temperature", [None, 0, 0.0])
    def test_greedy_choices_are_copies(self, read: Any, temperature: float | None) -> None:
        reading = read(n=4, temperature=temperature)
        assert (reading.copies, reading.params.n, reading.params.temperature) == (4, 1, 0)

    @pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.3, 2])
    def test_sampled_choices_are_made(self, read: Any, temperature: float) -> None:
        reading = read(n=4, temperature=temperature)
        assert (reading.copies, reading.params.n) == (1, 4)
        assert reading.params.temperature > 0

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, None),
            ({"logprobs": False}, None),
            ({"logprobs": True}, 0),
            ({"logprobs": True, "top_logprobs": 0}, 0),
            ({"logprobs": True, "top_logprobs": 20}, 20),
        ],
    )
    def test_logprobs(self, read: Any, given: dict[str, Any], expected: int | None) -> None:
        assert read(**given).params.logprobs == expected

    def test_a_stream_gets_pieces(self, read: Any) -> None:
        assert read(stream=True).params.output_kind == RequestOutputKind.DELTA
        assert read(stream=False).params.output_kind == RequestOutputKind.FINAL_ONLY
        assert read().params.output_kind == RequestOutputKind.FINAL_ONLY

    def test_the_guard(self, read: Any) -> None:
        options = {"ngram_size": 20, "window_size": 50, "whitelist_token_ids": [1, 2]}
        assert read(ocr=options).params.extra_args == options

    def test_the_guard_of_the_server(self, read: Any, settings: Settings) -> None:
        of_server = changed(settings, NGRAM_SIZE=7, WINDOW_SIZE=70)
        assert read(with_settings=of_server).params.extra_args == {"ngram_size": 7, "window_size": 70}
        narrower = read(with_settings=of_server, ocr={"window_size": 9}).params.extra_args
        assert narrower == {"ngram_size": 7, "window_size": 9}

    def test_the_guard_off(self, read: Any) -> None:
        assert read(ocr={"ngram_size": 0}).params.extra_args["ngram_size"] == 0

    def test_an_empty_whitelist_exempts_nothing(self, read: Any) -> None:
        assert read(ocr={"whitelist_token_ids": []}).params.extra_args["whitelist_token_ids"] == []


class TestStructuredOutput:
    SCHEMA: dict[str, Any] = {"type": "object", "properties": {"total": {"type": "number"}}}  # noqa: RUF012

    def test_text(self, read: Any) -> None:
        reading = read(response_format={"type": "text"})
        assert reading.params.structured_outputs is None
        assert not reading.single_page

    def test_json(self, read: Any) -> None:
        reading = read(response_format={"type": "json_object"})
        assert reading.params.structured_outputs.json_object is True
        assert reading.single_page

    def test_a_schema(self, read: Any) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "bill", "schema": self.SCHEMA, "strict": True}}
        reading = read(response_format=form)
        assert reading.params.structured_outputs.json == self.SCHEMA
        assert reading.single_page

    def test_no_format(self, read: Any) -> None:
        assert not read().single_page


def test_errors_are_for_the_client(read: Any) -> None:
    """Whatever vLLM's checks refuse is the client's error, not the server's."""
    for refused in ({"logit_bias": {"": 0.0}}, {"logit_bias": {"9" * 5000: 0.0}}):
        with pytest.raises(ApiError) as caught:
            read(**refused)
        assert caught.value.status == 400
