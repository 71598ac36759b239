"""LlamaIndex: OpenAILike for chat completions, OpenAIResponses for responses."""

import json
import os
import sys
from pathlib import Path

from llama_index.core.llms import ChatMessage, DocumentBlock, ImageBlock, TextBlock
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike

PICTURE, PDF = map(Path, sys.argv[1:])
server = {"api_base": os.environ["OCR_BASE_URL"], "api_key": "EMPTY", "model": "deepseek-ocr"}
blocks = {"picture": ImageBlock(path=PICTURE), "pdf": DocumentBlock(path=PDF)}
models = {
    "chat": OpenAILike(is_chat_model=True, **server),
    "responses": OpenAIResponses(context_window=8192, **server),
}
for how, model in models.items():
    for name, block in blocks.items():
        question = ChatMessage(role="user", blocks=[TextBlock(text="Free OCR."), block])
        print(json.dumps([name, how, "Free OCR.", model.chat([question]).message.content]))
