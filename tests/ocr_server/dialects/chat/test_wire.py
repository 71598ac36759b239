"""Validation of chat requests: what is accepted, what is refused, and that no input makes the server fail."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ocr.modes import MODES
from ocr_server.dialects.chat.wire import NEUTRAL, ChatCompletionRequest, OcrOptions
from ocr_server.dialects.json_schema import MAX_SCHEMA_LEVELS
from tests.ocr_server.conftest import (
    CHAT,
    WHITE,
    chat,
    client_of,
    envelope,
    error_of,
    events,
    examples,
    message,
    picture,
)

NOT_A_NUMBER = float("nan")
REFUSED = ChatCompletionRequest.REFUSED


def nested(wrap: Callable[[Any], Any]) -> Any:
    """Return a value that is nested more deeply than a schema may be."""
    value: Any = {}
    for _ in range(MAX_SCHEMA_LEVELS):
        value = wrap(value)
    return value


async def refused(client: httpx.AsyncClient, param: str | None, **fields: Any) -> dict[str, Any]:
    """Send a request with these fields, NaN included, and return the error, which names `param`."""
    error = error_of(await client.post(CHAT, content=json.dumps(chat(**fields))), 400)
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    return error


class TestStrictness:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("model", 5),
            ("model", None),
            ("stream", "true"),
            ("stream", 1),
            ("max_tokens", "5"),
            ("max_tokens", 5.5),
            ("max_tokens", 0),
            ("max_tokens", True),
            ("max_completion_tokens", -1),
            ("temperature", "0"),
            ("temperature", -0.1),
            ("temperature", 2.1),
            ("temperature", True),
            ("top_p", -0.1),
            ("top_p", 1.1),
            ("n", 0),
            ("n", 129),
            ("seed", 2**63),
            ("seed", 1.5),
            ("presence_penalty", 2.1),
            ("frequency_penalty", -2.1),
            ("logprobs", "yes"),
            ("top_k", -2),
            ("min_p", 1.1),
            ("repetition_penalty", 0),
            ("min_tokens", -1),
            ("ignore_eos", 1),
            ("messages", []),
            ("messages", None),
            ("messages", {}),
            ("ocr", [1]),
        ],
    )
    async def test_types_are_not_coerced_and_ranges_are_checked(
        self, client: httpx.AsyncClient, field: str, value: Any
    ) -> None:
        await refused(client, field, **{field: value})

    @pytest.mark.parametrize("value", [NOT_A_NUMBER, float("inf"), -float("inf")])
    @pytest.mark.parametrize(
        "field", ["temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty"]
    )
    async def test_numbers_must_be_finite(self, client: httpx.AsyncClient, field: str, value: float) -> None:
        await refused(client, field, **{field: value})

    @pytest.mark.parametrize("value", [NOT_A_NUMBER, 101, -101, "1", None])
    async def test_logit_bias(self, client: httpx.AsyncClient, value: Any) -> None:
        await refused(client, "logit_bias.5", logit_bias={"5": value})

    @pytest.mark.parametrize("stop", ["", [""], ["a", ""], ["a"] * 17])
    async def test_stop(self, client: httpx.AsyncClient, stop: Any) -> None:
        await refused(client, "stop", stop=stop)

    async def test_min_tokens_above_max_tokens(self, client: httpx.AsyncClient) -> None:
        await refused(client, "min_tokens", min_tokens=6, max_tokens=5)

    async def test_parameters_that_require_others(self, client: httpx.AsyncClient) -> None:
        await refused(client, "top_logprobs", top_logprobs=1)
        assert (await client.post(CHAT, json=chat(top_logprobs=0, stream_options={}))).status_code == 200
        await refused(client, "stream_options", stream_options={"include_usage": True})

    @pytest.mark.parametrize(
        "form", [{"type": "json_schema"}, {"type": "text", "json_schema": {"name": "x", "schema": {}}}]
    )
    async def test_a_schema_goes_with_its_type(self, client: httpx.AsyncClient, form: Any) -> None:
        await refused(client, "response_format", response_format=form)

    @pytest.mark.parametrize("output", ["raw", "blocks"])
    @pytest.mark.parametrize(
        "schema",
        [
            {"properties": {f"p{number}": {} for number in range(5001)}},
            {"enum": list(range(5001))},
            {"anyOf": [{"enum": [0] * 100}] * 60},
            {"description": "x" * 100_001},
            {"x" * 100_001: 1},
            nested(lambda inner: {"items": inner}),
            {"a": nested(lambda inner: [inner])},
        ],
        ids=["properties", "values", "branches", "text", "name", "objects", "lists"],
    )
    async def test_large_schemas(self, client: httpx.AsyncClient, schema: Any, output: str) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        await refused(
            client, "response_format.json_schema.schema", response_format=form, ocr={"mode": "tiny", "output": output}
        )

    def test_the_largest_schema(self) -> None:
        schema: dict[str, Any] = {"properties": {f"p{number}": {} for number in range(4990)}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert ChatCompletionRequest.model_validate(chat(response_format=form)).response_format is not None

    @pytest.mark.parametrize(("n", "top"), [(2, 16), (16, 2), (16, 20)])
    async def test_log_probabilities_of_many_choices(self, client: httpx.AsyncClient, n: int, top: int) -> None:
        for temperature in (0, 1):
            await refused(client, "top_logprobs", n=n, logprobs=True, top_logprobs=top, temperature=temperature)

    @pytest.mark.parametrize(("n", "top"), [(1, 20), (16, 1), (16, None)])
    def test_log_probabilities_within_the_limit(self, n: int, top: int | None) -> None:
        ChatCompletionRequest.model_validate(chat(n=n, logprobs=True, top_logprobs=top))

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([message("x", role="boss")], "messages[0].role"),
            ([{"content": "x"}], "messages[0].role"),
            ([message("x"), {"role": "user", "content": 5}], "messages[1].content"),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
            ([{"role": "user", "content": [{"words": "x"}]}], "messages[0].content[0].type"),
            ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
            ([message(picture(detail="best"))], "messages[0].content[0].image_url.detail"),
            ([message({"type": "image_url", "image_url": 5})], "messages[0].content[0].image_url"),
            ([message({"type": "image_url"})], "messages[0].content[0].image_url"),
            ([message({"type": "image_url", "image_url": {}})], "messages[0].content[0].image_url.url"),
        ],
    )
    async def test_messages(self, client: httpx.AsyncClient, messages: Any, param: str) -> None:
        error = error_of(await client.post(CHAT, json=chat(*messages)), 400)
        assert error["param"] == param


class TestUnknownAndRefused:
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("prompt_cache_options", "prompt_cache_options"),
            ("Stream", "Stream"),
            ("a, b\r\nc: d", "a%2C%20b%0D%0Ac%3A%20d"),
            ("\u00fc" * 100, "%C3%BC" * 16 + "%C3%"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_unknown_parameter_is_accepted_and_named(
        self, client: httpx.AsyncClient, name: str, shown: str, stream: bool
    ) -> None:
        response = await client.post(CHAT, json=chat(**{name: 1}, stream=stream))
        assert response.status_code == 200
        assert response.headers["x-ignored-parameters"] == shown

    async def test_nothing_is_named_without_one(self, client: httpx.AsyncClient) -> None:
        assert "x-ignored-parameters" not in (await client.post(CHAT, json=chat(stop=[], tools=None))).headers

    async def test_the_names_inside_are_named_as_well(self, client: httpx.AsyncClient) -> None:
        part = {**picture(), "cache_control": {"type": "ephemeral"}, "uuid": "1"}
        part["image_url"]["format"] = "image/png"
        response = await client.post(CHAT, json=chat({**message(part), "name": "Ada"}, moderation=True))
        assert response.headers["x-ignored-parameters"] == "moderation, name, cache_control, uuid, format"

    async def test_errors_name_them_as_well(self, client: httpx.AsyncClient) -> None:
        response = await client.post(CHAT, json=chat(model="gpt", moderation=True))
        assert (response.status_code, response.headers["x-ignored-parameters"]) == (404, "moderation")

    @pytest.mark.parametrize(
        ("param", "fields"),
        [
            ("structured_outputs", {"structured_outputs": {"regex": "a", "choice": ["b"]}}),
            ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
            ("structured_outputs.structural_tag", {"structured_outputs": {"structural_tag": "{}"}}),
            ("structured_outputs.json", {"structured_outputs": {"json": "{"}}),
            ("guided_json", {"guided_json": "[" * 5000}),
            ("guided_regex", {"guided_regex": "a" * 20_001}),
            ("guided_choice", {"guided_choice": ["a"] * 101}),
            ("bad_words", {"bad_words": ["a"] * 101}),
            ("allowed_token_ids[0]", {"allowed_token_ids": [-1]}),
            ("repetition_detection", {"repetition_detection": {"max_pattern_size": 9}}),
            ("repetition_detection.max_pattern_size", {"repetition_detection": {"max_pattern_size": 129}}),
            ("vllm_xargs.whitelist_token_ids[0]", {"vllm_xargs": {"whitelist_token_ids": "a,b"}}),
            ("prompt_logprobs", {"prompt_logprobs": 1}),
            ("continue_final_message", {"continue_final_message": True}),
            ("use_beam_search", {"use_beam_search": True}),
        ],
    )
    async def test_what_vllm_has_and_cannot_be_honoured_here(
        self, client: httpx.AsyncClient, param: str, fields: dict[str, Any]
    ) -> None:
        await refused(client, param, **fields)

    async def test_parameters_of_vllm_without_effect(self, client: httpx.AsyncClient) -> None:
        """Special tokens are written in any case: tables and coordinates consist of them."""
        given = {"skip_special_tokens": True, "spaces_between_special_tokens": True, "priority": 1, "cache_salt": "x"}
        response = await client.post(CHAT, json=chat(**given, request_id="a", chat_template_kwargs={"a": 1}))
        assert response.status_code == 200
        named = "skip_special_tokens, spaces_between_special_tokens, priority, cache_salt, request_id"
        assert response.headers["x-ignored-parameters"] == f"{named}, chat_template_kwargs"

    @pytest.mark.parametrize("choice", [None, "none", "auto"])
    async def test_tools_are_accepted_as_agents_send_them(self, client: httpx.AsyncClient, choice: str | None) -> None:
        tool = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
        response = await client.post(CHAT, json=chat(tools=[tool], tool_choice=choice, parallel_tool_calls=False))
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"] == "Hello"
        assert response.headers["x-ignored-parameters"] == "tools, parallel_tool_calls"

    @pytest.mark.parametrize("choice", ["required", "any", {"type": "function", "function": {"name": "read"}}])
    async def test_a_required_tool_is_refused_with_what_to_use_instead(
        self, client: httpx.AsyncClient, choice: Any
    ) -> None:
        assert "response_format" in (await refused(client, "tool_choice", tool_choice=choice))["message"]

    async def test_an_unknown_option(self, client: httpx.AsyncClient) -> None:
        error = error_of(await client.post(CHAT, json=chat(ocr={"modus": "tiny"})), 400)
        assert error["param"] == "ocr.modus"

    @pytest.mark.parametrize("output", ["docx", "overlay", "json", ""])
    async def test_an_unknown_output_is_refused_with_the_known_names(
        self, client: httpx.AsyncClient, output: str
    ) -> None:
        error = await refused(client, "ocr.output", ocr={"output": output})
        assert "raw, markdown, blocks" in error["message"]

    @pytest.mark.parametrize("mode", ["huge", "Tiny", ""])
    async def test_an_unknown_mode_is_refused_with_the_known_names(self, client: httpx.AsyncClient, mode: str) -> None:
        error = await refused(client, "ocr.mode", ocr={"mode": mode})
        assert ", ".join(MODES) in error["message"]

    @pytest.mark.parametrize("name", REFUSED)
    async def test_an_unsupported_parameter_is_refused_with_the_reason(
        self, client: httpx.AsyncClient, name: str
    ) -> None:
        error = await refused(client, name, **{name: ["something"]})
        assert error["code"] == "unsupported_parameter"
        assert error["message"] == f"{name} is not supported: {REFUSED[name]}."

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name in NEUTRAL for value in (*NEUTRAL[name], None)])
    async def test_a_neutral_value_is_accepted(self, client: httpx.AsyncClient, name: str, value: Any) -> None:
        assert (await client.post(CHAT, json=chat(**{name: value}))).status_code == 200

    @pytest.mark.parametrize("name", [name for name in REFUSED if name not in NEUTRAL])
    async def test_null_is_accepted_for_unsupported_parameters(self, client: httpx.AsyncClient, name: str) -> None:
        assert (await client.post(CHAT, json=chat(**{name: None}))).status_code == 200

    async def test_parameters_without_effect_are_accepted(self, client: httpx.AsyncClient) -> None:
        harmless = {
            "user": "me",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "parallel_tool_calls": False,
        }
        assert (await client.post(CHAT, json=chat(**harmless))).status_code == 200

    async def test_a_message_may_have_a_name(self, client: httpx.AsyncClient) -> None:
        assert (await client.post(CHAT, json=chat({**message(picture()), "name": "Ada"}))).status_code == 200


VALID: list[dict[str, Any]] = [
    chat(),
    chat(stream=True, stream_options={"include_usage": True}, n=2, logprobs=True, top_logprobs=2),
    chat(temperature=0.5, top_p=0.5, top_k=3, min_p=0.1, n=2, seed=1, stop=["a"], logit_bias={"5": 1.0}),
    chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}),
    chat(
        message("Read.", role="system"),
        message(picture(detail="low"), "a"),
        message("b", role="assistant"),
        message("c"),
        ocr={"mode": "tiny", "ngram_size": 3, "window_size": 9, "whitelist_token_ids": [1], "max_crops": 2},
        stop_token_ids=[5],
        max_tokens=5,
    ),
]
NAMES = sorted(
    {*ChatCompletionRequest.model_fields, *OcrOptions.model_fields, *REFUSED, "role", "content", "type", "url"}
)
ANY_TEXT = st.text(st.characters(), max_size=8)  # including lone surrogates, which JSON can express
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, -(2**63), 10**40, 1e308, 5e-324]),
    st.floats(),
    ANY_TEXT,
    st.sampled_from(["data:image/png;base64,AAAA", WHITE, "http://127.0.0.1/", "file:///etc/passwd", "tiny", "user"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from containers(each)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid request with up to three values replaced, added or removed anywhere in it."""
    body = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(containers(body))))
        if isinstance(place, list):
            position = draw(st.integers(0, len(place)))
            place[position : position + 1] = draw(st.lists(JSON, max_size=2))
        elif draw(st.integers(0, 5)) == 0 and place:
            del place[draw(st.sampled_from(list(place)))]
        else:
            known = st.sampled_from([*place, *NAMES])
            place[draw(known | known | ANY_TEXT)] = draw(JSON)
    return body


async def post(app: FastAPI, body: bytes | str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post(CHAT, content=body)


def answered_properly(response: httpx.Response) -> None:
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.status_code != 200:
        envelope(response.json())
    elif response.headers["content-type"].startswith("text/event-stream"):
        *chunks, done = events(response.text)
        assert done == "[DONE]"
        assert all("error" not in chunk for chunk in chunks)
    else:
        assert response.json()["object"] == "chat.completion"


class TestHostileInput:
    @pytest.mark.parametrize("body", VALID)
    async def test_the_requests_that_are_mutated_are_valid(self, app: FastAPI, body: dict[str, Any]) -> None:
        response = await post(app, json.dumps(body))
        assert response.status_code == 200, response.text
        answered_properly(response)

    @pytest.mark.slow
    @given(body=mutated())
    @examples(400)
    def test_any_json_object(self, app: FastAPI, body: dict[str, Any]) -> None:
        answered_properly(asyncio.run(post(app, json.dumps(body))))

    @given(body=JSON)
    @examples(50)
    def test_any_json(self, app: FastAPI, body: Any) -> None:
        response = asyncio.run(post(app, json.dumps(body)))
        assert response.status_code == 400
        envelope(response.json())

    @given(body=st.binary(max_size=30))
    @examples(50)
    def test_any_bytes(self, app: FastAPI, body: bytes) -> None:
        response = asyncio.run(post(app, body))
        assert response.status_code == 400
        envelope(response.json())

    @pytest.mark.parametrize("place", ["unknown", "metadata", "messages", "type", "content", "schema", "tools"])
    def test_deep_nesting_is_refused(self, app: FastAPI, place: str) -> None:
        for depth in (50, 300, 600, *range(700, 1000, 20), 20_000):
            deep = "[" * depth + "]" * depth
            parts = f'[{{"type": "image_url", "image_url": {{"url": "{WHITE}"}}}}, PART]'
            body = {
                "unknown": f'{{"model": "deepseek-ocr", "messages": [], "x": {deep}}}',
                "metadata": f'{{"model": "deepseek-ocr", "messages": [], "metadata": {{"x": {deep}}}}}',
                "messages": f'{{"model": "deepseek-ocr", "messages": {deep}}}',
                "type": f'{{"model": "deepseek-ocr", "messages": [{{"role": "user", "content": {parts}}}]}}'.replace(
                    "PART", f'{{"type": {deep}}}'
                ),
                "content": f'{{"model": "deepseek-ocr", "messages": [{{"role": "user", "content": {deep}}}]}}',
                "schema": '{"model": "deepseek-ocr", "messages": [], "response_format": '
                f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {{"x": {deep}}}}}}}}}',
                "tools": f'{{"model": "deepseek-ocr", "messages": [], "tools": {deep}}}',
            }[place]
            response = asyncio.run(post(app, body))
            assert response.status_code == 400, (depth, response.text)
            envelope(response.json())

    @pytest.mark.parametrize("name", ["\ud800", "a\udfffb", "\0", "\u2028", "😀"])
    async def test_names_with_unusual_characters(self, app: FastAPI, name: str) -> None:
        for body in (chat(**{name: 1}), chat(ocr={name: 1}), chat(logit_bias={name: 1.0}), chat(metadata={name: 1})):
            answered_properly(await post(app, json.dumps(body)))
