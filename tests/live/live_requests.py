"""Images with known text, and requests to read them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from PIL import Image
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = "deepseek-ocr"
PROMPT = "Free OCR."
"""The prompt that the embedded checkpoint follows best."""
SEPARATOR = "\n\n<--- Page Split --->\n\n"
PICTURES = sorted(
    path
    for path in (ROOT / "examples").iterdir()
    if path.suffix in (".png", ".jpg") and path.with_suffix(".txt").exists()
)
"""The example images that have a file with their text beside them."""
SIGN, RECEIPT, NOTICE = (ROOT / "examples" / name for name in ("sign.png", "receipt.png", "notice.png"))


def truth(picture: Path) -> str:
    """Return the text of an example image."""
    return picture.with_suffix(".txt").read_text(encoding="utf-8").strip()


def data_uri(data: bytes | Path, kind: str = "image/png") -> str:
    """Return the data URI of an image, given as bytes or as a file."""
    raw = data.read_bytes() if isinstance(data, Path) else data
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # a copy, as saving leaves metadata that breaks saving in another format
    return file.getvalue()


def image_part(url: str | bytes | Path, detail: str | None = None) -> dict[str, Any]:
    image_url = {"url": url if isinstance(url, str) else data_uri(url)}
    return {"type": "image_url", "image_url": image_url | ({"detail": detail} if detail else {})}


def text_part(text: str = PROMPT) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def ask(*pictures: str | bytes | Path, prompt: str | None = PROMPT) -> list[dict[str, Any]]:
    """Return messages that ask to read images."""
    return [user(*map(image_part, pictures), *([text_part(prompt)] if prompt is not None else []))]


def request(*pictures: str | bytes | Path, **options: Any) -> dict[str, Any]:
    """Return the body of a request to read images; by default, the sign."""
    return {"model": MODEL, "messages": ask(*(pictures or (SIGN,)))} | options


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "nano" / "checkpoint" / "tokenizer.json"))


def text_tokens(prompt: str) -> int:
    """Return the number of tokens of a prompt, including the line break between the image and the prompt."""
    return len(_tokenizer().encode("\n" + prompt, add_special_tokens=False).ids)


def token_id(token: str) -> int:
    found = _tokenizer().token_to_id(token)
    assert found is not None, token
    return found


def ids(text: str) -> list[int]:
    found: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return found


def blank(width: int, height: int) -> bytes:
    """Return a blank white PNG image."""
    return saved(Image.new("RGB", (width, height), "white"))


# Options that are no arguments of the SDK
_EXTRAS = {"ocr", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"}


def call(*pictures: str | bytes | Path, **options: Any) -> dict[str, Any]:
    """Return the same request as `request`, as arguments of the SDK's `create`."""
    body = request(*pictures, **options)
    extra = {name: body.pop(name) for name in _EXTRAS & body.keys()}
    return body | ({"extra_body": extra} if extra else {})


def text_of(answer: ChatCompletion, choice: int = 0) -> str:
    assert answer.choices[choice].index == choice
    content = answer.choices[choice].message.content
    assert content is not None
    return content


def joined(chunks: Iterable[ChatCompletionChunk], choice: int = 0) -> str:
    """Return the text of one choice of a stream."""
    return "".join(each.delta.content or "" for chunk in chunks for each in chunk.choices if each.index == choice)


def events(body: str) -> list[Any]:
    """Return the decoded data of server-sent events, `[DONE]` as it is. Checks the framing."""
    assert body.endswith("\n\n")
    found: list[Any] = []
    for frame in body.replace("\r\n", "\n").removesuffix("\n\n").split("\n\n"):
        if frame.startswith(":"):  # a comment that keeps the connection alive
            continue
        assert frame.startswith("data: "), frame
        assert "\n" not in frame, frame
        data = frame.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found
