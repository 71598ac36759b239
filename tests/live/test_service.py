"""The service routes: models, health, root, OpenAPI documentation, metrics."""

from __future__ import annotations

import httpx
import jsonschema
import openai
import pytest
from live_requests import MODEL, SIGN, ask, blank, events, request
from live_server import Server
from openai import AsyncOpenAI, OpenAI

pytestmark = pytest.mark.live

MODES = ("tiny", "small", "base", "large", "gundam", "gundam-m")


def test_there_is_a_model_for_each_mode_and_output(client: OpenAI) -> None:
    models = client.models.list().data
    suffixes = [*MODES, "raw", "markdown", "blocks"]
    assert [model.id for model in models] == [MODEL, *(f"{MODEL}:{suffix}" for suffix in suffixes)]
    assert all(model.object == "model" and model.owned_by and model.created > 1_600_000_000 for model in models)


async def test_the_asynchronous_sdk_lists_the_models(async_client: AsyncOpenAI) -> None:
    assert MODEL in [model.id async for model in async_client.models.list()]


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:tiny", f"{MODEL}:gundam-m"])
def test_a_model_can_be_retrieved(client: OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == name


@pytest.mark.parametrize("name", ["gpt-4o", f"{MODEL}:huge", f"{MODEL}:"])
def test_an_unknown_model_is_not_found(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    assert caught.value.code == "model_not_found"
    assert name in caught.value.message


def test_every_listed_model_can_be_used(client: OpenAI) -> None:
    for model in client.models.list():
        answer = client.chat.completions.create(model=model.id, messages=ask(SIGN), max_tokens=1)
        assert answer.model == model.id


def test_health(http: httpx.Client) -> None:
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


def test_the_root_lists_endpoints_modes_and_prompts(http: httpx.Client) -> None:
    found = http.get("/").json()
    assert found["model"] == MODEL
    assert set(found["modes"]) == set(MODES)
    assert "Free OCR." in found["prompts"]
    described = http.get("/openapi.json").json()["paths"]
    for endpoint in found["endpoints"].values():
        method, path = endpoint.split()
        assert path in ("/docs", "/openapi.json", "/ui/") or method.lower() in described[path], endpoint
        if method == "GET":
            assert http.get(path).status_code == 200, endpoint


def test_responses_do_not_reveal_the_path_of_the_model(http: httpx.Client) -> None:
    for path in ("/", "/health", "/v1/models", "/openapi.json"):
        assert "/checkpoint" not in http.get(path).text, path


def test_the_documentation_page(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text


def test_the_schema_describes_chat(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.")
    schemas = schema["components"]["schemas"]
    assert {"ChatCompletionRequest", "ChatCompletion", "ChatCompletionChunk", "ErrorResponse"} <= set(schemas)
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    answers = chat["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "404", "413", "503"} <= set(answers)
    assert "422" not in answers, "like OpenAI, this server responds with 400"
    (reference,) = chat["requestBody"]["content"]["application/json"]["schema"].values()
    assert reference.endswith("/ChatCompletionRequest")
    assert {"messages", "ocr", "top_k", "stream_options"} <= set(schemas["ChatCompletionRequest"]["properties"])


def test_every_reference_in_the_schema_resolves(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(target := node.get("$ref"), str):
                found = schema
                for step in target.removeprefix("#/").split("/"):
                    assert step in found, target
                    found = found[step]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)


@pytest.mark.parametrize("stream", [False, True])
def test_requests_and_responses_conform_to_the_schema(http: httpx.Client, stream: bool) -> None:
    schema = http.get("/openapi.json").json()
    body = request(blank(64, 64), stream=stream, max_tokens=3, logprobs=True, top_logprobs=1)
    answer = http.post("/v1/chat/completions", json=body)
    name, found = ("ChatCompletionChunk", events(answer.text)[:-1]) if stream else ("ChatCompletion", [answer.json()])
    for value, definition in [(body, "ChatCompletionRequest"), *((each, name) for each in found)]:
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{definition}", **schema})
    wrong = http.post("/v1/chat/completions", json={}).json()
    jsonschema.validate(wrong, {"$ref": "#/components/schemas/ErrorResponse", **schema})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, {"$ref": "#/components/schemas/ChatCompletionRequest", **schema})


def test_the_example_in_the_schema_is_a_valid_request(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    examples = schema["components"]["schemas"]["ChatCompletionRequest"]["examples"]
    assert examples
    for example in examples:
        jsonschema.validate(example, {"$ref": "#/components/schemas/ChatCompletionRequest", **schema})
        example["messages"] = ask(SIGN)  # its image is abbreviated
        assert http.post("/v1/chat/completions", json=example).status_code == 200


def test_metrics_include_the_engines(server: Server, http: httpx.Client) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert server.metric("vllm:num_requests_running") >= 0
    before = server.metric("vllm:prompt_tokens_total")
    answer = http.post("/v1/chat/completions", json=request(max_tokens=1))
    assert server.metric("vllm:prompt_tokens_total") == before + answer.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("prompt", ["请把图中的文字读出来。", "قراءة النص 🧾", "a\u0000b\u2028c"])
def test_prompts_in_any_script(http: httpx.Client, prompt: str) -> None:
    """The embedded checkpoint can't follow such prompts, but they must be accepted."""
    answer = http.post("/v1/chat/completions", json=request(messages=ask(SIGN, prompt=prompt), max_tokens=3))
    assert answer.status_code == 200
