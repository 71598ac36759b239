"""`/v1/files`: the input and output files of batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter
from sqlalchemy import RowMapping
from starlette.datastructures import UploadFile

from ocr_server.batches.listing import Listing
from ocr_server.batches.requests import HEAD_BYTES, kind_of
from ocr_server.batches.storage import CHUNK
from ocr_server.dialects.dialect import Api
from ocr_server.dialects.files.wire import FileDeleted, FileList, FileObject
from ocr_server.dialects.http import ERRORS, batches_of, client_of, form_of, is_form, runtime_of
from ocr_server.dialects.wire import LEAST_SECONDS, MOST_SECONDS
from ocr_server.errors import InvalidRequest, TooLarge
from ocr_server.runtime import MEGA

router = APIRouter(prefix="/v1/files", tags=["Files"], responses=ERRORS)

MOST_NAME_CHARS = 255
ROW_BYTES = 500
"""Size of a file in a list, about."""
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
        ANCHOR: {"type": "string", "enum": ["created_at"]},
        SECONDS: {"type": "integer", "minimum": LEAST_SECONDS, "maximum": MOST_SECONDS},
    },
}


@router.post(
    "",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def upload_file(request: Request) -> FileObject:
    """Upload the input file of a batch: requests as JSONL, a PDF, or a zip of pictures."""
    if not is_form(request):
        raise InvalidRequest("Upload the file as multipart/form-data.", param="file")
    most = runtime_of(request).settings.MAX_FILE_MB * MEGA
    async with form_of(request, max_fields=10) as form:
        file, fields = form.get("file"), {name: value for name, value in form.items() if name != "file"}
        if not isinstance(file, UploadFile):
            raise InvalidRequest("The form has no field file.", param="file")
        seconds = _checked(fields)
        size = file.size or 0
        if size == 0:
            raise InvalidRequest("The file is empty (0 bytes).", param="file")
        if size > most:
            raise TooLarge(f"The file has {size:,} bytes; the limit is {most:,} bytes.", param="file")
        head = await file.read(HEAD_BYTES)
        await file.seek(0)
        row = await batches_of(request).files.upload(
            client_of(request),
            iter(lambda: file.file.read(CHUNK), b""),
            filename=_name(file.filename),
            kind=kind_of(head),
            size=size,
            seconds=seconds,
        )
    return _object(row)


def _checked(fields: dict[str, Any]) -> int | None:
    """Check the other fields of an upload. Return the lifetime in seconds, if it is given."""
    if fields.get("purpose") != "batch":
        raise InvalidRequest("purpose must be batch.", param="purpose")
    for name in fields.keys() - {"purpose", ANCHOR, SECONDS}:
        raise InvalidRequest(f"Unknown parameter: {name}.", param=name, code="unsupported_parameter")
    if ANCHOR not in fields and SECONDS not in fields:
        return None
    if fields.get(ANCHOR) != "created_at":
        raise InvalidRequest(f"{ANCHOR} must be created_at.", param=ANCHOR)
    seconds = str(fields.get(SECONDS, ""))
    if not (seconds.isascii() and seconds.isdigit() and LEAST_SECONDS <= int(seconds[:12]) <= MOST_SECONDS):
        raise InvalidRequest(f"{SECONDS} must be an integer from {LEAST_SECONDS} to {MOST_SECONDS}.", param=SECONDS)
    return int(seconds)


def _name(name: str | None) -> str:
    """Return the file name without folders and control characters."""
    shown = "".join(sign for sign in (name or "").replace("\\", "/").rsplit("/", 1)[-1] if sign.isprintable())
    return shown[:MOST_NAME_CHARS] or "file"


@router.get("", response_model=FileList)
async def list_files(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$")] = None,
) -> Response:
    """List your files, sorted by the time of their creation."""
    page = await batches_of(request).files.list(
        client_of(request), after=after, limit=limit, newest_first=order == "desc", purpose=purpose
    )
    content = await runtime_of(request).sized(ROW_BYTES * len(page.rows), _list, page)
    return Response(content, media_type="application/json")


def _list(page: Listing) -> str:
    """Return a list of files as JSON. It can be megabytes."""
    data = [_object(row) for row in page.rows]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    ).model_dump_json()


@router.get("/{file_id}")
async def retrieve_file(request: Request, file_id: str) -> FileObject:
    """Return one of your files, without its content."""
    return _object(await batches_of(request).files.get(client_of(request), file_id))


@router.delete("/{file_id}")
async def delete_file(request: Request, file_id: str) -> FileDeleted:
    """Delete a file. The input file of a batch that has not ended cannot be deleted."""
    await batches_of(request).files.delete(client_of(request), file_id)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def download_file(request: Request, file_id: str) -> StreamingResponse:
    """Download the content of a file."""
    files = batches_of(request).files
    row = await files.get(client_of(request), file_id)
    chunks = files.storage.download(file_id)
    first = await anext(chunks, b"")  # if it cannot be read, the status says so
    return StreamingResponse(
        _continued(first, chunks),
        media_type="application/octet-stream",
        headers={
            "content-length": str(row["bytes"]),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(row['filename'])}",
        },
    )


async def _continued(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk


_FILE = TypeAdapter(FileObject)


def _object(row: RowMapping) -> FileObject:
    return _FILE.validate_python({name: row[name] for name in FileObject.model_fields if name in row})


FILES = Api(router, {"files": "POST /v1/files"})
