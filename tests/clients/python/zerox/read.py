"""Zerox for Python. It renders the PDF itself, and accepts only models that LiteLLM knows to see pictures."""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices at the start
os.environ["HOSTED_VLLM_API_BASE"] = os.environ["OCR_BASE_URL"]
os.environ["HOSTED_VLLM_API_KEY"] = "EMPTY"

import litellm
from pyzerox import zerox

PICTURE, PDF = sys.argv[1:]
MODEL = "hosted_vllm/deepseek-ocr"
litellm.register_model({MODEL: {"litellm_provider": "hosted_vllm", "mode": "chat", "supports_vision": True}})
result = asyncio.run(zerox(file_path=PDF, model=MODEL))
print(json.dumps(["pdf", "zerox", "", "\n\n".join(page.content for page in result.pages)]))
