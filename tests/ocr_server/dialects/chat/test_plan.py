"""`plan_chat`: a chat request becomes sources, a prompt and decoding options.

What vLLM makes of the decoding options, and which of them it refuses, is tested in `engine/test_chat_sampling.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from config import Settings
from deepseek_ocr.guard import Guard
from deepseek_ocr.modes import MODES, ResolutionMode
from ocr_server.dialects.chat.plan import copies, plan_chat
from ocr_server.dialects.chat.wire import ChatCompletionRequest, ChatTemplate
from ocr_server.dialects.wire import MODE_NAMES, Ignored
from ocr_server.errors import DecodingError, InvalidRequest, NotFound, TooLarge
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.source import Base64, Url
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats.markdown import MARKDOWN
from ocr_server.output.formats.raw import RAW
from ocr_server.plan import PageLimit, ReadPlan
from ocr_server.reading.decoding import Decoding, LoopDetection
from tests.ocr_server.conftest import chat, message, picture, text

A, B, C = "data:a", "data:b", "data:c"
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}
ONE = message(picture(A), "Free OCR.")


def request(*messages: dict[str, Any], **more: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(chat(*(messages or (ONE,)), **more), context=Ignored())


@pytest.fixture
def read(settings: Settings) -> Any:
    def planned(*messages: dict[str, Any], with_settings: Settings = settings, **more: Any) -> ReadPlan:
        return plan_chat(request(*messages, **more), with_settings)

    return planned


def urls(plan: ReadPlan) -> list[str]:
    found = []
    for planned in plan.sources:
        assert isinstance(planned.source.content, Url)
        found.append(planned.source.content.address)
    return found


def places(plan: ReadPlan) -> list[str]:
    """The request parameters that gave the sources."""
    return [planned.parameters["file"] for planned in plan.sources]


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**settings.model_dump(), **values})


class TestPictures:
    def test_pictures_come_in_order(self, read: Any) -> None:
        assert urls(read(message("first", picture(B), "then", picture(A), picture(C)))) == [B, A, C]

    def test_the_last_user_message_is_read(self, read: Any) -> None:
        plan = read(message(picture(A), "old"), message("seen", role="assistant"), message(picture(B), "new"))
        assert urls(plan) == [B]
        assert plan.prompt == "new"

    def test_the_nearest_earlier_picture_is_read(self, read: Any) -> None:
        plan = read(
            message(picture(A), "oldest"),
            message(picture(B), picture(C), "old"),
            message("answer", role="assistant"),
            message("And now?"),
        )
        assert urls(plan) == [B, C]
        assert plan.prompt == "And now?"

    @pytest.mark.parametrize("role", ["assistant", "system", "developer", "tool"])
    def test_only_user_messages_give_pictures(self, read: Any, role: str) -> None:
        assert urls(read(message(picture(A), role=role), message("What is it?"))) == []

    @pytest.mark.parametrize("asked", [message("ping"), message("Free OCR.", role="system")])
    def test_a_picture_can_be_required(self, read: Any, settings: Settings, asked: dict[str, Any]) -> None:
        assert read(asked).sources == ()
        strict = changed(settings, PICTURE_REQUIRED=True)
        json_object = {"response_format": {"type": "json_object"}}  # the sentence that answers others is not JSON
        for with_settings, more in ((strict, {}), (settings, json_object)):
            with pytest.raises(InvalidRequest, match="no picture") as caught:
                read(asked, with_settings=with_settings, **more)
            assert (caught.value.code, caught.value.param) == ("missing_image", "messages")

    def test_the_parameter_of_each_picture_is_known(self, read: Any) -> None:
        plan = read(message("x", role="system"), message("a", picture(A), picture(B)), message("b"))
        assert places(plan) == ["messages[1].content[1].image_url.url", "messages[1].content[2].image_url.url"]

    def test_the_parameter_is_right_where_messages_repeat(self, read: Any) -> None:
        plan = read(ONE, message("answer", role="assistant"), ONE)
        assert places(plan) == ["messages[2].content[0].image_url.url"]

    def test_the_number_of_pictures_is_limited(self, read: Any, settings: Settings) -> None:
        few = changed(settings, MAX_IMAGES=2)
        assert len(read(message(picture(A), picture(B)), with_settings=few).sources) == 2
        with pytest.raises(InvalidRequest, match="3 pictures; the limit is 2") as caught:
            read(message(picture(A), picture(B), picture(C)), with_settings=few)
        assert caught.value.param == "messages"

    def test_other_parts_are_refused_by_name(self, read: Any) -> None:
        with pytest.raises(InvalidRequest, match="input_audio") as caught:
            read(message("hm", role="assistant"), message(picture(A), "x", AUDIO))
        assert caught.value.param == "messages[1].content[2].type"
        assert caught.value.code == "unsupported_content"

    def test_other_parts_in_an_assistants_message_are_ignored(self, read: Any) -> None:
        assert urls(read(ONE, message({"type": "refusal", "refusal": "no"}, role="assistant"), message("x"))) == [A]


class TestPrompt:
    def test_texts_are_joined(self, read: Any) -> None:
        assert read(message("one", picture(A), "two", "three")).prompt == "one\ntwo\nthree"

    @pytest.mark.parametrize("typed", ["Free OCR. ", "Free OCR.\n", "  Free OCR.\t\r\n "])
    def test_surrounding_white_space_is_dropped(self, read: Any, typed: str) -> None:
        assert read(message(picture(A), typed)).prompt == "Free OCR."

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_a_system_message_where_the_user_gave_no_text(self, read: Any, role: str) -> None:
        assert read(message("Parse the figure. ", role=role), message(picture(A))).prompt == "Parse the figure."

    @pytest.mark.parametrize("role", ["system", "developer"])
    @pytest.mark.parametrize(
        ("said", "is_prompt"),
        [
            ("You are a helpful assistant.", False),
            ("Return tables with <td> and </td>.", False),
            ("Free OCR", True),
            ("<image>\n<|grounding|>Read the sign.", True),
            ("Locate <|ref|>Total<|/ref|> in the image.", True),
        ],
    )
    def test_a_system_message_for_another_model_is_no_prompt(
        self, read: Any, settings: Settings, role: str, said: str, is_prompt: bool
    ) -> None:
        plan = read(message(said, role=role), message(picture(A)))
        assert plan.prompt == (said if is_prompt else settings.DEFAULT_PROMPT)
        assert plan.text is (RAW if is_prompt else MARKDOWN)

    def test_the_text_may_come_before_the_picture(self, read: Any) -> None:
        plan = read(message("Parse the figure."), message(picture(A)))
        assert (urls(plan), plan.prompt, plan.text) == ([A], "Parse the figure.", RAW)

    def test_a_placeholder_of_the_picture_is_no_text(self, read: Any, settings: Settings) -> None:
        plan = read(message(picture(A), "<image>\n"))
        assert (plan.prompt, plan.text) == (settings.DEFAULT_PROMPT, MARKDOWN)

    def test_an_answer_that_is_to_be_continued_is_refused(self, read: Any) -> None:
        begun = {"role": "assistant", "content": "# ", "prefix": True}
        with pytest.raises(InvalidRequest, match="prefix") as caught:
            read(ONE, begun)
        assert caught.value.param == "messages[1].prefix"
        assert urls(read(ONE, {**begun, "prefix": False})) == [A]

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_no_system_message_where_the_user_gave_text(self, read: Any, role: str) -> None:
        assert read(message("Be kind.", role=role), ONE).prompt == "Free OCR."

    def test_the_last_system_message_with_text(self, read: Any) -> None:
        plan = read(
            message("Free OCR.", role="system"),
            message("Parse the figure.", role="developer"),
            message(" ", role="system"),
            message("Be kind.", role="system"),
            message(picture(A)),
        )
        assert plan.prompt == "Parse the figure."

    def test_a_system_message_in_parts(self, read: Any) -> None:
        parts = message(text("<|grounding|>a"), text("b"), role="system")
        assert read(parts, message(picture(A), "  ")).prompt == "<|grounding|>a\nb"

    @pytest.mark.parametrize("content", [[picture(A)], [picture(A), text("")], [picture(A), text(" \n")]])
    def test_the_default_prompt(self, read: Any, settings: Settings, content: list[Any]) -> None:
        assert read({"role": "user", "content": content}).prompt == settings.DEFAULT_PROMPT

    @pytest.mark.parametrize("content", [None, "", [], "  "])
    def test_a_message_without_text_and_picture_changes_nothing(self, read: Any, content: Any) -> None:
        plan = read(ONE, {"role": "user", "content": content})
        assert (urls(plan), plan.prompt) == ([A], "Free OCR.")

    def test_the_length_is_limited(self, read: Any, settings: Settings) -> None:
        short = changed(settings, MAX_PROMPT_CHARS=5)
        assert read(message(picture(A), "12345 "), with_settings=short).prompt == "12345"
        for given in [message(picture(A), "123456")], [message("<|ref|>", role="system"), message(picture(A))]:
            with pytest.raises(InvalidRequest, match=r"[67] characters; the limit is 5"):
                read(*given, with_settings=short)


class TestMode:
    def mode(self, plan: ReadPlan) -> ResolutionMode:
        (planned,) = plan.sources
        return planned.mode

    def test_the_default_mode_of_the_server(self, read: Any, settings: Settings) -> None:
        of_server = changed(settings, BASE_SIZE=640, IMAGE_SIZE=320, MAX_CROPS=4)
        assert self.mode(read(with_settings=of_server)) == ResolutionMode(640, 320, max_crops=4)

    @pytest.mark.parametrize(
        ("detail", "mode"),
        [("low", "base"), ("high", "gundam"), ("original", "gundam"), ("auto", "large"), ("", "large")],
    )
    def test_detail(self, read: Any, settings: Settings, detail: str, mode: str) -> None:
        of_server = changed(settings, BASE_SIZE=1280, IMAGE_SIZE=1280, CROP_MODE=False)
        assert self.mode(read(message(picture(A, detail=detail)), with_settings=of_server)) == MODES[mode]

    def test_the_server_says_what_a_detail_means(self, read: Any, settings: Settings) -> None:
        of_server = changed(settings, DETAIL_MODES="low=tiny, auto=small")
        for detail, mode in ("low", "tiny"), ("auto", "small"):
            assert self.mode(read(message(picture(A, detail=detail)), with_settings=of_server)) == MODES[mode]
        plan = read(message(picture(A, detail="high")), with_settings=of_server)
        assert self.mode(plan) == settings.resolution_mode

    def test_each_picture_has_its_own_detail(self, read: Any) -> None:
        plan = read(message(picture(A, detail="low"), picture(B, detail="high")))
        assert [planned.mode for planned in plan.sources] == [MODES["base"], MODES["gundam"]]

    @pytest.mark.parametrize("name", MODES)
    def test_the_models_name_takes_precedence_over_detail(self, read: Any, name: str) -> None:
        for detail in ("low", "high", "auto"):
            plan = read(message(picture(A, detail=detail)), model=f"deepseek-ocr:{name}")
            assert self.mode(plan) == MODES[name]

    @pytest.mark.parametrize("name", MODES)
    def test_options_take_precedence_over_the_models_name(self, read: Any, name: str) -> None:
        plan = read(message(picture(A, detail="low")), model="deepseek-ocr:small", ocr={"mode": name})
        assert self.mode(plan) == MODES[name]

    def test_fields_override_parts_of_the_mode(self, read: Any) -> None:
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
    def test_an_invalid_option_is_named(self, read: Any, options: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(ocr=options)
        assert caught.value.param == f"ocr.{field}"
        assert caught.value.message.startswith(field)

    @pytest.mark.parametrize(
        "model",
        [
            "gpt-4o",
            "",
            "deepseek-ocr:",
            "deepseek-ocr:huge",
            "deepseek-ocr:tiny:tiny",
            "deepseek-ocr:raw:markdown",
            "x:tiny",
            "x" * 300,
        ],
    )
    def test_an_unknown_model(self, read: Any, model: str) -> None:
        with pytest.raises(NotFound) as caught:
            read(model=model)
        assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")

    def test_the_wire_type_names_the_modes_of_the_model(self) -> None:
        assert tuple(MODES) == MODE_NAMES


class TestDecoding:
    def test_defaults(self, read: Any, settings: Settings) -> None:
        guard = Guard(ngram_size=settings.NGRAM_SIZE, window_size=settings.WINDOW_SIZE)
        decoding = read().decoding
        assert decoding == Decoding(guard=guard)
        assert (decoding.temperature, decoding.n, decoding.top_p, decoding.top_k, decoding.min_p) == (0, 1, None, 0, 0)
        assert decoding.presence_penalty is decoding.frequency_penalty is decoding.repetition_penalty is None
        assert (decoding.max_tokens, decoding.min_tokens, decoding.seed) == (None, 0, None)
        assert (decoding.stop, decoding.stop_token_ids, decoding.ignore_eos) == (None, None, False)
        assert decoding.logprobs is None
        assert decoding.logit_bias is None
        assert not decoding.is_structured

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
        decoding = read(**given).decoding
        expected = given | {"stop": ("\n", "END"), "stop_token_ids": (3, 4)}
        assert {name: getattr(decoding, name) for name in given} == expected
        assert copies(request(**given)) == 1

    def test_one_stop_text(self, read: Any) -> None:
        assert read(stop="END").decoding.stop == "END"

    @pytest.mark.parametrize("everything", [-1, 0])
    def test_top_k_for_all_tokens(self, read: Any, everything: int) -> None:
        assert read(temperature=1.0, top_k=everything).decoding.top_k == 0

    def test_logit_bias(self, read: Any) -> None:
        assert read(logit_bias={"5": -100, "7": 1.5}).decoding.logit_bias == {"5": -100.0, "7": 1.5}

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"max_tokens": 5}, 5),
            ({"max_completion_tokens": 6}, 6),
            ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
            ({"max_tokens": 7, "max_completion_tokens": 6}, 6),
        ],
    )
    def test_the_newer_name_takes_precedence(self, read: Any, given: dict[str, int], expected: int) -> None:
        assert read(**given).decoding.max_tokens == expected

    @pytest.mark.parametrize("temperature", [None, 0, 0.0])
    def test_greedy_choices_are_copies(self, read: Any, temperature: float | None) -> None:
        given = {"n": 4, "temperature": temperature}
        decoding = read(**given).decoding
        assert (copies(request(**given)), decoding.n, decoding.temperature) == (4, 1, 0)

    def test_no_probability_mass_is_greedy_decoding(self, read: Any) -> None:
        given = {"n": 4, "temperature": 0.8, "top_p": 0}
        decoding = read(**given).decoding
        assert (copies(request(**given)), decoding.n, decoding.temperature, decoding.top_p) == (4, 1, 0, None)

    @pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.3, 2])
    def test_sampled_choices_are_generated(self, read: Any, temperature: float) -> None:
        given = {"n": 4, "temperature": temperature}
        decoding = read(**given).decoding
        assert (copies(request(**given)), decoding.n, decoding.temperature) == (1, 4, temperature)

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
        assert read(**given).decoding.logprobs == expected

    def test_streaming(self, read: Any) -> None:
        assert read(stream=True).decoding.stream is True
        assert read(stream=False).decoding.stream is False
        assert read().decoding.stream is False

    def test_the_guard(self, read: Any) -> None:
        options = {"ngram_size": 20, "window_size": 50, "whitelist_token_ids": [1, 2]}
        assert read(ocr=options).decoding.guard == Guard(20, 50, (1, 2))

    def test_the_guard_of_the_server(self, read: Any, settings: Settings) -> None:
        of_server = changed(settings, NGRAM_SIZE=7, WINDOW_SIZE=70)
        assert read(with_settings=of_server).decoding.guard == Guard(7, 70)
        assert read(with_settings=of_server, ocr={"window_size": 9}).decoding.guard == Guard(7, 9)

    def test_the_guard_off(self, read: Any) -> None:
        assert read(ocr={"ngram_size": 0}).decoding.guard.ngram_size == 0

    def test_an_empty_whitelist_exempts_nothing(self, read: Any) -> None:
        assert read(ocr={"whitelist_token_ids": []}).decoding.guard.whitelist_token_ids == ()


class TestStructuredOutput:
    SCHEMA: dict[str, Any] = {"type": "object", "properties": {"total": {"type": "number"}}}  # noqa: RUF012
    FORM: dict[str, Any] = {  # noqa: RUF012
        "type": "json_schema",
        "json_schema": {"name": "bill", "schema": SCHEMA, "strict": True},
    }

    def test_text(self, read: Any) -> None:
        plan = read(response_format={"type": "text"})
        assert not plan.decoding.is_structured
        assert plan.page_limit is None

    def test_json(self, read: Any) -> None:
        plan = read(response_format={"type": "json_object"})
        assert (plan.decoding.json_object, plan.decoding.json_schema) == (True, None)
        assert plan.page_limit == PageLimit("response_format", 1)

    def test_a_schema(self, read: Any) -> None:
        plan = read(response_format=self.FORM)
        assert (plan.decoding.json_object, plan.decoding.json_schema) == (False, self.SCHEMA)
        assert plan.page_limit == PageLimit("response_format", 1)

    @pytest.mark.parametrize(("n", "top", "pages"), [(1, None, 128), (1, 20, 6), (16, 1, 4), (1, 0, 128)])
    def test_log_probabilities_limit_the_pages(self, read: Any, n: int, top: int | None, pages: int) -> None:
        assert read(n=n, logprobs=True, top_logprobs=top).page_limit == PageLimit("logprobs", pages)

    def test_choices_limit_the_pages(self, read: Any, settings: Settings) -> None:
        """An answer holds no more texts than one with the largest number of pages."""
        few = changed(settings, MAX_PAGES=256)
        for n, limit in (1, None), (2, PageLimit("n", 128)), (128, PageLimit("n", 2)):
            assert read(n=n, with_settings=few).page_limit == limit
        assert read(n=128, with_settings=changed(settings, MAX_PAGES=1)).page_limit == PageLimit("n", 1)

    def test_no_format(self, read: Any) -> None:
        plan = read()
        assert not plan.decoding.is_structured
        assert plan.page_limit is None

    def test_blocks_as_json_are_not_generated_by_the_model(self, read: Any) -> None:
        plan = read(response_format={"type": "json_object"}, ocr={"output": "blocks"})
        assert not plan.decoding.is_structured
        assert plan.page_limit is None


class TestOutput:
    @pytest.mark.parametrize(
        ("options", "artifacts"),
        [
            ({}, Artifacts()),
            ({"output": "raw"}, Artifacts()),
            ({"output": "markdown"}, Artifacts()),
            ({"output": "blocks"}, Artifacts(blocks=True)),
            ({"output": "blocks", "include_figures": True}, Artifacts(blocks=True, figures=True)),
        ],
    )
    def test_the_format_says_what_is_made_of_each_page(
        self, read: Any, options: dict[str, Any], artifacts: Artifacts
    ) -> None:
        assert read(ocr=options).artifacts == artifacts

    def test_page_images(self, read: Any) -> None:
        assert read(ocr={"include_page_images": True}, stream=True).show_pages
        assert not read(stream=True).show_pages

    def test_confidence_needs_log_probabilities(self, read: Any) -> None:
        assert read(ocr={"output": "blocks", "confidence": True}).decoding.logprobs == 0

    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"ocr": {"table_format": "html"}}, "ocr.table_format", "markdown or blocks"),
            ({"ocr": {"include_figures": True}}, "ocr.include_figures", "blocks"),
            ({"ocr": {"confidence": True}}, "ocr.confidence", "blocks"),
            ({"ocr": {"output": "markdown", "include_figures": True}}, "ocr.include_figures", "blocks"),
            ({"ocr": {"output": "markdown", "confidence": True}}, "ocr.confidence", "blocks"),
            ({"ocr": {"output": "markdown"}, "logprobs": True}, "logprobs", "raw"),
            ({"ocr": {"output": "blocks"}, "logprobs": True}, "logprobs", "raw"),
            ({"ocr": {"output": "blocks"}, "n": 2, "temperature": 1.0}, "n", "blocks"),
            ({"ocr": {"include_page_images": True}}, "ocr.include_page_images", "stream"),
        ],
    )
    def test_an_option_that_does_not_go_with_the_output(
        self, read: Any, fields: dict[str, Any], param: str, message: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            read(**fields)
        assert caught.value.param == param


def test_a_files_data_is_a_data_uri_or_its_base64_alone(read: Any) -> None:
    bare = {"type": "file", "file": {"file_data": "AAAA"}}
    sources = read(message(FILE, bare)).sources
    assert [each.source.content for each in sources] == [Url("data:application/pdf;base64,AAAA"), Base64("AAAA")]


class TestVllmsNames:
    """Parameters of vLLM's own server."""

    def test_a_published_example(self, read: Any) -> None:
        """From vLLM's recipe for DeepSeek-OCR."""
        plan = read(
            model="deepseek-ai/DeepSeek-OCR",
            skip_special_tokens=False,
            vllm_xargs={"ngram_size": 30, "window_size": 90, "whitelist_token_ids": [128821, 128822]},
        )
        assert plan.decoding.guard == Guard(30, 90, (128821, 128822))

    @pytest.mark.parametrize("written", [[5, 6], "[5, 6]", "5,6", ["5", 6.0]])
    def test_a_list_of_tokens_as_text(self, read: Any, written: Any) -> None:
        xargs = {"ngram_size": "3", "window_size": 9.0, "whitelist_token_ids": written}
        assert read(vllm_xargs=xargs).decoding.guard == Guard(3, 9, (5, 6))

    def test_our_own_options_take_precedence(self, read: Any) -> None:
        given = {"vllm_xargs": {"ngram_size": 200, "window_size": 300}, "mm_processor_kwargs": {"base_size": 640}}
        plan = read(**given, ocr={"ngram_size": 20, "base_size": 1280})
        assert plan.decoding.guard == Guard(20, 300)
        assert plan.sources[0].mode.base_size == 1280

    def test_modes(self, read: Any) -> None:
        def mode(**fields: Any) -> ResolutionMode:
            (planned,) = read(**fields).sources
            found: ResolutionMode = planned.mode
            return found

        assert mode(mm_processor_kwargs={"crop_mode": False, "base_size": 640}).base_size == 640
        assert mode(model="deepseek-ocr:base", mm_processor_kwargs={"mode": "tiny"}) == MODES["tiny"]
        assert mode(mm_processor_kwargs={"base_size": 640}, ocr={"mode": "base"}) == MODES["base"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"vllm_xargs": {"ngram_size": 200}}, "vllm_xargs.ngram_size"),
            ({"vllm_xargs": {"window_size": 5}}, "ocr.ngram_size"),
            ({"vllm_xargs": {"whitelist_token_ids": "[-1]"}}, "vllm_xargs.whitelist_token_ids"),
            ({"mm_processor_kwargs": {"base_size": 100}}, "mm_processor_kwargs.base_size"),
        ],
    )
    def test_an_invalid_value_is_named(self, read: Any, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(**fields)
        assert caught.value.param == param

    SCHEMA: dict[str, Any] = {"type": "object", "properties": {"total": {"type": "number"}}}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("fields", "field", "value", "param"),
        [
            ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA, "structured_outputs.json"),
            ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA, "structured_outputs.json"),
            ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
            ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ("a", "b"), "structured_outputs.choice"),
            ({"structured_outputs": {"json_object": True}}, "json_object", True, "structured_outputs.json_object"),
            ({"guided_json": SCHEMA}, "json_schema", SCHEMA, "guided_json"),
            ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
            ({"guided_choice": ["a"]}, "choice", ("a",), "guided_choice"),
            ({"guided_grammar": "root ::= ."}, "grammar", "root ::= .", "guided_grammar"),
        ],
    )
    def test_constraints(self, read: Any, fields: dict[str, Any], field: str, value: Any, param: str) -> None:
        for asked in (ONE, message(picture(A))):
            plan = read(asked, **fields)
            assert getattr(plan.decoding, field) == value
            assert plan.decoding.is_structured
            assert plan.page_limit == PageLimit(param, 1)
            assert plan.text is RAW
            assert plan.api_error(DecodingError("no", field=field)).param == param
        with pytest.raises(InvalidRequest, match="no picture"):
            read(message("ping"), **fields)

    def test_decoding(self, read: Any) -> None:
        decoding = read(
            include_stop_str_in_output=True,
            bad_words=["x"],
            allowed_token_ids=[1, 2],
            return_token_ids=True,
            repetition_detection={"max_pattern_size": 9, "min_count": 3},
        ).decoding
        assert (decoding.include_stop, decoding.bad_words, decoding.allowed_token_ids) == (True, ("x",), (1, 2))
        assert (decoding.token_ids, decoding.loops) == (True, LoopDetection(1, 9, 3))
        assert read(repetition_detection={"max_pattern_size": 0}).decoding.loops is None

    def test_token_ids_are_those_of_one_page(self, read: Any) -> None:
        assert read(return_token_ids=True).page_limit == PageLimit("return_token_ids", 1)


class TestDefaultOutput:
    PAGE = message(picture(A))

    @pytest.mark.parametrize(
        ("setting", "with_text", "without_text"),
        [("auto", "raw", "markdown"), ("raw", "raw", "raw"), ("blocks", "blocks", "blocks")],
    )
    def test_the_setting(self, read: Any, settings: Settings, setting: str, with_text: str, without_text: str) -> None:
        of_server = changed(settings, DEFAULT_OUTPUT=setting)
        assert read(with_settings=of_server).text.name == with_text
        assert read(self.PAGE, with_settings=of_server).text.name == without_text

    @pytest.mark.parametrize(
        ("fields", "output"),
        [
            ({"model": "deepseek-ocr:markdown"}, "markdown"),
            ({"model": "deepseek-ocr:base:blocks"}, "blocks"),
            ({"model": "deepseek-ocr:markdown", "ocr": {"output": "raw"}}, "raw"),
            ({"ocr": {"output": "markdown"}}, "markdown"),
        ],
    )
    def test_what_the_request_says_comes_first(self, read: Any, settings: Settings, fields: Any, output: str) -> None:
        for default in ("auto", "raw", "blocks"):
            for asked in (ONE, self.PAGE):
                plan = read(asked, with_settings=changed(settings, DEFAULT_OUTPUT=default), **fields)
                assert plan.text.name == output
                assert plan.artifacts.blocks is (output == "blocks")

    @pytest.mark.parametrize("more", [{"logprobs": True}, {"response_format": {"type": "json_object"}}])
    def test_no_default_applies_where_the_models_own_text_is_needed(
        self, read: Any, settings: Settings, more: dict[str, Any]
    ) -> None:
        assert read(self.PAGE, **more).text is RAW
        assert read(with_settings=changed(settings, DEFAULT_OUTPUT="markdown"), **more).text is RAW


class TestErrors:
    """The plan knows which request parameter an error of the intake or the engine is about."""

    @pytest.fixture
    def plan(self, read: Any) -> ReadPlan:
        planned: ReadPlan = read(message("x", role="system"), message(picture(A), FILE))
        return planned

    def test_the_file(self, plan: ReadPlan) -> None:
        for source, param in enumerate(
            ("messages[1].content[0].image_url.url", "messages[1].content[1].file.file_data")
        ):
            error = plan.api_error(SourceError("It is torn.", code="torn", source=source))
            assert isinstance(error, InvalidRequest)
            assert (error.status, error.message, error.code, error.param) == (400, "It is torn.", "torn", param)

    def test_the_selection_of_pages(self, plan: ReadPlan) -> None:
        error = plan.api_error(SourceError("No such page.", about="pages", source=1))
        assert (error.status, error.param) == (400, "ocr.pages")

    def test_a_file_that_is_too_large(self, plan: ReadPlan) -> None:
        error = plan.api_error(SourceTooLarge("It is huge."))
        assert isinstance(error, TooLarge)
        assert (error.status, error.code, error.param) == (413, "too_large", "messages[1].content[0].image_url.url")

    @pytest.mark.parametrize(
        ("field", "param"),
        [
            ("logit_bias", "logit_bias"),
            ("json_schema", "response_format"),
            ("json_object", "response_format"),
            ("prompt", "messages"),
            ("", None),
        ],
    )
    def test_a_decoding_option(self, plan: ReadPlan, field: str, param: str | None) -> None:
        error = plan.api_error(DecodingError("m", field=field, code="c"))
        assert (error.status, error.message, error.code, error.param) == (400, "m", "c", param)


class TestTemplate:
    """The request of a batch whose pictures come from its file."""

    @pytest.fixture
    def template(self, settings: Settings) -> Any:
        def planned(**fields: Any) -> ReadPlan:
            body = ChatTemplate.model_validate({"model": "deepseek-ocr", **fields})
            return plan_chat(body, settings, b"content")

        return planned

    def test_the_content_is_the_source(self, template: Any, settings: Settings) -> None:
        plan = template()
        (planned,) = plan.sources
        assert (planned.source.content, planned.parameters["file"]) == (b"content", "input_file_id")
        assert plan.prompt == settings.DEFAULT_PROMPT

    def test_its_messages_give_the_prompt(self, template: Any) -> None:
        assert template(messages=[message("one"), message("answer", role="assistant")]).prompt == "one"
        assert template(messages=[message("one"), message(text("two"))]).prompt == "two"
        assert template(messages=[message("Free OCR.", role="system")]).prompt == "Free OCR."

    def test_its_options_apply(self, template: Any) -> None:
        plan = template(ocr={"pages": "2-3", "mode": "tiny", "dpi": 72})
        (planned,) = plan.sources
        assert planned.mode == MODES["tiny"]
        assert planned.source.dpi == 72
        assert planned.source.pages.resolve(5, most=5) == [1, 2]
        assert planned.parameters["pages"] == "ocr.pages"

    @pytest.mark.parametrize("part", [picture(A), FILE])
    def test_it_has_no_picture_of_its_own(self, template: Any, part: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest) as caught:
            template(messages=[message(part, "Free OCR.")])
        assert caught.value.param == "messages"

    def test_other_parts_are_refused_by_name(self, template: Any) -> None:
        with pytest.raises(InvalidRequest, match="input_audio") as caught:
            template(messages=[message("x"), message("y", AUDIO)])
        assert (caught.value.param, caught.value.code) == ("messages[1].content[1].type", "unsupported_content")

    def test_other_parts_in_an_assistants_message_are_ignored(self, template: Any) -> None:
        refusal = message({"type": "refusal", "refusal": "no"}, role="assistant")
        assert template(messages=[message("x"), refusal]).prompt == "x"
