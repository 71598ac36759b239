"""Parts of a message in every shape that clients send, and what there is to read in them.

Shapes: OpenAI's Chat Completions (`image_url`, `file`) and Responses (`input_text`, `input_image`, `input_file`),
Mistral's (`image_url` as a string, `document_url`) and Anthropic's (`image` and `document` with a `source`). As in
vLLM, a part may be a plain string or lack its type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from ocr_server.dialects.validation import MAX_NAME_CHARS
from ocr_server.dialects.wire import Wire, string_or_list, string_or_object
from ocr_server.errors import InvalidRequest
from ocr_server.intake.source import Base64, Content, StoredFile, Url

Detail = Literal["auto", "low", "high", "original", ""]
"""The setting DETAIL_MODES says which mode each selects; `auto` and an empty text leave it to the server."""


class Address(Wire):
    url: str
    """A `data:…;base64,…` URI or an http(s) URL."""


class ImageUrl(Address):
    detail: Detail = "auto"
    """`low` selects the base mode, `high` and `original` the gundam mode, and `auto` the server's default mode."""


ImageAddress = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[ImageUrl, Tag("<object>")], Discriminator(string_or_object)
]
DocumentAddress = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[Address, Tag("<object>")], Discriminator(string_or_object)
]


class AnthropicSource(Wire):
    type: str
    """`base64`, `url` or `file`."""
    data: str | None = None
    url: str | None = None
    file_id: str | None = None


class TextPart(Wire):
    type: Literal["text", "input_text", "output_text"]
    text: str


class ImagePart(Wire):
    """A picture, in one of these shapes."""

    type: Literal["image_url", "input_image", "image"]
    image_url: ImageAddress | None = None
    file_id: str | None = None
    source: AnthropicSource | None = None
    image: str | None = None
    """A URL, as in the chat templates of Hugging Face."""
    url: str | None = None
    """Another name of `image`."""
    detail: Detail = "auto"


class File(Wire):
    file_data: str | None = None
    """A PDF or picture: a `data:…;base64,…` URI or bare base64."""
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None
    """Accepted without effect: the type of the file is determined from its content."""


class FilePart(File):
    """A document or picture, in one of these shapes."""

    type: Literal["file", "input_file", "document", "document_url"]
    file: File | None = None
    document_url: DocumentAddress | None = None
    source: AnthropicSource | None = None
    detail: Detail = "auto"


_KINDS = {
    "text": "<text>",
    "input_text": "<text>",
    "output_text": "<text>",
    "image_url": "<image>",
    "input_image": "<image>",
    "image": "<image>",
    "file": "<file>",
    "input_file": "<file>",
    "document": "<file>",
    "document_url": "<file>",
}


class OtherPart(BaseModel):
    """A part of any other type. It is refused in a user message that is read, and ignored elsewhere."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[str, Field(json_schema_extra={"not": {"enum": list(_KINDS)}})]


AnyPart = TextPart | ImagePart | FilePart | OtherPart


def _with_type(value: Any) -> Any:
    """Return a part with its type: a string is text, and in an object one of the names is that of its type."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if isinstance(value, dict) and value.get("type") is None:
        kind = next((name for name in _KINDS if value.get(name) is not None), None)
        return value if kind is None else {**value, "type": kind}
    return value


def _part_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return _KINDS.get(str(kind), "<other>")


# Tags in angle brackets are left out of the parameter's name in an error (`UNION_TAGS`).
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image>")]
    | Annotated[FilePart, Tag("<file>")]
    | Annotated[OtherPart, Tag("<other>")],
    Discriminator(_part_kind),
    BeforeValidator(_with_type),
]
Parts = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Part], Field(max_length=1000, fail_fast=True), Tag("<list>")],
    Discriminator(string_or_list),
]
"""The content of a message: a string, or a list of parts."""


@dataclass(frozen=True)
class ToRead:
    """A picture or document that a request names."""

    content: Content
    detail: str
    """How closely to look, as the client wrote it."""
    parameter: str
    """Name of the request parameter that gave the content."""


def to_read(part: ImagePart | FilePart, place: str) -> ToRead:
    """Return what a part asks to read.

    Args:
        place: Name of the part in the request, such as `messages[0].content[1]`.

    Raises:
        InvalidRequest: The part contains nothing to read, or refers to it in a way that is not supported.
    """
    for name, content, detail in _given(part, place):
        return ToRead(content, detail, f"{place}.{name}")
    if isinstance(part, FilePart) and part.file is not None:
        raise InvalidRequest("file_data is missing.", param=f"{place}.file.file_data", code="missing_file_data")
    names = {"input_image": "image_url", "image": "source", "input_file": "file_data", "document": "source"}
    name = names.get(part.type, part.type)
    raise InvalidRequest(f"The part has no {name}.", param=f"{place}.{name}", code="missing_file_data")


def _given(part: ImagePart | FilePart, place: str) -> Iterator[tuple[str, Content, str]]:
    """Yield what a part names: the field's name, the content, and the detail."""
    if isinstance(part, ImagePart):
        if isinstance(part.image_url, ImageUrl):
            yield "image_url.url", Url(part.image_url.url), part.image_url.detail
        elif part.image_url is not None:
            yield "image_url", Url(part.image_url), part.detail
        for name in ("image", "url"):
            if (url := getattr(part, name)) is not None:
                yield name, Url(url), part.detail
        if part.file_id is not None:
            yield "file_id", StoredFile(part.file_id), part.detail
    else:
        if isinstance(part.document_url, Address):
            yield "document_url.url", Url(part.document_url.url), part.detail
        elif part.document_url is not None:
            yield "document_url", Url(part.document_url), part.detail
        for prefix, file in (("file.", part.file), ("", part)):
            for name, content in _of_file(file):
                yield f"{prefix}{name}", content, part.detail
    if part.source is not None:
        name, content = _of_source(part.source, f"{place}.source")
        yield f"source.{name}", content, part.detail


def _of_file(file: File | None) -> Iterator[tuple[str, Content]]:
    if file is None:
        return
    if file.file_data is not None:
        yield "file_data", data(file.file_data)
    if file.file_url is not None:
        yield "file_url", Url(file.file_url)
    if file.file_id is not None:
        yield "file_id", StoredFile(file.file_id)


def _of_source(source: AnthropicSource, place: str) -> tuple[str, Content]:
    if source.type == "base64" and source.data is not None:
        return "data", data(source.data)
    if source.type == "url" and source.url is not None:
        return "url", Url(source.url)
    if source.type == "file" and source.file_id is not None:
        return "file_id", StoredFile(source.file_id)
    raise InvalidRequest(
        f"A source of type {source.type[:MAX_NAME_CHARS]!r} cannot be read; use base64 with data, or url with url.",
        param=f"{place}.type",
        code="unsupported_content",
    )


def data(text: str) -> Content:
    """Return the content of a file that is sent as a data URI or as its base64 alone."""
    return Url(text) if text[:5].lower() == "data:" else Base64(text)
