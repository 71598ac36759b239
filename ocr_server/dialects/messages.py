"""Which messages of a conversation are read: which has the pictures, and which gives the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deepseek_ocr.families import Family
from ocr_server.dialects.content import AnyPart, FilePart, ImagePart, OtherPart, Parts, TextPart, ToRead, to_read
from ocr_server.dialects.validation import MAX_NAME_CHARS
from ocr_server.dialects.wire import Wire
from ocr_server.errors import InvalidRequest

NOTHING_TO_READ = (
    "This model reads pictures and PDFs: add one to the user message, for example as an image_url part with a data URI."
)
"""The answer to a conversation without a picture, where none is required. Many tools test a connection with one."""


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Parts | None = None
    prefix: bool = False
    """Mistral: whether the answer continues this message. Not supported."""


@dataclass(frozen=True)
class Conversation:
    """What a conversation asks for."""

    to_read: tuple[ToRead, ...]
    """The pictures and documents, in order; none if there is nothing to read."""
    prompt: str | None
    """The instruction for the model; None if no message has one."""


def conversation(messages: Sequence[Message], family: Family, *, place: str = "messages") -> Conversation:
    """Return what a conversation asks for.

    The pictures are those of the last user message that has any. The prompt is the text of the last user message that
    has any. Without one, it is that of the last system message with one of the model's own prompts: other system
    messages are written for chat models.

    Args:
        place: Name of the list of messages in the request.

    Raises:
        InvalidRequest: A part cannot be read, or the answer is to continue a message.
    """
    for number, message in enumerate(messages):
        if message.prefix:
            raise InvalidRequest(
                "The answer cannot continue a message of the assistant; leave out prefix.",
                param=f"{place}[{number}].prefix",
                code="unsupported_parameter",
            )
    return Conversation(_to_read(messages, place), _prompt(messages, family))


def nothing_to_read(place: str = "messages") -> InvalidRequest:
    """Return the error for a conversation without a picture, where one is required."""
    return InvalidRequest(
        "The request has no picture to read. Send one as an image_url part of the user message, "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}, or a document as a file part.',
        param=place,
        code="missing_image",
    )


def _to_read(messages: Sequence[Message], place: str) -> tuple[ToRead, ...]:
    for number in reversed(range(len(messages))):
        message = messages[number]
        if message.role != "user" or not isinstance(message.content, list):
            continue
        here = f"{place}[{number}].content"
        _refuse_other_parts(here, message.content)
        found = tuple(
            to_read(part, f"{here}[{index}]")
            for index, part in enumerate(message.content)
            if isinstance(part, ImagePart | FilePart)
        )
        if found:
            return found
    return ()


def _refuse_other_parts(place: str, parts: Sequence[AnyPart]) -> None:
    for number, part in enumerate(parts):
        if isinstance(part, OtherPart):
            raise InvalidRequest(
                f"Parts of type {part.type[:MAX_NAME_CHARS]!r} are not supported; use text, image_url and file.",
                param=f"{place}[{number}].type",
                code="unsupported_content",
            )


def _prompt(messages: Sequence[Message], family: Family) -> str | None:
    for message in reversed(messages):
        if message.role == "user" and (text := _text(message, family)):
            return text
    for message in reversed(messages):
        if message.role in ("system", "developer"):
            text = _text(message, family)
            if is_model_prompt(text, family):
                return text
    return None


def is_model_prompt(text: str, family: Family) -> bool:
    """Return whether a text is one of the model's own prompts, or contains tokens that only these have."""
    plain = {_plain(prompt) for prompt in family.prompts.values()}
    return _plain(text) in plain or any(token in text for token in family.instruction_tokens)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _text(message: Message, family: Family) -> str:
    """Return all text of a message, without white space around it, as the model was trained; "" for placeholders of
    the picture alone.
    """
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content if isinstance(part, TextPart))
    text = (content or "").strip()
    return text if re.sub(rf"\A(?:{re.escape(family.image_token)}\s*)+", "", text) else ""
