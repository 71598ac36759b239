"""`POST /v1/responses` with OpenAI's SDK: what it sends is understood, and what it receives is what it expects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import APIError, AsyncOpenAI, BadRequestError
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseIncompleteEvent,
    ResponseStreamEvent,
    ResponseTextDeltaEvent,
)
from pydantic import BaseModel

from config import Settings
from ocr_server.dialects.messages import NOTHING_TO_READ
from ocr_server.errors import EngineFailure
from ocr_server.reading.page import LogprobStep, Page, ScoredToken
from tests.ocr_server.conftest import WHITE, FakeEngine, delta, error_of, fails, png, says

RESPONSES = "/v1/responses"
MODEL = "deepseek-ocr"
IMAGE = {"type": "input_image", "image_url": WHITE, "detail": "auto"}
TEXT = {"type": "input_text", "text": "Free OCR."}


def asks(*parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": list(parts or (IMAGE, TEXT))}]


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": asks(), **more}


async def streamed_events(sdk: AsyncOpenAI, **more: Any) -> list[ResponseStreamEvent]:
    return [event async for event in await sdk.responses.create(model=MODEL, input=asks(), stream=True, **more)]


@pytest.fixture
async def sdk(app: FastAPI) -> AsyncIterator[AsyncOpenAI]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        yield AsyncOpenAI(base_url="http://server/v1", api_key="EMPTY", http_client=http, max_retries=0)


class TestInput:
    async def test_a_picture_and_a_prompt(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        response = await sdk.responses.create(model=MODEL, input=asks())
        assert (response.status, response.output_text) == ("completed", "Hello")
        assert engine.pages[0].prompt == "Free OCR."

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "input_image", "image_url": WHITE},
            {"type": "input_image", "image_url": WHITE, "detail": "low"},
            {"type": "input_file", "filename": "page.png", "file_data": WHITE},
            {"type": "input_file", "file_data": WHITE.partition(",")[2]},
            {"type": "input_file", "file_url": WHITE},
            {"type": "image_url", "image_url": {"url": WHITE}},
        ],
    )
    async def test_shapes_of_pictures(self, part: dict[str, Any], sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        response = await sdk.responses.create(model=MODEL, input=asks(part, TEXT))
        assert response.output_text == "Hello"
        assert len(engine.pages) == 1

    async def test_the_items_of_a_conversation(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        """An earlier response and what an agent did since then are sent back; the pictures are the newest ones."""
        first = await sdk.responses.create(model=MODEL, input=asks())
        items = [
            *asks(IMAGE, {"type": "input_text", "text": "Parse the figure."}),
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "{}"},
            {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": png(20, 20)}, TEXT]},
        ]
        assert (await sdk.responses.create(model=MODEL, input=items)).output_text == "Hello"
        assert len(engine.pages) == 2
        assert engine.pages[1].prompt == "Free OCR."

    @pytest.mark.parametrize(
        ("instructions", "prompt"),
        [
            ("You are a helpful assistant.", None),
            ("<|grounding|>OCR this image.", "<|grounding|>OCR this image."),
        ],
    )
    async def test_instructions_are_a_system_message(
        self, instructions: str, prompt: str | None, sdk: AsyncOpenAI, engine: FakeEngine, settings: Settings
    ) -> None:
        response = await sdk.responses.create(model=MODEL, input=asks(IMAGE), instructions=instructions)
        assert engine.pages[0].prompt == (prompt or settings.DEFAULT_PROMPT)
        assert response.instructions == instructions

    async def test_without_a_picture(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        response = await sdk.responses.create(model=MODEL, input="ping")
        assert (response.status, response.output_text) == ("completed", NOTHING_TO_READ)
        stream = await sdk.responses.create(model=MODEL, input="ping", stream=True)
        text = "".join([event.delta async for event in stream if isinstance(event, ResponseTextDeltaEvent)])
        assert text == NOTHING_TO_READ
        assert engine.pages == []

    async def test_parameters_without_effect(self, client: httpx.AsyncClient) -> None:
        ignored = {"store": True, "truncation": "auto", "user": "me", "service_tier": "auto", "prompt_cache_key": "k"}
        neutral: dict[str, Any] = {
            "metadata": {"a": "b"},
            "previous_response_id": None,
            "include": [],
            "tools": [],
            "background": False,
        }
        response = await client.post(RESPONSES, json=body(**ignored, **neutral, parallel_tool_calls=True))
        assert response.status_code == 200, response.text
        assert set(response.headers["x-ignored-parameters"].split(", ")) == set(ignored)
        assert response.json()["metadata"] == {"a": "b"}
        assert response.json()["store"] is False

    async def test_functions_are_accepted_and_not_called(self, sdk: AsyncOpenAI) -> None:
        function: Any = {"type": "function", "name": "f", "parameters": {}, "strict": True}
        for choice in ("auto", "none"):
            response = await sdk.responses.create(model=MODEL, input=asks(), tools=[function], tool_choice=choice)
            assert (response.output_text, response.tools) == ("Hello", [])

    @pytest.mark.parametrize(
        ("more", "param", "words"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id", "input"),
            ({"conversation": "conv_1"}, "conversation", "input"),
            ({"prompt": {"id": "p"}}, "prompt", "instructions"),
            ({"background": True}, "background", ""),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
            ({"tools": [5]}, "tools[0].type", ""),
            ({"tool_choice": "required"}, "tool_choice", "response format"),
            ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "response format"),
            ({"reasoning": {"effort": "high"}}, "reasoning.effort", ""),
            ({"messages": []}, None, ""),
            ({"messages": [{}]}, "messages", "input"),
            ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
            ({"n": 2}, "n", "/v1/chat/completions"),
            ({"n": 1, "return_token_ids": False}, None, ""),
            ({"vllm_xargs": {"ngram_size": 5}}, "vllm_xargs", "/v1/chat/completions"),
            ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type", "items"),
            ({"input": asks({"type": "input_audio"})}, "input[0].content[0].type", "input_audio"),
            ({"input": asks({"type": "input_image"})}, "input[0].content[0].image_url", ""),
            ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0]", ""),
            ({"input": None}, "input", ""),
            ({"ocr": {"colour": 1}}, "ocr.colour", ""),
            ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "schema"),
            ({"max_output_tokens": 0}, "max_output_tokens", ""),
            ({"stop": [""]}, "stop", ""),
            ({"include": ["message.output_text.logprobs"], "ocr": {"output": "blocks"}}, "include", "raw"),
            ({"text": {"format": {"type": "json_object"}}, "input": "ping"}, "input", "picture"),
        ],
    )
    async def test_what_is_refused(
        self, more: dict[str, Any], param: str | None, words: str, client: httpx.AsyncClient
    ) -> None:
        response = await client.post(RESPONSES, json=body(**more))
        if param is None:
            assert response.status_code == 200
            return
        error = error_of(response, 400)
        assert (error["param"] or "").startswith(param), error
        assert words in error["message"]

    async def test_sampling(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        more = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "stop": ["x"], "repetition_penalty": 1.1}
        response = (await client.post(RESPONSES, json=body(max_output_tokens=9, **more))).json()
        decoding = engine.pages[0].decoding
        assert (decoding.temperature, decoding.top_p, decoding.top_k, decoding.seed) == (0.5, 0.9, 7, 3)
        assert (decoding.stop, decoding.repetition_penalty, decoding.max_tokens) == (("x",), 1.1, 9)
        assert (response["temperature"], response["top_p"], response["max_output_tokens"]) == (0.5, 0.9, 9)

    async def test_a_large_echo_is_left_out(self, client: httpx.AsyncClient) -> None:
        large = "x" * 100_000
        response = await client.post(RESPONSES, json=body(instructions=large, metadata={"a": large}))
        assert response.status_code == 200
        assert len(response.content) < 5000


class TestOutput:
    async def test_usage(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.script = says("a", "b")
        usage = (await sdk.responses.create(model=MODEL, input=asks(IMAGE, IMAGE, TEXT))).usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (20, 4, 24)
        assert usage.input_tokens_details.cached_tokens == usage.output_tokens_details.reasoning_tokens == 0

    async def test_pages_are_joined_and_reported(self, sdk: AsyncOpenAI) -> None:
        options = {"ocr": {"page_separator": "|", "mode": "tiny"}}
        response = await sdk.responses.create(model=MODEL, input=asks(IMAGE, IMAGE, TEXT), extra_body=options)
        assert response.output_text == "Hello|Hello"
        pages = response.output[0].model_dump()["ocr"]["pages"]
        assert [page["finish_reason"] for page in pages] == ["stop", "stop"]

    async def test_a_page_that_is_cut_off(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.script = says("a", finish="length")
        response = await sdk.responses.create(model=MODEL, input=asks(), max_output_tokens=1)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.completed_at is None
        assert response.output_text == "a"

    async def test_a_parsed_answer(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        class Total(BaseModel):
            total: int

        engine.script = says('{"total": 5}')
        response = await sdk.responses.parse(model=MODEL, input=asks(), text_format=Total)
        assert response.output_parsed == Total(total=5)
        assert engine.pages[0].decoding.json_schema is not None
        async with sdk.responses.stream(model=MODEL, input=asks(), text_format=Total) as stream:
            assert (await stream.get_final_response()).output_parsed == Total(total=5)
        await sdk.responses.create(model=MODEL, input=asks(), text={"format": {"type": "json_object"}})
        assert engine.pages[2].decoding.json_object

    async def test_blocks_as_json(self, client: httpx.AsyncClient) -> None:
        schema = {"type": "object", "properties": {"pages": {"items": {"properties": {"page": {}}}}}}
        form = {"type": "json_schema", "name": "a", "schema": schema}
        response = await client.post(RESPONSES, json=body(text={"format": form}, ocr={"output": "blocks"}))
        text = response.json()["output"][0]["content"][0]["text"]
        assert json.loads(text) == {"pages": [{"page": 1}]}
        wrong = {"type": "json_schema", "name": "a", "schema": {"properties": {"colour": {}}}}
        error = error_of(await client.post(RESPONSES, json=body(text={"format": wrong}, ocr={"output": "blocks"})), 400)
        assert (error["param"], error["code"]) == ("text.format.schema", "invalid_schema")

    @pytest.mark.parametrize("stream", [False, True])
    async def test_log_probabilities(self, stream: bool, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        async def scored(_: int, __: Page) -> Any:
            steps = [LogprobStep(ScoredToken("Hi", -0.5), [ScoredToken("Hi", -0.5), ScoredToken("Ho", float("-inf"))])]
            yield delta("Hi", logprobs=steps, finish="stop")

        engine.script = scored
        wanted: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        if stream:
            events = [
                event async for event in await sdk.responses.create(model=MODEL, input=asks(), stream=True, **wanted)
            ]
            (scores,) = [event.logprobs for event in events if isinstance(event, ResponseTextDeltaEvent)]
            assert [each.token for each in scores] == ["Hi"]
            assert isinstance(events[-1], ResponseCompletedEvent)
            response = events[-1].response
        else:
            response = await sdk.responses.create(model=MODEL, input=asks(), **wanted)
        (token,) = response.output[0].content[0].logprobs
        assert (token.token, token.logprob, token.bytes) == ("Hi", -0.5, [72, 105])
        assert [each.logprob for each in token.top_logprobs] == [-0.5, -9999.0]
        assert engine.pages[0].decoding.logprobs == 2


KINDS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


class TestStream:
    async def test_the_events_in_order(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.script = says("Hel", "lo")
        events = await streamed_events(sdk)
        assert [event.type for event in events] == KINDS
        assert [event.sequence_number for event in events] == list(range(len(KINDS)))
        last = events[-1]
        assert isinstance(last, ResponseCompletedEvent)
        assert last.response.output_text == "Hello"
        assert last.response.usage is not None
        assert last.response.usage.output_tokens == 2

    async def test_the_frames(self, client: httpx.AsyncClient) -> None:
        """Each event has its name, as clients that read the stream themselves expect, and nothing follows the last."""
        text = (await client.post(RESPONSES, json=body(stream=True))).text
        frames = [frame.split("\n") for frame in text.removesuffix("\n\n").split("\n\n")]
        for name, data in frames:
            assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
        assert frames[-1][0] == "event: response.completed"

    async def test_the_sdk_s_own_accumulation(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.script = says("Hel", "lo")
        async with sdk.responses.stream(model=MODEL, input=asks(IMAGE, IMAGE, TEXT)) as stream:
            snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert snapshots[-1] == final.output_text
        assert final.output_text.count("Hello") == 2

    async def test_reports_and_pictures_of_pages(self, client: httpx.AsyncClient) -> None:
        options = {"output": "blocks", "include_page_images": True, "mode": "tiny"}
        text = (await client.post(RESPONSES, json=body(stream=True, ocr=options))).text
        events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
        (opened,) = [event["ocr_page"] for event in events if "ocr_page" in event]
        (report,) = [event["ocr"]["pages"][0] for event in events if "ocr" in event]
        assert opened["image"].startswith("data:image/jpeg")
        assert report["page"] == 1
        assert events[-1]["response"]["output"][0]["ocr"]["pages"] == [report]

    async def test_an_incomplete_answer(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.script = says("a", finish="length")
        events = await streamed_events(sdk)
        last = events[-1]
        assert isinstance(last, ResponseIncompleteEvent)
        assert last.response.status == last.response.output[0].status == "incomplete"

    async def test_an_error_before_the_answer(self, sdk: AsyncOpenAI) -> None:
        with pytest.raises(BadRequestError) as caught:
            await sdk.responses.create(
                model=MODEL, input=asks({"type": "input_image", "image_url": "x:y"}), stream=True
            )
        assert caught.value.param == "input[0].content[0].image_url"

    async def test_an_error_in_the_stream_is_raised(self, sdk: AsyncOpenAI, engine: FakeEngine) -> None:
        engine.script = fails(EngineFailure("It broke."), "a")
        kinds = []

        async def read() -> None:
            async for event in await sdk.responses.create(model=MODEL, input=asks(), stream=True):
                kinds.append(event.type)
                if event.type == "response.failed":
                    assert event.response.error is not None
                    assert (event.response.status, event.response.error.code) == ("failed", "engine_error")

        with pytest.raises(APIError, match="It broke") as caught:
            await read()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.failed"
        assert caught.value.code == "engine_error"
