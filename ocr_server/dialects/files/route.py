"""`/v1/files`: pictures and documents to read, and the input and output files of batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import ColumnElement, RowMapping

from ocr_server.batches.files import Files
from ocr_server.batches.listing import Listing
from ocr_server.batches.requests import HEAD_BYTES, kind_of
from ocr_server.batches.signing import Signature, path_of
from ocr_server.batches.storage import CHUNK
from ocr_server.dialects.dialect import Api
from ocr_server.dialects.files.filters import filters
from ocr_server.dialects.files.upload import FORM, HOUR, MAX_FIELDS, upload_of
from ocr_server.dialects.files.wire import (
    BATCH,
    READ_PURPOSES,
    FileDeleted,
    FileList,
    FileObject,
    SignedUrl,
    file_object,
)
from ocr_server.dialects.http import ERRORS, batches_of, client_of, form_of, is_form, runtime_of
from ocr_server.errors import Forbidden, InvalidRequest
from ocr_server.runtime import MEGA

router = APIRouter(prefix="/v1/files", tags=["Files"], responses=ERRORS)

MOST_FILES = 10_000
PAGE_SIZE = 100
"""Mistral's default size of a page of a list."""
MAX_URL_HOURS = 168
"""Longest lifetime of a signed URL."""
ROW_BYTES = 500
"""Size of a file in a list, about."""
_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.post(
    "",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
)
async def upload_file(request: Request) -> FileObject:
    """Upload a picture or document to read, or the input file of a batch: JSONL, a PDF, or a zip of pictures."""
    if not is_form(request):
        raise InvalidRequest("Upload the file as multipart/form-data.", param="file")
    settings = runtime_of(request).settings
    of_batch = settings.MAX_FILE_MB * MEGA
    limits = {BATCH: of_batch} | dict.fromkeys(READ_PURPOSES, min(of_batch, settings.MAX_IMAGE_MB * MEGA))
    async with form_of(request, max_fields=MAX_FIELDS) as form:
        upload = upload_of(form, max_bytes=limits)
        request.state.ignored = upload.ignored
        head = await upload.file.read(HEAD_BYTES)
        await upload.file.seek(0)
        row = await batches_of(request).files.upload(
            client_of(request),
            iter(lambda: upload.file.file.read(CHUNK), b""),
            filename=upload.filename,
            purpose=upload.purpose,
            kind=kind_of(head),
            size=upload.size,
            seconds=upload.seconds,
        )
    return file_object(row)


@router.get("", response_model=FileList)
async def list_files(
    request: Request,
    conditions: Annotated[list[ColumnElement[bool]], Depends(filters)],
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=MOST_FILES)] = MOST_FILES,
    order: Literal["asc", "desc"] = "desc",
    page: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
    page_size: Annotated[int | None, Query(ge=0, le=MOST_FILES)] = None,
) -> Response:
    """List your files, sorted by the time of their creation.

    OpenAI's clients go through the list by `after` and `limit`, Mistral's by `page` and `page_size`. A limit of 0
    and an empty `after` ask for nothing.
    """
    is_paged = page is not None or page_size is not None
    if is_paged:
        limit = page_size or PAGE_SIZE
    listing = await batches_of(request).files.list(
        client_of(request),
        after=after or None,
        limit=limit or MOST_FILES,
        newest_first=order == "desc",
        conditions=conditions,
        offset=(page or 0) * limit,
        with_total=is_paged,
    )
    content = await runtime_of(request).sized(ROW_BYTES * len(listing.rows), _list, listing)
    return Response(content, media_type="application/json")


def _list(listing: Listing) -> str:
    """Return a list of files as JSON. It can be megabytes."""
    data = [file_object(row) for row in listing.rows]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=listing.has_more,
        total=listing.total,
    ).model_dump_json()


@router.get("/{file_id}")
async def retrieve_file(request: Request, file_id: str) -> FileObject:
    """Return one of your files, without its content."""
    return file_object(await batches_of(request).files.get(client_of(request), file_id))


@router.delete("/{file_id}")
async def delete_file(request: Request, file_id: str) -> FileDeleted:
    """Delete a file. The input file of a batch that has not ended cannot be deleted."""
    await batches_of(request).files.delete(client_of(request), file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT)
async def download_file(request: Request, file_id: str) -> StreamingResponse:
    """Download the content of a file."""
    files = batches_of(request).files
    return await _content(files, await files.get(client_of(request), file_id))


@router.get("/{file_id}/url")
async def sign_url(
    request: Request, file_id: str, expiry: Annotated[int, Query(ge=1, le=MAX_URL_HOURS)] = 24
) -> SignedUrl:
    """Return a URL of the file's content that needs no API key and expires after `expiry` hours.

    In requests to this server it can be used like any other URL. The file is then read from the storage.
    """
    batches = batches_of(request)
    row = await batches.files.get(client_of(request), file_id)
    signed = await batches.signer.sign(row["id"], expiry * HOUR)
    return SignedUrl(url=str(request.base_url).rstrip("/") + path_of(signed), expires_at=signed.expires)


@router.get("/{file_id}/signed", response_class=StreamingResponse, responses=_CONTENT)
async def download_signed(
    request: Request,
    file_id: str,
    expires: Annotated[int, Query(ge=0, lt=10**12)],
    signature: Annotated[str, Query(max_length=64)],
) -> StreamingResponse:
    """Download the content of a file by its signed URL. Needs no API key."""
    batches, signed = batches_of(request), Signature(file_id, expires, signature)
    if not await batches.signer.is_valid(signed):
        raise Forbidden("The signature of the URL is not valid.", param="signature", code="signature_invalid")
    if batches.signer.has_expired(signed):
        raise Forbidden("The signed URL has expired.", param="expires", code="signed_url_expired")
    return await _content(batches.files, await batches.files.get(None, file_id))


async def _content(files: Files, row: RowMapping) -> StreamingResponse:
    """Return the response that sends the content of a file."""
    chunks = files.storage.download(row["id"])
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


FILES = Api(router, {"files": "POST /v1/files"})
