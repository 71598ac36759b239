"""Reading images at the chat endpoint: answers, streams, messages, token counts, decoding options and resolution."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_requests import (
    MODEL,
    NOTICE,
    PICTURES,
    PROMPT,
    RECEIPT,
    SEPARATOR,
    SIGN,
    ask,
    blank,
    call,
    events,
    ids,
    image_part,
    joined,
    request,
    text_of,
    text_part,
    text_tokens,
    token_id,
    truth,
    user,
)
from openai import AsyncOpenAI, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion

pytestmark = pytest.mark.live

SMALL_PICTURE = 273
"""Vision tokens of an image without tiles in the default mode: 16 rows of 16 and a newline token, and the separator."""
BOS = 1
DEFAULT_PROMPT = "<|grounding|>Convert the document to markdown."

Usage = Callable[..., CompletionUsage]


@pytest.fixture
def read(client: OpenAI) -> Callable[..., ChatCompletion]:
    """Read images (by default, the sign) with the SDK."""

    def read(*pictures: str | bytes | Path, **options: Any) -> ChatCompletion:
        answer: ChatCompletion = client.chat.completions.create(**call(*pictures, **options))
        return answer

    return read


@pytest.fixture
def usage(read: Callable[..., ChatCompletion]) -> Usage:
    """Return the usage of a request. By default, the answer has only one token."""

    def usage(*pictures: str | bytes | Path, **options: Any) -> CompletionUsage:
        found = read(*pictures, **({"max_tokens": 1} | options)).usage
        assert found is not None
        assert found.total_tokens == found.prompt_tokens + found.completion_tokens
        return found

    return usage


@pytest.fixture(scope="module")
def plain(base_url: str) -> ChatCompletion:
    """The answer for the sign, read without any options."""
    with OpenAI(base_url=base_url, api_key="EMPTY") as client:
        answer: ChatCompletion = client.chat.completions.create(**call())
        return answer


def usage_of(answer: ChatCompletion) -> CompletionUsage:
    assert answer.usage is not None
    return answer.usage


def image_tokens(usage: CompletionUsage) -> int:
    assert usage.prompt_tokens_details is not None
    tokens: int = usage.prompt_tokens_details.image_tokens
    return tokens


# Reading


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_every_example_is_read_exactly(read: Callable[..., ChatCompletion], picture: Path) -> None:
    answer = read(picture)
    assert text_of(answer) == truth(picture)
    assert answer.choices[0].finish_reason == "stop"


def test_text_across_tile_borders_is_read(read: Callable[..., ChatCompletion]) -> None:
    in_tiles, whole = read(NOTICE), read(NOTICE, ocr={"mode": "base"})
    assert image_tokens(usage_of(in_tiles)) == SMALL_PICTURE + 30 * 21, "three rows of two tiles"
    assert text_of(in_tiles) == truth(NOTICE)
    assert text_of(whole) != truth(NOTICE), "without tiles, the print should be too small to be read"


def test_the_answer_is_a_chat_completion(read: Callable[..., ChatCompletion]) -> None:
    before = int(time.time())
    first, second = read(max_tokens=2), read(max_tokens=2)
    assert first.object == "chat.completion"
    assert first.model == MODEL
    assert first.id.startswith("chatcmpl-")
    assert first.id != second.id
    assert before <= first.created <= time.time()
    assert first.system_fingerprint
    assert first.system_fingerprint == second.system_fingerprint
    (choice,) = first.choices
    assert choice.message.role == "assistant"
    assert choice.logprobs is None


@pytest.mark.parametrize("options", [{}, {"max_tokens": 20}, {"stop": "Friday"}], ids=str)
def test_a_stream_adds_up_to_the_whole_answer(
    client: OpenAI, read: Callable[..., ChatCompletion], options: dict[str, Any]
) -> None:
    whole = read(**options)
    chunks = list(client.chat.completions.create(**call(**options), stream=True))
    assert joined(chunks) == text_of(whole)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert sum(1 for chunk in chunks if chunk.choices[0].delta.content) > 1, "the text should come in pieces"
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1


async def test_the_asynchronous_sdk(async_client: AsyncOpenAI) -> None:
    whole, stream = await asyncio.gather(
        async_client.chat.completions.create(**call()),
        async_client.chat.completions.create(**call(), stream=True),
    )
    assert text_of(whole) == truth(SIGN)
    assert joined([chunk async for chunk in stream]) == truth(SIGN)


def test_the_events_of_a_stream(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=request(stream=True))
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    first, *between, last, done = events(answer.text)
    assert done == "[DONE]"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    for chunk in between:
        (choice,) = chunk["choices"]
        assert list(choice["delta"]) == ["content"]
        assert choice["finish_reason"] is None
    chunks = [first, *between, last]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks), "usage was not requested"


def test_usage_is_the_last_chunk_of_a_stream(http: httpx.Client, plain: ChatCompletion) -> None:
    body = request(stream=True, stream_options={"include_usage": True})
    *chunks, last, done = events(http.post("/v1/chat/completions", json=body).text)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    whole = usage_of(plain)
    assert last["usage"]["prompt_tokens"] == whole.prompt_tokens
    assert last["usage"]["completion_tokens"] == whole.completion_tokens
    assert last["usage"]["total_tokens"] == whole.total_tokens
    assert last["usage"]["prompt_tokens_details"]["image_tokens"] == image_tokens(whole)


def test_request_ids_are_accepted_and_returned(http: httpx.Client, client: OpenAI) -> None:
    ours = {"x-request-id": "page-17-of-42"}
    body = request(max_tokens=1)
    assert http.post("/v1/chat/completions", json=body, headers=ours).headers["x-request-id"] == "page-17-of-42"
    streamed = http.post("/v1/chat/completions", json=body | {"stream": True}, headers=ours)
    assert streamed.headers["x-request-id"] == "page-17-of-42"
    raw = client.chat.completions.with_raw_response
    generated = [raw.create(**call(max_tokens=1)).request_id for _ in range(2)]
    assert all(generated)
    assert generated[0] != generated[1]
    hostile = http.get("/health", headers={"x-request-id": "x" * 10_000})
    assert len(hostile.headers["x-request-id"]) < 200


# Messages


def test_pictures_in_one_message_are_pages_in_order(client: OpenAI, read: Callable[..., ChatCompletion]) -> None:
    for pictures in ((SIGN, RECEIPT), (RECEIPT, SIGN)):
        expected = SEPARATOR.join(map(truth, pictures))
        answer = read(*pictures)
        assert text_of(answer) == expected
        assert answer.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(**call(*pictures), stream=True)
        assert joined(list(stream)) == expected


def test_usage_of_several_pages_is_their_sum(read: Callable[..., ChatCompletion]) -> None:
    single = [read(picture).usage for picture in (SIGN, RECEIPT, SIGN)]
    together = read(SIGN, RECEIPT, SIGN).usage
    assert together is not None
    assert together.prompt_tokens == sum(each.prompt_tokens for each in single if each)
    assert together.completion_tokens == sum(each.completion_tokens for each in single if each)
    assert image_tokens(together) == 3 * SMALL_PICTURE


@pytest.mark.parametrize("pictures", [(SIGN, RECEIPT), (RECEIPT, SIGN)], ids=["the last", "the first"])
def test_a_truncated_page_makes_the_finish_reason_length(
    client: OpenAI, read: Callable[..., ChatCompletion], pictures: tuple[Path, Path]
) -> None:
    limit = len(ids(truth(SIGN))) + 5  # enough for the sign, not for the receipt
    answer = read(*pictures, max_tokens=limit)
    assert answer.choices[0].finish_reason == "length"
    pages = dict(zip(pictures, text_of(answer).split(SEPARATOR), strict=True))
    assert pages[SIGN] == truth(SIGN)
    assert truth(RECEIPT).startswith(pages[RECEIPT])
    assert 0 < len(pages[RECEIPT]) < len(truth(RECEIPT))
    chunks = list(client.chat.completions.create(**call(*pictures, max_tokens=limit), stream=True))
    assert joined(chunks) == text_of(answer)
    ends = [end for chunk in chunks if (end := chunk.choices[0].finish_reason)]
    assert ends == ["length"]


def test_the_order_of_picture_and_text_makes_no_difference(
    read: Callable[..., ChatCompletion], plain: ChatCompletion
) -> None:
    after = read(messages=[user(text_part(), image_part(SIGN))])
    assert text_of(after) == truth(SIGN)
    assert after.usage == plain.usage


def test_only_the_last_user_message_is_read(read: Callable[..., ChatCompletion], plain: ChatCompletion) -> None:
    answer = read(
        messages=[
            user(image_part(RECEIPT), text_part("Describe this image in detail.")),
            {"role": "assistant", "content": "A receipt."},
            user(image_part(SIGN), text_part()),
        ]
    )
    assert text_of(answer) == truth(SIGN)
    assert answer.usage == plain.usage


def test_a_message_without_a_picture_asks_about_the_nearest_earlier_one(
    read: Callable[..., ChatCompletion], plain: ChatCompletion
) -> None:
    answer = read(
        messages=[
            user(image_part(RECEIPT), text_part()),
            {"role": "assistant", "content": truth(RECEIPT)},
            user(image_part(SIGN), text_part("Describe this image in detail.")),
            {"role": "assistant", "content": "A sign at a door."},
            {"role": "user", "content": PROMPT},
        ]
    )
    assert text_of(answer) == truth(SIGN)
    assert answer.usage == plain.usage


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_the_prompt_where_the_user_gives_none(
    read: Callable[..., ChatCompletion], usage: Usage, role: str, plain: ChatCompletion
) -> None:
    alone = read(messages=[{"role": role, "content": PROMPT}, user(image_part(SIGN))])
    assert text_of(alone) == truth(SIGN)
    assert alone.usage == plain.usage
    beside = usage(messages=[{"role": role, "content": "You are a helpful assistant."}, *ask(SIGN)])
    assert beside.prompt_tokens == usage_of(plain).prompt_tokens


def test_without_any_text_the_default_prompt_is_used(usage: Usage) -> None:
    asked = usage(messages=ask(SIGN, prompt=DEFAULT_PROMPT))
    assert usage(messages=ask(SIGN, prompt=None)).prompt_tokens == asked.prompt_tokens
    assert usage(messages=ask(SIGN, prompt=" \n ")).prompt_tokens == asked.prompt_tokens


# Tokens


@pytest.mark.parametrize("prompt", [PROMPT, DEFAULT_PROMPT, "Locate <|ref|>Friday<|/ref|> in the image.", "读出文字"])
def test_prompt_tokens_are_counted_exactly(usage: Usage, prompt: str) -> None:
    found = usage(messages=ask(SIGN, prompt=prompt))
    assert image_tokens(found) == SMALL_PICTURE
    assert found.prompt_tokens == SMALL_PICTURE + BOS + text_tokens(prompt)
    assert found.completion_tokens == 1


def test_completion_tokens_are_counted_exactly(plain: ChatCompletion) -> None:
    assert usage_of(plain).completion_tokens == len(ids(truth(SIGN))) + 1  # the end token


def test_a_special_token_is_one_token(usage: Usage, plain: ChatCompletion) -> None:
    marked = usage(messages=ask(SIGN, prompt=f"<|grounding|>{PROMPT}"))
    assert marked.prompt_tokens == usage_of(plain).prompt_tokens + 1


def test_an_image_tag_in_the_text_is_not_an_image(
    read: Callable[..., ChatCompletion], usage: Usage, plain: ChatCompletion
) -> None:
    inside = usage(messages=ask(SIGN, prompt=f"{PROMPT} <image>"))
    assert image_tokens(inside) == SMALL_PICTURE
    assert 1 < inside.prompt_tokens - usage_of(plain).prompt_tokens <= len(" <image>")
    leading = read(messages=ask(SIGN, prompt=f"<image>\n{PROMPT}"))  # as upstream writes its prompts
    assert text_of(leading) == truth(SIGN)
    assert leading.usage == plain.usage


# Decoding


def test_max_tokens_limits_the_answer(read: Callable[..., ChatCompletion]) -> None:
    answer = read(max_tokens=7)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"
    assert text_of(answer)
    assert truth(SIGN).startswith(text_of(answer))


def test_max_completion_tokens_takes_precedence(usage: Usage) -> None:
    assert usage(max_completion_tokens=4).completion_tokens == 4
    assert usage(max_completion_tokens=4, max_tokens=9).completion_tokens == 4
    assert usage(max_completion_tokens=9, max_tokens=4).completion_tokens == 9


def test_max_tokens_may_exceed_the_context(read: Callable[..., ChatCompletion]) -> None:
    assert text_of(read(max_tokens=1_000_000)) == truth(SIGN)


@pytest.mark.parametrize("stop", ["Friday", ["Sunday", "Friday"]], ids=str)
def test_stop_texts_end_the_answer_and_are_not_in_it(
    read: Callable[..., ChatCompletion], stop: str | list[str]
) -> None:
    answer = read(stop=stop)
    assert text_of(answer) == truth(SIGN).partition("Friday")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_stop_tokens_end_the_answer(read: Callable[..., ChatCompletion]) -> None:
    answer = read(stop_token_ids=ids(":"))
    assert truth(SIGN).partition(":")[0] == text_of(answer).removesuffix(":")
    assert answer.choices[0].finish_reason == "stop"


def test_two_greedy_choices_are_the_same(client: OpenAI, read: Callable[..., ChatCompletion]) -> None:
    answer = read(n=2)
    assert [text_of(answer, choice) for choice in range(2)] == [truth(SIGN)] * 2
    chunks = list(client.chat.completions.create(**call(n=2), stream=True))
    assert [joined(chunks, choice) for choice in range(2)] == [truth(SIGN)] * 2


def test_two_sampled_choices_differ_and_a_seed_repeats_them(
    client: OpenAI, read: Callable[..., ChatCompletion]
) -> None:
    options: dict[str, Any] = {"n": 2, "temperature": 1.8, "seed": 11, "max_tokens": 40}
    answer = read(**options)
    first, second = (text_of(answer, choice) for choice in range(2))
    assert first != second
    again = read(**options)
    assert [text_of(again, choice) for choice in range(2)] == [first, second]
    chunks = list(client.chat.completions.create(**call(**options), stream=True))
    assert [joined(chunks, choice) for choice in range(2)] == [first, second]
    ends = sorted(each.index for chunk in chunks for each in chunk.choices if each.finish_reason)
    assert ends == [0, 1]
    assert text_of(read(**options | {"seed": 12})) != first


def test_several_choices_of_several_pages(read: Callable[..., ChatCompletion]) -> None:
    answer = read(SIGN, RECEIPT, n=2, temperature=0.01)
    assert [text_of(answer, choice) for choice in range(2)] == [SEPARATOR.join((truth(SIGN), truth(RECEIPT)))] * 2


@pytest.mark.parametrize("top", [None, 0, 3])
def test_logprobs(read: Callable[..., ChatCompletion], client: OpenAI, top: int | None) -> None:
    options: dict[str, Any] = {"logprobs": True, "max_tokens": 6} | ({} if top is None else {"top_logprobs": top})
    answer = read(**options)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens is not None
    assert len(tokens) == 6
    assert "".join(token.token for token in tokens) == text_of(answer)
    for token in tokens:
        assert -9999 <= token.logprob <= 0
        assert bytes(token.bytes or ()).decode() == token.token
        assert len(token.top_logprobs) == (top or 0)
        likelihoods = [each.logprob for each in token.top_logprobs]
        assert likelihoods == sorted(likelihoods, reverse=True)
        if top:  # greedy decoding chooses the most likely token
            assert token.top_logprobs[0].token == token.token
            assert token.top_logprobs[0].logprob == token.logprob
    chunks = client.chat.completions.create(**call(**options), stream=True)
    streamed = [
        token
        for chunk in chunks
        for each in chunk.choices
        if each.logprobs is not None
        for token in each.logprobs.content or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert [len(token.top_logprobs) for token in streamed] == [top or 0] * 6


@pytest.mark.parametrize("stop", [None, truth(SIGN)[4:8]])
@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_logprobs_join_to_the_content(client: OpenAI, stop: str | None, stream: bool) -> None:
    """Also where a stop string begins within a token, and without the token that ends the answer."""
    options: dict[str, Any] = {"logprobs": True, "stop": stop}
    if stream:
        chunks = [each for each in client.chat.completions.create(**call(**options), stream=True) if each.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        given = [chunk.choices[0].logprobs for chunk in chunks]
    else:
        answer = client.chat.completions.create(**call(**options))
        text, given = text_of(answer), [answer.choices[0].logprobs]
    tokens = [token for each in given if each is not None for token in each.content or ()]
    assert text == (truth(SIGN) if stop is None else truth(SIGN).partition(stop)[0])
    assert "".join(token.token for token in tokens) == text


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "a|b"),
        ({"guided_choice": ["left"]}, "left"),
    ],
)
def test_vllms_structured_outputs(client: OpenAI, constraint: dict[str, Any], pattern: str) -> None:
    answer = client.chat.completions.create(**call(max_tokens=20), extra_body=constraint)
    assert re.fullmatch(pattern, text_of(answer))


def test_token_ids(client: OpenAI) -> None:
    answer = client.chat.completions.create(**call(max_tokens=5), extra_body={"return_token_ids": True}).model_dump()
    assert len(answer["choices"][0]["token_ids"]) == 5
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]


def test_logit_bias_can_ban_a_token(read: Callable[..., ChatCompletion]) -> None:
    assert "o" in truth(SIGN)
    assert "o" not in text_of(read(logit_bias={str(ids("o")[0]): -100}))


def test_json_object(read: Callable[..., ChatCompletion]) -> None:
    ending = {str(token_id("}")): 100}  # without it, the embedded checkpoint would never end the object
    assert isinstance(json.loads(text_of(read(response_format={"type": "json_object"}, logit_bias=ending))), dict)


def test_json_schema(read: Callable[..., ChatCompletion]) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["sign", "receipt"]}, "lines": {"type": "integer", "maximum": 9, "minimum": 1}},
        "required": ["kind", "lines"],
        "additionalProperties": False,
    }
    answer = read(
        response_format={"type": "json_schema", "json_schema": {"name": "page", "schema": schema, "strict": True}}
    )
    found = json.loads(text_of(answer))
    assert found["kind"] in ("sign", "receipt")
    assert 1 <= found["lines"] <= 9
    assert set(found) == {"kind", "lines"}


def test_response_format_text_changes_nothing(read: Callable[..., ChatCompletion]) -> None:
    assert text_of(read(response_format={"type": "text"})) == truth(SIGN)


def test_min_tokens_and_ignore_eos_continue_past_the_end(usage: Usage) -> None:
    length = len(ids(truth(SIGN))) + 1
    assert usage(min_tokens=length + 5, max_tokens=length + 20).completion_tokens >= length + 5
    assert usage(ignore_eos=True, max_tokens=length + 20).completion_tokens == length + 20


# The n-gram guard. A bias makes the model repeat one letter forever.

LOOP = 70
"""Number of tokens of the answer."""


def loop(letter: str = "a", **options: Any) -> dict[str, Any]:
    """Return options that make the model repeat `letter`, in the smallest mode, as the image does not matter."""
    guard = {"mode": "tiny"} | options.pop("ocr", {})
    return {"logit_bias": {str(token_id(letter)): 100}, "max_tokens": LOOP, "ocr": guard} | options


def longest_run(text: str, letter: str = "a") -> int:
    return max(len(run) for run in "".join(each if each == letter else " " for each in text).split(" "))


def test_the_guard_is_on_by_default_and_can_be_turned_off(read: Callable[..., ChatCompletion]) -> None:
    assert longest_run(text_of(read(**loop(ocr={"ngram_size": 0})))) == LOOP
    assert longest_run(text_of(read(**loop()))) == 30


@pytest.mark.parametrize("size", [5, 12])
def test_the_guard_ends_a_loop_at_its_size(read: Callable[..., ChatCompletion], size: int) -> None:
    assert longest_run(text_of(read(**loop(ocr={"ngram_size": size})))) == size


def test_the_guard_ignores_tokens_outside_its_window(read: Callable[..., ChatCompletion]) -> None:
    def runs(window: int) -> int:
        text = text_of(read(**loop(ocr={"ngram_size": 6, "window_size": window}, min_tokens=LOOP)))
        return text.count("a" * 6)

    assert runs(90) == 1
    assert runs(20) > 1


def test_the_guard_ignores_whitelisted_tokens(read: Callable[..., ChatCompletion]) -> None:
    whitelist = {"ngram_size": 5, "whitelist_token_ids": [token_id("a")]}
    assert longest_run(text_of(read(**loop(ocr=whitelist)))) == LOOP


def test_a_strict_guard_leaves_no_repeated_pair(read: Callable[..., ChatCompletion]) -> None:
    text = text_of(read(ocr={"ngram_size": 2, "window_size": 90}))
    pairs, expected = pairs_of(text), pairs_of(truth(SIGN))
    assert len(pairs) == len(set(pairs))
    unique = next(at for at, pair in enumerate(expected) if pair in expected[:at])
    assert pairs[: unique - 1] == expected[: unique - 1], "up to its first repeated pair, the sign should be read"


def pairs_of(text: str) -> list[tuple[int, int]]:
    return list(pairwise(ids(text)))


# Resolution


@pytest.mark.parametrize(
    ("mode", "tokens"),
    [("tiny", 73), ("small", 111), ("base", 273), ("large", 421), ("gundam", 273), ("gundam-m", 421)],
)
def test_a_mode_is_selected_by_option_or_model_name(usage: Usage, mode: str, tokens: int) -> None:
    assert image_tokens(usage(ocr={"mode": mode})) == tokens
    assert image_tokens(usage(model=f"{MODEL}:{mode}")) == tokens


def test_the_requested_model_name_is_returned(read: Callable[..., ChatCompletion]) -> None:
    assert read(model=f"{MODEL}:tiny", max_tokens=1).model == f"{MODEL}:tiny"


@pytest.mark.parametrize(("detail", "tokens"), [("low", 273), ("high", 903), ("auto", 903)])
def test_detail_selects_a_mode(usage: Usage, detail: str, tokens: int) -> None:
    assert image_tokens(usage(messages=[user(image_part(blank(1240, 1754), detail), text_part())])) == tokens


def test_detail_applies_to_each_image(usage: Usage) -> None:
    page = blank(1240, 1754)
    both = usage(messages=[user(image_part(page, "low"), image_part(page, "high"), text_part())])
    assert image_tokens(both) == 273 + 903


@pytest.mark.parametrize(("size", "wide", "tall"), [((1280, 640), 2, 1), ((640, 1300), 1, 2), ((1240, 1754), 2, 3)])
def test_tiles_of_a_large_image_are_counted(usage: Usage, size: tuple[int, int], wide: int, tall: int) -> None:
    assert image_tokens(usage(blank(*size))) == 273 + 10 * tall * (10 * wide + 1)


def test_a_single_tile_is_omitted_as_it_would_be_the_whole_page(usage: Usage) -> None:
    assert image_tokens(usage(blank(1300, 1300), ocr={"min_crops": 1, "max_crops": 1})) == 273


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"base_size": 512}, 73),
        ({"crop_mode": False, "base_size": 768}, 12 * 13 + 1),
        # 640 × 338 pixels: 2 × 1 is the nearest grid of 320-pixel tiles, 5 × 5 tokens each.
        ({"image_size": 320, "max_crops": 4}, 273 + 5 * (2 * 5 + 1)),
        ({"image_size": 320, "min_crops": 8, "max_crops": 9}, 273 + 2 * 5 * (4 * 5 + 1)),
        ({"mode": "tiny", "base_size": 640}, 111),
        ({"mode": "base", "crop_mode": True, "image_size": 320}, 273 + 5 * (2 * 5 + 1)),
    ],
    ids=str,
)
def test_sizes_and_crops_can_be_set(usage: Usage, options: dict[str, Any], tokens: int) -> None:
    assert image_tokens(usage(RECEIPT, ocr=options)) == tokens


def test_precedence_of_options_model_name_detail_and_default(usage: Usage, plain: ChatCompletion) -> None:
    low = [user(image_part(blank(1240, 1754), "low"), text_part())]
    assert image_tokens(usage_of(plain)) == 273
    assert image_tokens(usage(messages=low)) == 273
    assert image_tokens(usage(messages=low, model=f"{MODEL}:large")) == 421
    assert image_tokens(usage(messages=low, model=f"{MODEL}:large", ocr={"mode": "small"})) == 111
    assert image_tokens(usage(messages=low, model=f"{MODEL}:large", ocr={"base_size": 1024})) == 273
