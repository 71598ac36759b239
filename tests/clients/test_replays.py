"""Requests as programs send them that the tests can't install: each body is what the program's source builds.

`python/` and `javascript/` have the clients that can be installed.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ocr_server.dialects.messages import NOTHING_TO_READ
from tests.ocr_server.batches.conftest import Serve, Served
from tests.ocr_server.conftest import CHAT, WHITE, FakeEngine, events, message, picture, says, text

PNG = base64.b64decode(WHITE.split(",")[1])
MARKDOWN = "<|grounding|>Convert the document to markdown."
ANSWER = "<|ref|>title<|/ref|><|det|>[[10, 10, 90, 50]]<|/det|>\n# Title"
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}


async def content(served: Served, body: dict[str, Any]) -> str:
    """Post a chat request and return its text, whether it is streamed or not."""
    response = await served.http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        answer: str = response.json()["choices"][0]["message"]["content"]
        return answer
    chunks = [event for event in events(response.text) if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


class TestOpenWebUI:
    async def test_the_chat_with_a_picture_and_usage(self, served: Served) -> None:
        body = {
            "stream": True,
            "model": "deepseek-ocr",
            "messages": [message("Free OCR.", picture())],
            "stream_options": {"include_usage": True},
        }
        assert await content(served, body) == "Hello"

    async def test_the_title_of_a_chat_is_asked_for_without_its_picture(self, served: Served) -> None:
        prompt = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history."
        body = {"model": "deepseek-ocr", "messages": [message(prompt)], "stream": False, "max_completion_tokens": 1000}
        assert await content(served, body) == NOTHING_TO_READ

    async def test_a_later_question_about_a_picture(self, served: Served) -> None:
        """The whole conversation is sent each time; the system prompt is the user's."""
        messages = [
            message("Answer in English.", role="system"),
            message("Free OCR.", picture()),
            message("Hello", role="assistant"),
            message("Describe this image in detail."),
        ]
        assert await content(served, {"model": "deepseek-ocr", "messages": messages, "stream": True}) == "Hello"
        assert served.engine.pages[0].prompt == "Describe this image in detail."

    async def test_the_external_document_loader(self, served: Served) -> None:
        headers = {"Content-Type": "image/png", "Authorization": "Bearer EMPTY", "X-Filename": "a%20scan.png"}
        response = await served.http.put("/process", content=PNG, headers=headers)
        assert response.status_code == 200, response.text
        documents = response.json()
        first = documents[0] if isinstance(documents, list) else documents
        assert first["page_content"] == "Hello"
        assert isinstance(first["metadata"], dict)


@pytest.mark.parametrize("expiry", [1, 24], ids=["Open WebUI", "LibreChat"])
async def test_the_four_calls_of_mistral_ocr(served: Served, expiry: int) -> None:
    """The model's name is built into both programs, and the file is called a PDF whatever it is."""
    key = {"Authorization": "Bearer EMPTY"}
    files = {"file": ("scan.png", PNG, "application/pdf")}
    uploaded = await served.http.post("/v1/files", data={"purpose": "ocr"}, files=files, headers=key)
    assert uploaded.status_code == 200, uploaded.text
    file_id = uploaded.json()["id"]
    signed = await served.http.get(
        f"/v1/files/{file_id}/url", params={"expiry": expiry}, headers={**key, "Accept": "application/json"}
    )
    document = {"type": "document_url", "document_url": signed.json()["url"]}
    body = {"model": "mistral-ocr-latest", "document": document, "include_image_base64": False}
    read = await served.http.post("/v1/ocr", json=body, headers=key)
    assert read.status_code == 200, read.text
    assert [(page["index"], page["markdown"]) for page in read.json()["pages"]] == [(0, "Hello")]
    deleted = await served.http.delete(f"/v1/files/{file_id}", headers=key)
    assert deleted.status_code == 200


async def test_librechat_shows_the_message_of_an_error(served: Served) -> None:
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,"}
    body = {"model": "mistral-ocr-latest", "document": document, "image_limit": 0}
    answer = await served.http.post("/v1/ocr", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"]


class TestDify:
    @pytest.mark.parametrize("more", [{"max_tokens": 5}, {"stream": True, "max_tokens": 10}])
    async def test_a_model_is_saved_after_a_ping(self, served: Served, more: dict[str, Any]) -> None:
        body = {"model": "deepseek-ocr", "messages": [{"role": "user", "content": "ping"}], **more}
        assert await content(served, body) == NOTHING_TO_READ
        if "stream" not in more:
            assert (await served.http.post(CHAT, json=body)).json()["object"] == "chat.completion"

    async def test_pictures_have_low_detail_by_default(self, served: Served) -> None:
        body = {
            "model": "deepseek-ocr",
            "stream": True,
            "messages": [message("You read documents.", role="system"), message(picture(detail="low"), "Free OCR.")],
            "temperature": 0.7,
            "user": "b4c7",
        }
        assert await content(served, body) == "Hello"
        page = served.engine.pages[0]
        assert (page.prompt, page.image.num_tokens) == ("Free OCR.", 273)


class TestZerox:
    """It sends a system prompt of its own, and the page without a text."""

    SYSTEM = "Convert the following document to markdown.\nReturn only the markdown with no explanation text."

    @pytest.mark.parametrize("prior", [[], ['Markdown must maintain consistent formatting with: """# Title"""']])
    async def test_a_page_is_read_as_clean_markdown(self, serve: Serve, prior: list[str]) -> None:
        async with serve(FakeEngine(says(ANSWER))) as served:
            messages = [message(words, role="system") for words in (self.SYSTEM, *prior)]
            body = {"model": "deepseek-ocr", "messages": [*messages, message(picture())], "max_tokens": 4000}
            assert await content(served, body) == "# Title"
            assert served.engine.pages[0].prompt == MARKDOWN

    async def test_the_key_is_tried_without_a_picture(self, served: Served) -> None:
        body = {"model": "deepseek-ocr", "messages": [message("Hey, how's it going?")], "max_tokens": 10}
        assert await content(served, body) == NOTHING_TO_READ


async def test_doclings_preset_gets_the_markers_that_it_parses(serve: Serve) -> None:
    async with serve(FakeEngine(says(ANSWER))) as served:
        body = {
            "messages": [message(picture(), f"{MARKDOWN} ")],
            "temperature": 0.0,
            "model": "deepseek-ocr:3b",
            "max_tokens": 4096,
            "skip_special_tokens": True,
        }
        assert await content(served, body) == ANSWER
        assert served.engine.pages[0].prompt == MARKDOWN


@pytest.mark.parametrize("whitelist", [[128821, 128822], "[128821, 128822]"])
async def test_vllms_recipe(served: Served, whitelist: Any) -> None:
    body = {
        "model": "deepseek-ai/DeepSeek-OCR",
        "messages": [message(picture(), "Free OCR.")],
        "max_tokens": 2048,
        "temperature": 0.0,
        "skip_special_tokens": False,
        "vllm_xargs": {"ngram_size": 30, "window_size": 90, "whitelist_token_ids": whitelist},
    }
    assert await content(served, body) == "Hello"


async def test_n8n_analyses_an_image_with_responses(served: Served) -> None:
    parts = [
        {"type": "input_text", "text": "What's in this image?"},
        {"type": "input_image", "detail": "auto", "image_url": WHITE},
    ]
    body = {"model": "deepseek-ocr", "input": [{"role": "user", "content": parts}], "max_output_tokens": 300}
    response = await served.http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["output"][0]["content"][0]["text"] == "Hello"


async def test_an_agent_sends_its_tools_with_every_request(served: Served) -> None:
    body = {
        "model": "deepseek-ocr",
        "messages": [message("You are a helpful assistant.", role="system"), message(text("Free OCR."), picture())],
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    assert await content(served, body) == "Hello"
    refused = await served.http.post(CHAT, json={**body, "tool_choice": "required"})
    assert refused.status_code == 400
    assert "response_format" in refused.json()["error"]["message"]
