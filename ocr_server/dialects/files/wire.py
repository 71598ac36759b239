"""The wire types of `/v1/files`, as the SDKs of OpenAI and of Mistral define them."""

from __future__ import annotations

import mimetypes
from typing import Literal

from pydantic import BaseModel
from sqlalchemy import RowMapping

from ocr_server.dialects.wire import Answer, Maybe

BATCH, BATCH_OUTPUT = "batch", "batch_output"
READ_PURPOSES = ("user_data", "vision", "assistants", "ocr")
"""Purposes of files that are pictures or documents."""
PURPOSES = (*READ_PURPOSES, BATCH)
"""Purposes of files that can be uploaded."""
ERROR_ID = "file-error-"
"""Prefix of the ids of files with the errors of a batch."""
_MIME_TYPES = {"pdf": "application/pdf", "zip": "application/zip"}

SampleType = Literal["batch_request", "batch_result", "batch_error", "ocr_input"]
Source = Literal["upload", "mistral"]


class FileObject(Answer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None
    size_bytes: int
    """Mistral: the same as `bytes`, as are the following fields theirs."""
    sample_type: SampleType
    source: Source
    """`upload`, or `mistral` for files that the server has written."""
    num_lines: None = None
    mimetype: str | None
    signature: None = None
    visibility: Literal["user"] = "user"
    """Each API key has its own files."""
    deleted: Literal[False] = False


def file_object(row: RowMapping) -> FileObject:
    """Return a row of the database as the client receives it."""
    written = row["purpose"] == BATCH_OUTPUT
    sample_type: SampleType = "ocr_input"
    if written:
        sample_type = "batch_error" if row["id"].startswith(ERROR_ID) else "batch_result"
    elif row["purpose"] == BATCH:
        sample_type = "batch_request"
    return FileObject(
        **{name: row[name] for name in ("id", "bytes", "created_at", "expires_at", "filename", "purpose")},
        size_bytes=row["bytes"],
        sample_type=sample_type,
        source="mistral" if written else "upload",
        mimetype=_MIME_TYPES.get(row["kind"]) or mimetypes.guess_type(row["filename"])[0],
    )


class FileList(Answer):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    total: Maybe[int] = None
    """Mistral: number of files that match, with `page` or `page_size`."""


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class SignedUrl(Answer):
    url: str
    """Address of the content, which needs no API key."""
    expires_at: int
    """Extension of this server: Unix time in seconds at which the URL expires."""
