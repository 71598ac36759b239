"""Parts of messages in the shapes of several APIs become content to read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ocr_server.dialects.content import FilePart, ImagePart, OtherPart, Part, TextPart, to_read
from ocr_server.dialects.wire import Ignored
from ocr_server.errors import InvalidRequest
from ocr_server.intake.source import Base64, Url

ADAPTER: TypeAdapter[Any] = TypeAdapter(Part)
URI, BARE = "data:image/png;base64,AAAA", "AAAA"


def parsed(part: Any) -> Any:
    return ADAPTER.validate_python(part, context=Ignored())


@pytest.mark.parametrize(
    ("part", "content", "parameter"),
    [
        ({"type": "image_url", "image_url": {"url": URI}}, Url(URI), "image_url.url"),
        ({"type": "image_url", "image_url": URI}, Url(URI), "image_url"),
        ({"type": "input_image", "image_url": URI}, Url(URI), "image_url"),
        ({"type": "image", "image": URI}, Url(URI), "image"),
        ({"type": "image", "url": URI}, Url(URI), "url"),
        ({"type": "image", "source": {"type": "url", "url": URI}}, Url(URI), "source.url"),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BARE}},
            Base64(BARE),
            "source.data",
        ),
        ({"type": "document", "source": {"type": "base64", "data": BARE}}, Base64(BARE), "source.data"),
        ({"type": "document_url", "document_url": URI, "document_name": "a.pdf"}, Url(URI), "document_url"),
        ({"type": "document_url", "document_url": {"url": URI}}, Url(URI), "document_url.url"),
        ({"type": "file", "file": {"file_data": URI, "filename": "a.pdf"}}, Url(URI), "file.file_data"),
        ({"type": "file", "file": {"file_data": BARE}}, Base64(BARE), "file.file_data"),
        ({"type": "input_file", "file_data": URI, "filename": "a.pdf"}, Url(URI), "file_data"),
        ({"type": "input_file", "file_url": "https://a.example/b.pdf"}, Url("https://a.example/b.pdf"), "file_url"),
        ({"image_url": {"url": URI}}, Url(URI), "image_url.url"),
        ({"type": None, "image_url": URI}, Url(URI), "image_url"),
    ],
)
def test_shapes(part: dict[str, Any], content: Any, parameter: str) -> None:
    found = to_read(parsed(part), "here")
    assert (found.content, found.parameter, found.detail) == (content, f"here.{parameter}", "auto")


@pytest.mark.parametrize(
    ("part", "detail"),
    [
        ({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}, "low"),
        ({"type": "image_url", "image_url": {"url": URI, "detail": None}}, "auto"),
        ({"type": "input_image", "image_url": URI, "detail": "original"}, "original"),
        ({"type": "input_image", "image_url": URI, "detail": None}, "auto"),
        ({"type": "image_url", "image_url": {"url": URI, "detail": ""}}, ""),
    ],
)
def test_detail(part: dict[str, Any], detail: str) -> None:
    assert to_read(parsed(part), "here").detail == detail


@pytest.mark.parametrize(
    "part",
    ["words", {"text": "words"}, *({"type": kind, "text": "words"} for kind in ("text", "input_text", "output_text"))],
)
def test_text(part: Any) -> None:
    text = parsed(part)
    assert isinstance(text, TextPart)
    assert text.text == "words"


@pytest.mark.parametrize("part", [{"type": "input_audio", "input_audio": {}}, {"type": "refusal", "refusal": "no"}])
def test_parts_of_other_types_are_kept_as_they_are(part: dict[str, Any]) -> None:
    assert isinstance(parsed(part), OtherPart)


@pytest.mark.parametrize(
    ("part", "parameter"),
    [
        ({"type": "image_url"}, "image_url"),
        ({"type": "input_image", "image_url": None}, "image_url"),
        ({"type": "image"}, "source"),
        ({"type": "file", "file": {"filename": "a.pdf"}}, "file.file_data"),
        ({"type": "input_file", "filename": "a.pdf"}, "file_data"),
        ({"type": "document_url"}, "document_url"),
        ({"type": "document", "source": {"type": "text", "data": "words"}}, "source.type"),
        ({"type": "image", "source": {"type": "base64"}}, "source.type"),
    ],
)
def test_a_part_with_nothing_to_read(part: dict[str, Any], parameter: str) -> None:
    got = parsed(part)
    assert isinstance(got, ImagePart | FilePart)
    with pytest.raises(InvalidRequest) as caught:
        to_read(got, "here")
    assert caught.value.param == f"here.{parameter}"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": 5}},
        {"type": "image_url", "image_url": [URI]},
        {"type": "image_url", "image_url": {"url": URI, "detail": "best"}},
        {"type": "text"},
        {"type": ["text"]},
        {"words": "x"},
        5,
        [],
    ],
)
def test_what_is_no_part(part: Any) -> None:
    with pytest.raises(ValidationError):
        parsed(part)
