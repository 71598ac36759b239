"""Pydantic AI: an agent with the chat completions API and with its default, the responses API."""

import json
import os
import sys
from pathlib import Path

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PICTURE, PDF = map(Path, sys.argv[1:])
provider = OpenAIProvider(base_url=os.environ["OCR_BASE_URL"], api_key="EMPTY")
parts = {
    "picture": BinaryContent(PICTURE.read_bytes(), media_type="image/png"),
    "pdf": BinaryContent(PDF.read_bytes(), media_type="application/pdf"),
}
for how, model in (
    ("chat", OpenAIChatModel("deepseek-ocr", provider=provider)),
    ("responses", OpenAIResponsesModel("deepseek-ocr", provider=provider)),
):
    agent = Agent(model, instructions="You are a helpful assistant.")
    for name, part in parts.items():
        print(json.dumps([name, how, "Free OCR.", agent.run_sync(["Free OCR.", part]).output]))
