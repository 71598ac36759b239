"""`POST /v1/ocr`: a document's pages as markdown, figures and blocks, in the shape of Mistral's OCR API."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from ocr_server.dialects.endpoints import Events, OcrWork, begin_ocr, ocr_json
from ocr_server.dialects.http import ERRORS, caller, context, parsed
from ocr_server.dialects.ocr.response import PICTURE_DPI
from ocr_server.dialects.ocr.wire import OcrDoneEvent, OcrPageEvent, OcrRequest, OcrResponse
from ocr_server.errors import InvalidRequest
from ocr_server.output.artifacts import product_of
from ocr_server.output.overlay import to_pdf
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import PAGE_SEPARATOR
from ocr_server.transport.disconnect import unless_disconnected
from ocr_server.transport.event_stream import event_stream

router = APIRouter(tags=["OCR"])

_BODY = {"$ref": "#/components/schemas/OcrRequest"}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}},
    "additionalProperties": {"type": "string", "description": "Any field of OcrRequest but document."},
}


@router.post(
    "/v1/ocr",
    response_model=OcrResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _BODY}, "multipart/form-data": {"schema": _FORM}},
        }
    },
    responses={
        200: {
            "content": {
                "text/event-stream": {"schema": {"$ref": "#/components/schemas/OcrPageEvent"}},
                "text/markdown": {},
                "application/pdf": {},
                "image/png": {},
            }
        },
        **ERRORS,
    },
)
async def read_document(request: Request) -> Response:
    """Read a PDF or picture: sent as a form's `file`, or named in JSON by a URL or data URI."""
    body = await _uploaded(request) if _is_form(request) else await parsed(request, OcrRequest)
    return await unless_disconnected(request, _answer(request, body))


async def _answer(request: Request, body: OcrRequest) -> Response:
    state = context(request)
    work = await begin_ocr(state, body, caller(request))
    if not body.stream and body.output == "json":
        return Response(await ocr_json(work), media_type="application/json")
    try:
        if body.stream:
            return await event_stream(_chunks(work), shutdown_timeout=state.settings.SHUTDOWN_TIMEOUT)
        if body.output == "overlay":
            return await _overlay(work.events, of_document=work.session.is_document)
        made = [work.pages.page(event) async for event in work.events if isinstance(event, PageReading)]
    except BaseException:
        await work.session.close()
        raise
    return Response(PAGE_SEPARATOR.join(page.markdown for page in made), media_type="text/markdown")


async def _chunks(work: OcrWork) -> AsyncGenerator[str]:
    async with aclosing(work.events):
        done = 0
        async for event in work.events:
            if isinstance(event, PageReading):
                done += 1
                page = work.pages.page(event)
                yield OcrPageEvent(done=done, total=len(work.session.jobs), page=page).model_dump_json()
    yield OcrDoneEvent(model=work.model, usage_info=work.pages.usage).model_dump_json()


async def _overlay(events: Events, *, of_document: bool) -> Response:
    """The pages with their blocks drawn on them; pages that could not be had are left out."""
    drawn: list[bytes] = []
    dpi: float | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, PageReading) and (overlay := product_of(event).overlay):
                drawn.append(overlay)
                dpi = event.dpi
    if not of_document:
        return Response(drawn[0], media_type="image/png")
    return Response(await asyncio.to_thread(to_pdf, drawn, dpi or PICTURE_DPI), media_type="application/pdf")


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _uploaded(request: Request) -> OcrRequest:
    """A form with a `file` and the other parameters as fields, as curl -F sends them."""
    fields: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=100) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequest("The form has no file: send it as -F file=@invoice.pdf.", param="file")
        data = await file.read()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    if "document" in fields:
        raise InvalidRequest("A form sends its document as file.", param="document")
    uri = f"data:;base64,{base64.b64encode(data).decode()}"
    try:
        return OcrRequest.model_validate_strings(fields | {"document": {"document_url": uri}})
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_input=False, include_url=False)) from error
