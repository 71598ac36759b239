"""LiteLLM: chat completions, responses and OCR through its generic providers."""

import base64
import json
import os
import sys
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices at the start

import litellm

PICTURE, PDF = map(Path, sys.argv[1:])
server = {"api_base": os.environ["OCR_BASE_URL"], "api_key": "EMPTY"}


def uri(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def show(document: str, how: str, prompt: str, text: str) -> None:
    print(json.dumps([document, how, prompt, text]))


picture = {"type": "image_url", "image_url": {"url": uri(PICTURE, "image/png")}}
pdf = {"type": "file", "file": {"file_data": uri(PDF, "application/pdf")}}
text = {"type": "text", "text": "Free OCR."}
for provider in ("openai", "hosted_vllm"):
    for name, part in (("picture", picture), ("pdf", pdf)):
        answer = litellm.completion(
            model=f"{provider}/deepseek-ocr", messages=[{"role": "user", "content": [part, text]}], **server
        )
        show(name, f"completion, {provider}/", "Free OCR.", answer.choices[0].message.content)

content = [
    {"type": "input_image", "image_url": uri(PICTURE, "image/png")},
    {"type": "input_text", "text": "Free OCR."},
]
answer = litellm.responses(model="openai/deepseek-ocr", input=[{"role": "user", "content": content}], **server)
texts = [part.text for item in answer.output for part in item.content]
show("picture", "responses", "Free OCR.", "".join(texts))

document = {"type": "document_url", "document_url": uri(PDF, "application/pdf")}
answer = litellm.ocr(model="mistral/mistral-ocr-latest", document=document, **server)
show("pdf", "ocr, mistral/", "", "\n\n".join(page.markdown for page in answer.pages))
