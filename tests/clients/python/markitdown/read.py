"""MarkItDown: pictures as it describes them, and PDFs with its OCR plugin."""

import json
import os
import sys

from markitdown import MarkItDown
from openai import OpenAI

PICTURE, PDF = sys.argv[1:]
client = OpenAI(base_url=os.environ["OCR_BASE_URL"], api_key="EMPTY")
options = {"llm_client": client, "llm_model": "deepseek-ocr", "llm_prompt": "Free OCR."}
print(json.dumps(["picture", "llm_client", "Free OCR.", MarkItDown(**options).convert(PICTURE).markdown]))
plugin = MarkItDown(enable_plugins=True, **options)
print(json.dumps(["pdf", "markitdown-ocr", "Free OCR.", plugin.convert(PDF).markdown]))
