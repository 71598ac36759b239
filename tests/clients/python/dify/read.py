"""Dify: the model class of its plugins for OpenAI-compatible servers, with the connection test it does first."""

import base64
import json
import os
import sys
from pathlib import Path

from dify_plugin.entities.model.message import ImagePromptMessageContent, TextPromptMessageContent, UserPromptMessage
from dify_plugin.interfaces.model.openai_compatible.llm import OAICompatLargeLanguageModel

PICTURE, PDF = map(Path, sys.argv[1:])
model = OAICompatLargeLanguageModel(model_schemas=[])
model._get_num_tokens_by_gpt2 = len  # its tokenizer, which only counts for the bill, would be downloaded
server = {"endpoint_url": os.environ["OCR_BASE_URL"], "api_key": "EMPTY", "mode": "chat", "vision_support": "support"}
model.validate_credentials("deepseek-ocr", server)

data = base64.b64encode(PICTURE.read_bytes()).decode()
content = [
    ImagePromptMessageContent(format="png", mime_type="image/png", base64_data=data),
    TextPromptMessageContent(data="Free OCR."),
]
for how, stream in (("as a stream", True), ("whole", False)):
    pieces = model.invoke("deepseek-ocr", server, [UserPromptMessage(content=content)], {}, stream=stream)
    text = "".join(piece.delta.message.content or "" for piece in pieces)
    print(json.dumps(["picture", how, "Free OCR.", text]))
