"""The wire types of `/v1/files`, as the official SDK has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ocr_server.dialects.chat.wire import Wire
from ocr_server.dialects.pages import Answer

LEAST_SECONDS, MOST_SECONDS = 3600, 30 * 86_400


class ExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]
    """From an hour to 30 days after the anchor."""


class FileObject(Answer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(Answer):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
