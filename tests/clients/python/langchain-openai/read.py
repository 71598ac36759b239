"""LangChain: ChatOpenAI with chat completions and with responses."""

import base64
import json
import os
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

PICTURE, PDF = map(Path, sys.argv[1:])


def part(kind: str, file: Path, mime: str) -> dict:
    data = base64.b64encode(file.read_bytes()).decode()
    return {"type": kind, "source_type": "base64", "mime_type": mime, "data": data, "filename": file.name}


parts = {"picture": part("image", PICTURE, "image/png"), "pdf": part("file", PDF, "application/pdf")}
for how, options in (("chat", {}), ("responses", {"use_responses_api": True})):
    model = ChatOpenAI(model="deepseek-ocr", base_url=os.environ["OCR_BASE_URL"], api_key="EMPTY", **options)
    for name, document in parts.items():
        question = HumanMessage(content=[{"type": "text", "text": "Free OCR."}, document])
        print(json.dumps([name, how, "Free OCR.", model.invoke([question]).text]))
    question = HumanMessage(content=[{"type": "text", "text": "Free OCR."}, parts["picture"]])
    streamed = "".join(chunk.text for chunk in model.stream([question]))
    print(json.dumps(["picture", f"{how} as a stream", "Free OCR.", streamed]))
