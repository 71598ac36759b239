"""OpenAI's SDK for Python: chat completions, responses, files, and the example that vLLM publishes for DeepSeek-OCR."""

import base64
import json
import os
import sys
from pathlib import Path

from openai import OpenAI

PICTURE, PDF = map(Path, sys.argv[1:])
client = OpenAI(base_url=os.environ["OCR_BASE_URL"], api_key="EMPTY")


def uri(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def show(document: str, how: str, prompt: str, text: str | None) -> None:
    print(json.dumps([document, how, prompt, text]))


picture = {"type": "image_url", "image_url": {"url": uri(PICTURE, "image/png")}}
pdf = {"type": "file", "file": {"file_data": uri(PDF, "application/pdf"), "filename": PDF.name}}
text = {"type": "text", "text": "Free OCR."}


def chat(*content: dict, **options: object) -> str | None:
    messages = [{"role": "user", "content": list(content)}]
    return client.chat.completions.create(model="deepseek-ocr", messages=messages, **options).choices[0].message.content


assert "deepseek-ocr" in [model.id for model in client.models.list()]
show("picture", "chat", "Free OCR.", chat(picture, text))
show("picture", "chat without a text", "", chat(picture))
show("pdf", "chat with a file", "Free OCR.", chat(pdf, text))

stream = client.chat.completions.create(
    model="deepseek-ocr", messages=[{"role": "user", "content": [text, picture]}], stream=True
)
show("picture", "chat as a stream", "Free OCR.", "".join(chunk.choices[0].delta.content or "" for chunk in stream))

recipe = client.chat.completions.create(
    model="deepseek-ai/DeepSeek-OCR",
    messages=[{"role": "user", "content": [picture, text]}],
    max_tokens=2048,
    temperature=0.0,
    extra_body={
        "skip_special_tokens": False,
        "vllm_xargs": {"ngram_size": 30, "window_size": 90, "whitelist_token_ids": [128821, 128822]},
    },
)
show("picture", "vLLM's recipe", "Free OCR.", recipe.choices[0].message.content)

answer = client.responses.create(
    model="deepseek-ocr",
    instructions="You are a helpful assistant.",
    input=[
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Free OCR."},
                {"type": "input_image", "image_url": uri(PICTURE, "image/png"), "detail": "auto"},
            ],
        }
    ],
)
show("picture", "responses", "Free OCR.", answer.output_text)

uploaded = client.files.create(file=PDF, purpose="user_data")
file = {"type": "input_file", "file_id": uploaded.id}
with client.responses.stream(
    model="deepseek-ocr",
    input=[{"role": "user", "content": [file, {"type": "input_text", "text": "Free OCR."}]}],
) as events:
    show("pdf", "responses with an uploaded file, as a stream", "Free OCR.", events.get_final_response().output_text)
show("pdf", "chat with an uploaded file", "Free OCR.", chat({"type": "file", "file": {"file_id": uploaded.id}}, text))
assert client.files.delete(uploaded.id).deleted
