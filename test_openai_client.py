"""Tests the server with the OpenAI SDK.

    python test_openai_client.py path/to/image.jpg [more.png …]
        [--prompt "Free OCR."] [--mode gundam] [--base-url http://localhost:8000/v1]

Lists the models, and then reads each image twice: once without streaming, and once with streaming.
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
import time
from pathlib import Path

from openai import APIConnectionError, APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> int:
    parser = argparse.ArgumentParser(description="Read images with the DeepSeek-OCR API server.")
    parser.add_argument("images", nargs="+", type=Path, help="images to read: jpg, png, bmp, gif, webp, tiff, …")
    parser.add_argument("--prompt", default="Free OCR.", help='prompt for each image (default: "%(default)s")')
    parser.add_argument("--mode", help="resolution mode: tiny, small, base, large, gundam, gundam-m")
    parser.add_argument(
        "--base-url", default="http://localhost:8000/v1", help="base URL of the server (default: %(default)s)"
    )
    parser.add_argument("--api-key", default="EMPTY", help="API key, if the server requires one")
    parser.add_argument("--model", default="deepseek-ocr", help="model name (default: %(default)s)")
    options = parser.parse_args()

    client = OpenAI(base_url=options.base_url, api_key=options.api_key)
    try:
        print("Models:", ", ".join(model.id for model in client.models.list()))
        for image in options.images:
            read(client, image, options)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    except APIConnectionError:
        print(f"error: no server found at {options.base_url}. Start one with ./start_server.sh", file=sys.stderr)
    except APIStatusError as error:
        print(f"error: {error.status_code}: {error.message} (request {error.request_id})", file=sys.stderr)
    else:
        return 0
    return 1


def read(client: OpenAI, image: Path, options: argparse.Namespace) -> None:
    """Read an image without and with streaming, and print the answers and the time they took."""
    messages: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_uri(image)}},
                {"type": "text", "text": options.prompt},
            ],
        }
    ]
    extra = {"ocr": {"mode": options.mode}} if options.mode else None

    print(f"\n── {image}")
    started = time.perf_counter()
    answer = client.chat.completions.create(model=options.model, messages=messages, extra_body=extra)
    seconds = time.perf_counter() - started
    choice, usage = answer.choices[0], answer.usage
    print(choice.message.content)
    if usage:
        print(
            f"   [{usage.prompt_tokens} tokens in, {usage.completion_tokens} tokens out, {seconds:.2f} s, "
            f"finish reason: {choice.finish_reason}]"
        )

    print(f"── {image}, streaming")
    started, first = time.perf_counter(), None
    stream = client.chat.completions.create(model=options.model, messages=messages, extra_body=extra, stream=True)
    for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            first = first or time.perf_counter() - started
            print(text, end="", flush=True)
    print(f"\n   [first text after {first or 0:.2f} s, complete after {time.perf_counter() - started:.2f} s]")


def data_uri(image: Path) -> str:
    """Return the content of an image file as a data URI."""
    kind = mimetypes.guess_type(image.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"


if __name__ == "__main__":
    sys.exit(main())
