"""Invalid requests get an error in OpenAI's format, with status, type, parameter and code, and never a 500."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import httpx
import openai
import pytest
from live_requests import (
    MODEL,
    RECEIPT,
    SIGN,
    ask,
    call,
    data_uri,
    events,
    image_part,
    request,
    saved,
    text_of,
    text_part,
    truth,
    user,
)
from live_server import WAIT_SECONDS
from openai import OpenAI
from PIL import Image

pytestmark = pytest.mark.live

CHAT = "/v1/chat/completions"
URL = "messages[0].content[0].image_url.url"
"""The parameter of the first image in the messages of `ask`."""


class Files(Protocol):
    """The web server for images in conftest.py."""

    url: str
    paths: dict[str, bytes]


@pytest.fixture(scope="module", autouse=True)
def _still_reads_afterwards(server: Any) -> Iterator[None]:
    """After all tests of this file, the server still reads correctly."""
    yield
    answer = httpx.post(f"{server.url}{CHAT}", json=request(), timeout=WAIT_SECONDS)
    assert answer.json()["choices"][0]["message"]["content"] == truth(SIGN)
    server.wait_idle()


def check_error(answer: httpx.Response, status: int = 400, param: str | None = None, code: str | None = None) -> str:
    """Check an error response, and return its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error", "message"}
    error = body["error"]
    assert body["message"] == error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert (error["param"], error["code"]) == (param, code), error
    message = error["message"]
    assert isinstance(message, str)
    assert len(message) > 10
    assert "<" not in (error["param"] or ""), "the parameter should not contain internal names"
    assert not re.search(r"Traceback|0x[0-9a-f]{6}|\.py\b|pydantic", message), message
    return message


@pytest.fixture
def post(http: httpx.Client) -> Callable[..., httpx.Response]:
    def post(*pictures: str | bytes, **options: Any) -> httpx.Response:
        return http.post(CHAT, json=request(*pictures, **options))

    return post


@pytest.fixture
def post_raw(http: httpx.Client) -> Callable[..., httpx.Response]:
    def post_raw(body: bytes | Iterator[bytes], content_type: str = "application/json") -> httpx.Response:
        return http.post(CHAT, content=body, headers={"content-type": content_type})

    return post_raw


Post = Callable[..., httpx.Response]


# The body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": ', None),
        (b"", None),
        (b"null", None),
        (b"[]", None),
        (b'"text"', None),
        (b"{}", "model"),
        (b'{"model": "\xff\xfe"}', None),
        (b'{"model": "deepseek-ocr"}', "messages"),
    ],
    ids=["cut off", "none", "null", "list", "string", "empty", "not UTF-8", "no messages"],
)
def test_invalid_bodies(post_raw: Post, body: bytes, param: str | None) -> None:
    check_error(post_raw(body), param=param)


def test_a_body_with_another_content_type(post_raw: Post) -> None:
    """By default, curl declares its data as a form. JSON is accepted nevertheless, but a form is not."""
    form = "application/x-www-form-urlencoded"
    assert post_raw(json.dumps(request(max_tokens=1)).encode(), form).status_code == 200
    check_error(post_raw(b"model=deepseek-ocr&messages=5", form))


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_deeply_nested_bodies(post_raw: Post, opening: bytes) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    deep = opening * 10_000 + b"1" + closing * 10_000
    for name in (b"messages", b"metadata", b"response_format"):
        answer = post_raw(json.dumps(request())[:-1].encode() + b', "' + name + b'":' + deep + b"}")
        assert answer.status_code == 400
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(post_raw: Post, number: str) -> None:
    check_error(
        post_raw(json.dumps(request())[:-1].encode() + f', "temperature": {number}}}'.encode()), param="temperature"
    )


def test_a_number_with_thousands_of_digits(post_raw: Post) -> None:
    answer = post_raw(json.dumps(request())[:-1].encode() + b', "seed": ' + b"9" * 5000 + b"}")
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unpaired_surrogate(post_raw: Post) -> None:
    """JSON can contain half of a surrogate pair, which is not valid text."""
    body = json.dumps(request(messages=ask(SIGN, prompt="PROMPT"))).replace("PROMPT", "\\ud800")
    answer = post_raw(body.encode())
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(http: httpx.Client, post_raw: Post, chunked: bool) -> None:
    piece = b"x" * 1_000_000
    for _ in range(5):  # repeated, as a race could lose the response now and then
        answer = post_raw((piece for _ in range(12)) if chunked else piece * 12)
        message = check_error(answer, 413, code="body_too_large")
        assert "8 MB" in message
    assert http.get("/health").status_code == 200


# The picture


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,@@@@", "invalid_base64_image"),
        ("data:image/png;base64,abcde", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png,abcd", "invalid_image_url"),
        ("data:image/png;base64", "invalid_image_url"),
        ("ftp://example.com/page.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("", "invalid_image_url"),
        ("http://", "invalid_image_url"),
        ("http://127.0.0.1:99999/x.png", "invalid_image_url"),
        ("http://127.0.0.1:1/x.png", "image_fetch_failed"),
        ("http://no-such-host.invalid/x.png", "image_fetch_failed"),
        ("http://user:secret@127.0.0.1/x.png", "image_url_not_allowed"),
    ],
)
def test_invalid_and_unreachable_urls(post: Post, url: str, code: str) -> None:
    message = check_error(post(url), param=URL, code=code)
    assert "secret" not in message


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"This is no picture at all.", "invalid_image_format"),
        (b"%PDF-1.7\n1 0 obj\n", "pdf_damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image_format"),
        (b"\x89PNG\r\n\x1a\n", "image_parse_error"),
        (SIGN.read_bytes()[:3000], "image_parse_error"),
        (saved(Image.open(RECEIPT), "JPEG")[:6000], "image_parse_error"),
    ],
    ids=["text", "PDF", "SVG", "PNG signature alone", "truncated PNG", "truncated JPEG"],
)
def test_data_that_is_not_an_image(post: Post, data: bytes, code: str) -> None:
    message = check_error(post(data), param=URL, code=code)
    assert ("PDF" in message) >= data.startswith(b"%PDF")


def test_web_servers_that_return_no_image(post: Post, files: Files) -> None:
    check_error(post(f"{files.url}/missing.png"), param=URL, code="image_fetch_failed")
    check_error(post(f"{files.url}/never"), param=URL, code="image_fetch_failed")  # no response within the timeout
    check_error(post(f"{files.url}/redirect-tofile:///etc/passwd"), param=URL, code="invalid_image_url")
    files.paths["/page.html"] = b"<html>sign in first</html>"
    check_error(post(f"{files.url}/page.html"), param=URL, code="invalid_image_format")
    files.paths["/huge"] = b"\x89PNG\r\n\x1a\n" + bytes(4_500_000)
    check_error(post(f"{files.url}/huge"), 413, param=URL, code="too_large")


def test_images_over_the_limits(post: Post) -> None:
    message = check_error(post(saved(Image.new("1", (5000, 5000)))), 413, param=URL, code="too_large")
    assert "20,000,000" in message
    check_error(post(b"\x89PNG\r\n\x1a\n" + bytes(4_500_000)), 413, param=URL, code="too_large")


def test_too_many_images(post: Post) -> None:
    check_error(post(*[data_uri(SIGN)] * 17), param="messages")
    tiff = saved(Image.new("1", (9, 9)), "TIFF", save_all=True, append_images=[Image.new("1", (9, 9))] * 100)
    assert "100" in check_error(post(tiff), param=URL, code="too_many_pages")


def test_an_error_names_the_invalid_image(post: Post) -> None:
    messages = [{"role": "system", "content": "Read."}, user(text_part(), image_part(SIGN), image_part("data:,"))]
    check_error(post(messages=messages), param="messages[1].content[2].image_url.url", code="invalid_image_url")


# Messages


def image_url(**fields: Any) -> list[dict[str, Any]]:
    return [user({"type": "image_url", "image_url": fields})]


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", None),
        (None, "messages", None),
        ("Free OCR.", "messages", None),
        ([{"role": "robot", "content": "hello"}], "messages[0].role", None),
        ([{"content": "hello"}], "messages[0].role", None),
        ([{"role": "user", "content": 5}], "messages[0].content", None),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]", None),
        ([user({"words": "hello"})], "messages[0].content[0].type", None),
        ([user({"type": "text", "text": 5})], "messages[0].content[0].text", None),
        ([user({"type": "image_url"})], "messages[0].content[0].image_url", "missing_file_data"),
        ([user({"type": "image_url", "image_url": ["x"]})], "messages[0].content[0].image_url", None),
        (image_url(), URL, None),
        (image_url(url=5), URL, None),
        (image_url(url="x", detail="huge"), "messages[0].content[0].image_url.detail", None),
        (
            [user(image_part(SIGN), {"type": "file", "file": {}})],
            "messages[0].content[1].file.file_data",
            "missing_file_data",
        ),
        ([user({"type": "input_audio"})], "messages[0].content[0].type", "unsupported_content"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_invalid_messages(post: Post, messages: Any, param: str, code: str | None) -> None:
    check_error(post(messages=messages), param=param, code=code)


def test_prompts_that_are_too_long(post: Post) -> None:
    check_error(post(messages=ask(SIGN, prompt="x" * 8_001)), param="messages")
    for stream in (False, True):
        answer = post(messages=ask(SIGN, prompt="qwxzj" * 1600), stream=stream)
        assert "8192" in check_error(answer, param="messages", code="context_length_exceeded")


# Parameters


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 200}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"top_k": -5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"ocr": {"mode": "huge"}}, "ocr.mode"),
        ({"ocr": {"max_crops": 12}}, "ocr.max_crops"),
        ({"ocr": {"min_crops": 0}}, "ocr.min_crops"),
        ({"ocr": {"min_crops": 5, "max_crops": 2}}, "ocr.min_crops"),
        ({"ocr": {"base_size": 100}}, "ocr.base_size"),
        ({"ocr": {"image_size": 5120}}, "ocr.image_size"),
        ({"ocr": {"crop_mode": "yes"}}, "ocr.crop_mode"),
        ({"ocr": {"ngram_size": -1}}, "ocr.ngram_size"),
        ({"ocr": {"ngram_size": 30, "window_size": 10}}, "ocr.ngram_size"),
        ({"ocr": {"window_size": 0}}, "ocr.window_size"),
        ({"ocr": {"whitelist_token_ids": [-1]}}, "ocr.whitelist_token_ids"),
        ({"ocr": [1]}, "ocr"),
        ({"allowed_token_ids": [10**8]}, "allowed_token_ids"),
    ],
    ids=str,
)
def test_invalid_parameter_values(post: Post, options: dict[str, Any], param: str) -> None:
    check_error(post(**options), param=param)


def test_an_invalid_regular_expression(post: Post) -> None:
    answer = post(structured_outputs={"regex": "("})
    check_error(answer, param="structured_outputs.regex", code="invalid_grammar")


def test_min_tokens_above_max_tokens(post: Post) -> None:
    assert "min_tokens" in check_error(post(min_tokens=10, max_tokens=5), param="min_tokens")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "object", "properties": 5},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "(((("},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_invalid_json_schemas(post: Post, schema: dict[str, Any], stream: bool) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "page", "schema": schema}}
    check_error(post(response_format=response_format, stream=stream), param="response_format", code="invalid_schema")


def test_structured_output_needs_a_single_page(post: Post) -> None:
    check_error(post(data_uri(SIGN), data_uri(SIGN), response_format={"type": "json_object"}), param="response_format")


@pytest.mark.parametrize("name", ["ocr.moed", "ocr.tile"])
def test_unknown_parameters_are_named(post: Post, name: str) -> None:
    outer, _, inner = name.partition(".")
    options = {outer: {inner: 1} if inner else 1} | ({"stream": True} if outer == "stream_options" else {})
    assert name in check_error(post(**options), param=name, code="unknown_parameter")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_choice", "required"),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "alloy", "format": "mp3"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {"search_context_size": "low"}),
        ("reasoning_effort", "low"),
    ],
)
def test_unsupported_features_are_refused(post: Post, name: str, value: Any) -> None:
    assert name in check_error(post(**{name: value}), param=name, code="unsupported_parameter")


def test_parameters_without_effect_are_accepted(client: OpenAI, post: Post) -> None:
    harmless: dict[str, Any] = {
        "user": "somebody",
        "metadata": {"job": "7"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "somebody",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "auto",
        "modalities": ["text"],
        "stop": None,
        "n": 1,
        "presence_penalty": 0,
        "logit_bias": {},
        "seed": 5,
    }
    assert text_of(client.chat.completions.create(**call(**harmless))) == truth(SIGN)
    nothing = ("tools", "audio", "functions", "reasoning_effort", "prediction", "stream_options", "response_format")
    assert post(max_tokens=1, **dict.fromkeys(nothing)).status_code == 200


# Names and routes


@pytest.mark.parametrize("model", ["gpt-4o", f"{MODEL}:huge", f"{MODEL}:", ""])
def test_unknown_models(post: Post, model: str) -> None:
    check_error(post(model=model), 404, param="model", code="model_not_found")


def test_unknown_routes(http: httpx.Client) -> None:
    for method, path in (("GET", "/nowhere"), ("POST", "/v1/completions"), ("GET", "/v2/models")):
        check_error(http.request(method, path), 404, code="not_found")
    for method, path in (("GET", CHAT), ("PUT", CHAT), ("DELETE", "/v1/models"), ("POST", "/health")):
        answer = http.request(method, path)
        check_error(answer, 405, code="method_not_allowed")
        assert answer.headers["allow"]


# Errors in the SDK


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"temperature": 3}, openai.BadRequestError, None),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"messages": ask("data:image/png;base64,@@@@")}, openai.BadRequestError, "invalid_base64_image"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_raises_the_same_exceptions_as_for_openai(
    client: OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], code: str | None, stream: bool
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**call(**options), stream=stream)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert caught.value.param


def test_a_refused_stream_gets_a_plain_error(post: Post) -> None:
    answer = post(b"no picture", stream=True)
    check_error(answer, param=URL, code="invalid_image_format")
    good = post(stream=True, max_tokens=1)
    assert events(good.text)[-1] == "[DONE]"
