"""Mistral's SDK for Python, version 3: OCR of a picture, of an uploaded file and of its signed URL, and chat."""

import base64
import json
import os
import sys
from pathlib import Path

from mistralai.client import Mistral

PICTURE, PDF = map(Path, sys.argv[1:])
client = Mistral(server_url=os.environ["OCR_BASE_URL"].removesuffix("/v1"), api_key="EMPTY")
url = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"


def show(document: str, how: str, prompt: str, text: str) -> None:
    print(json.dumps([document, how, prompt, text]))


def joined(answer) -> str:
    return "\n\n".join(page.markdown for page in answer.pages)


assert "deepseek-ocr" in [model.id for model in client.models.list().data]
answer = client.ocr.process(model="mistral-ocr-latest", document={"type": "image_url", "image_url": url})
show("picture", "ocr", "", joined(answer))

uploaded = client.files.upload(file={"file_name": PDF.name, "content": PDF.read_bytes()}, purpose="ocr")
assert uploaded.id in [file.id for file in client.files.list().data]
signed = client.files.get_signed_url(file_id=uploaded.id)
answer = client.ocr.process(model="mistral-ocr-latest", document={"type": "document_url", "document_url": signed.url})
show("pdf", "ocr of a signed URL", "", joined(answer))
answer = client.ocr.process(model="mistral-ocr-latest", document={"type": "file", "file_id": uploaded.id})
show("pdf", "ocr of an uploaded file", "", joined(answer))
assert client.files.delete(file_id=uploaded.id).deleted

content = [{"type": "text", "text": "Free OCR."}, {"type": "image_url", "image_url": url}]
answer = client.chat.complete(model="deepseek-ocr", messages=[{"role": "user", "content": content}])
show("picture", "chat", "Free OCR.", answer.choices[0].message.content)
with client.chat.stream(model="deepseek-ocr", messages=[{"role": "user", "content": content}]) as events:
    text = "".join(event.data.choices[0].delta.content or "" for event in events if event.data.choices)
show("picture", "chat as a stream", "Free OCR.", text)
