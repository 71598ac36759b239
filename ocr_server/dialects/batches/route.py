"""`/v1/batches`: many requests in one file, answered in the background."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import RowMapping

from ocr_server.batches.template import body_of
from ocr_server.dialects.batches.wire import (
    Batch,
    BatchError,
    BatchErrors,
    BatchList,
    BatchRequest,
    BatchRequestCounts,
    BatchUsage,
)
from ocr_server.dialects.dialect import Api
from ocr_server.dialects.http import ERRORS, batches_of, client_of, parsed, runtime_of
from ocr_server.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/v1/batches", tags=["Batches"], responses=ERRORS)


@router.post(
    "",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
        }
    },
)
async def create_batch(request: Request) -> Batch:
    """Create a batch that answers every request of a file. The file is checked first; `errors` lists its problems."""
    body, client, own = await parsed(request, BatchRequest), client_of(request), batches_of(request)
    endpoint = own.endpoints.get(body.endpoint)
    if endpoint is None:
        raise InvalidRequest(f"endpoint must be one of {', '.join(own.endpoints)}.", param="endpoint")
    try:
        file = await own.files.get(client, body.input_file_id)
    except NotFound as error:
        error.param = "input_file_id"
        raise
    if file["purpose"] != "batch":
        raise InvalidRequest("The input file must have the purpose batch.", param="input_file_id")
    each = None
    if file["kind"] != "jsonl":
        each = body_of(endpoint, body.request or {}, runtime_of(request).settings).decode()
    elif body.request is not None:
        raise InvalidRequest(
            "request applies to a PDF or zip only; each line of a JSONL file has its own body.", param="request"
        )
    row = await own.store.create(
        client,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        window=body.completion_window,
        seconds=body.window_seconds,
        kind=file["kind"],
        body=each,
        metadata=body.metadata,
        output_seconds=None if body.output_expires_after is None else body.output_expires_after.seconds,
    )
    own.runner.wake()
    return _object(row)


@router.get("")
async def list_batches(
    request: Request, after: str | None = None, limit: Annotated[int, Query(ge=0, le=100)] = 20
) -> BatchList:
    """List your batches, the newest first. A limit of 0 and an empty `after` ask for nothing."""
    page = await batches_of(request).store.list(client_of(request), after=after or None, limit=limit or 20)
    data = [_object(row) for row in page.rows]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


@router.get("/{batch_id}")
async def retrieve_batch(request: Request, batch_id: str) -> Batch:
    """Return one of your batches."""
    return _object(await batches_of(request).store.get(client_of(request), batch_id))


@router.post("/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> Batch:
    """Cancel a batch. Answers that exist already are kept and written to the output file."""
    own = batches_of(request)
    row = await own.store.cancel(client_of(request), batch_id)
    own.runner.wake()
    return _object(row)


def _object(row: RowMapping) -> Batch:
    errors = [BatchError(**error) for error in row["errors"] or ()]
    plain = {name: row[name] for name in Batch.model_fields if name in row and name != "errors"}
    return Batch(
        **plain,
        errors=BatchErrors(data=errors) if errors else None,
        request_counts=BatchRequestCounts(total=row["total"], completed=row["completed"], failed=row["failed"]),
        usage=BatchUsage(
            input_tokens=row["prompt_tokens"],
            output_tokens=row["completion_tokens"],
            total_tokens=row["prompt_tokens"] + row["completion_tokens"],
        ),
    )


BATCHES = Api(router, {"batches": "POST /v1/batches"}, (BatchRequest,))
